"""A Fashion-MNIST cascade from data to scores in one go: train, assemble, search guidance and s, score with CAS.

    cdm prepare fashion-mnist DATA --resolutions 16,32
    python benchmarks/fashion_mnist_cascade.py --data DATA --out OUT                      # for a GPU; not yet measured
    python benchmarks/fashion_mnist_cascade.py --data DATA --out OUT --recipe fashion-mnist-32-small \\
        --seconds 10 10 --num 40 --final-num 40                                           # only shows that it runs

Every step is a `cdm` command that resumes, so the script can be stopped and given again. After each step the times so
far are in OUT/steps.json. With `--seconds` a training is cut short; its learning rate then has not reached its end, so
for a figure to publish let the recipe's length (`--set training.images=N`) fit the time instead.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import torch
from measuring import hardware

from cascaded_diffusion.files import write_json
from cascaded_diffusion.precision import pick_device


def steps(args: argparse.Namespace) -> dict[str, list[str]]:
    """Each step's name and the arguments of its `cdm` command."""
    out, data = args.out, ["--data", str(args.data)]
    device = ["--device", args.device] if args.device else []
    common = [*data, *device]
    runs = {stage: str(out / stage) for stage in ("base16", "sr32")}
    changes = [word for change in args.set for word in ("--set", change)]
    limits = dict(zip(runs, args.seconds or (None, None), strict=True))
    sampling = [*common, "--precision", "auto", "--batch-size", str(args.batch_size)]
    found = {
        f"train {stage}": [
            *("train", args.recipe, "--stage", stage, "--out", run, *common, *changes),
            *([] if limits[stage] is None else ["--max-seconds", str(limits[stage])]),
        ]
        for stage, run in runs.items()
    }
    cascade = str(out / "cascade")
    if not (out / "cascade").exists():
        found["assemble"] = ["assemble", cascade, *runs.values()]
    search = ["search", cascade, *sampling, "--num", str(args.num)]
    found["search guidance"] = [
        *(*search, "--stage", "base16", "--guidance", "1,1.25,1.5,2", "--out", str(out / "search-guidance"))
    ]
    found["search s"] = [
        *(*search, "--stage", "sr32", "--s", "0,0.05,0.1,0.15,0.2,0.3,0.4", "--out", str(out / "search-s")),
        *("--augmentation", "nontruncated"),
    ]
    found["evaluate"] = [
        *(
            "evaluate",
            cascade,
            *sampling,
            "--num",
            str(args.final_num),
            "--seed",
            "1",
            "--json",
            str(out / "scores.json"),
        ),
        *("--metrics", "fd,kid,pr,recognition,nn,drift,cas"),
    ]
    return found


def main() -> None:
    """Run every step and write down what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipe", default="fashion-mnist-32")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY.PATH=VALUE", help="changes to both stages' recipe")
    parser.add_argument("--seconds", type=float, nargs=2, metavar=("BASE", "SR"), help="at most this long a training")
    parser.add_argument("--num", type=int, default=10_000, help="samples a point of the searches")
    parser.add_argument("--final-num", type=int, default=20_000, help="samples of the final score")
    parser.add_argument("--batch-size", type=int, default=500)
    parser.add_argument("--device")
    args = parser.parse_args()
    log = {"hardware": hardware(pick_device(args.device)), "torch": torch.__version__, "seconds": {}, "commands": {}}
    for name, arguments in steps(args).items():
        started = time.perf_counter()
        print(f"== {name}: cdm {' '.join(arguments)}", flush=True)
        subprocess.run([sys.executable, "-m", "cascaded_diffusion", *arguments], check=True)
        log["seconds"][name] = round(time.perf_counter() - started, 1)
        log["commands"][name] = f"cdm {' '.join(arguments)}"
        write_json(args.out / "steps.json", log)
    print(log["hardware"], *(f"{name}: {seconds} s" for name, seconds in log["seconds"].items()), sep="\n")


if __name__ == "__main__":
    main()
