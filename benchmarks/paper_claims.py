"""Seven claims of the cascaded diffusion paper (2106.15282), put to the test on Fashion-MNIST.

    i    a cascade without augmentation is worse than one with it, and than a single stage of equal training cost
    ii   the score over s is U-shaped on generated low-resolution images
    iii  it gets steadily worse with s on real low-resolution images
    iv   truncated and non-truncated augmentation do about equally well
    v    blur augmentation beats none at the last of three stages
    vi   the super-resolution stage needs tens of steps or fewer
    vii  class conditioning helps the super-resolution stage

Three steps, each of which goes on where it was stopped:

    cdm prepare fashion-mnist DATA --resolutions 8,16,32
    python benchmarks/paper_claims.py train   --data DATA --out OUT
    python benchmarks/paper_claims.py measure --data DATA --out OUT
    python benchmarks/paper_claims.py show    --out OUT --images docs/images

`--high 16` (the default) scores a cascade 8 -> 16, which two CPU cores can train until its super-resolution stage is
not what limits it; `--high 32` a cascade 16 -> 32, and 8 -> 16 -> 32 for claim v. Train only the arms you need with
`--arms`; `measure` leaves out the claims whose models are missing. `--size gpu` takes larger networks and longer
training, `--size tiny` only shows that the script runs; `--seeds 0 1 2` repeats everything for error bars over runs.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from itertools import pairwise
from pathlib import Path

from claims_measure import CLAIMS, Measurer, needed
from claims_models import ARMS, SIZES, run_folder, train_arm
from claims_show import show
from measuring import hardware

from cascaded_diffusion import PreparedData
from cascaded_diffusion.evaluation.features import load_extractor
from cascaded_diffusion.files import write_json
from cascaded_diffusion.precision import pick_device
from cascaded_diffusion.training.checkpoint import checkpoint_folders
from cascaded_diffusion.training.loop import Progress, read_metrics


def say(line: str) -> None:
    """Print a line of progress at once."""
    print(line, flush=True)


def train_command(args: argparse.Namespace) -> None:
    """Train the models."""
    data, device = PreparedData.open(args.data), pick_device(args.device)

    def watch(progress: Progress) -> None:
        if progress.metrics is not None:
            line = f"{progress.images}/{progress.target} loss {progress.metrics['loss']:.4f}"
            say(f"{line} {progress.metrics['images_per_second']:.0f} images/s")

    for seed in args.seeds:
        for name in args.arms:
            started = time.perf_counter()
            if not train_arm(name, data, args.out, size=SIZES[args.size], seed=seed, device=device, watch=watch):
                sys.exit(130)
            say(f"{name} seed {seed}: {time.perf_counter() - started:.0f} s")


def trained(out: Path, name: str, seed: int) -> dict[str, float] | None:
    """Images and seconds of an arm's training from its metrics, or ``None`` if it is not finished."""
    run = run_folder(out, name, seed)
    if not (run / "config.json").exists():
        return None
    length = json.loads((run / "config.json").read_text(encoding="utf-8"))["training"]["images"]
    lines, folders = read_metrics(run), checkpoint_folders(run)
    if not lines or not folders or int(folders[-1].name) < length:
        return None
    first = lines[0]["images"] / lines[0]["images_per_second"]
    later = ((line["images"] - past["images"]) / line["images_per_second"] for past, line in pairwise(lines))
    seconds = first + sum(later)
    return {"images": lines[-1]["images"], "seconds": round(seconds)}


def measure_command(args: argparse.Namespace) -> None:
    """Sample the trained models and score the samples; claims whose models are not trained yet are left out."""
    data, device = PreparedData.open(args.data), pick_device(args.device)
    extractor = load_extractor(args.features, device=device)
    for seed in args.seeds:
        finished = {name: found for name in ARMS if (found := trained(args.out, name, seed)) is not None}
        measurer = Measurer(args.out, data, args.high, extractor, seed, args.num, device, say=say)
        for claim in args.claims:
            arms = needed(claim, args.high)
            missing = [name for name in arms if name not in finished]
            if missing:
                say(f"claim {claim}: not measured, {', '.join(missing)} not trained")
                continue
            started = time.perf_counter()
            points = CLAIMS[claim](measurer)
            say(f"claim {claim}, seed {seed}: {len(points)} points in {time.perf_counter() - started:.0f} s")
            content = {"claim": claim, "points": points, "arms": {name: finished[name] for name in arms}}
            content |= {"hardware": hardware(device), "command": " ".join(sys.argv)}
            write_json(measurer.folder / f"claim-{claim}.json", content)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    trainer = commands.add_parser("train", help=train_command.__doc__)
    trainer.set_defaults(run=train_command)
    trainer.add_argument("--size", choices=list(SIZES), default="cpu")
    trainer.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))

    measurer = commands.add_parser("measure", help=measure_command.__doc__)
    measurer.set_defaults(run=measure_command)
    measurer.add_argument("--claims", nargs="+", choices=list(CLAIMS), default=list(CLAIMS))
    measurer.add_argument("--num", type=int, default=4000, help="samples a point")
    measurer.add_argument("--features", default="fashion-mnist", help="extractor, as in cdm evaluate")

    shower = commands.add_parser("show", help=show.__doc__)
    shower.set_defaults(run=show)
    shower.add_argument("--num", type=int, default=4000, help="samples a point, as measured")
    shower.add_argument("--images", type=Path, help="folder for the plots")

    for command in (trainer, measurer):
        command.add_argument("--data", type=Path, required=True, help="folder made by cdm prepare")
        command.add_argument("--device")
    for command in (measurer, shower):
        command.add_argument("--high", type=int, choices=(16, 32), default=16, help="resolution that is scored")
    for command in (trainer, measurer, shower):
        command.add_argument("--out", type=Path, required=True, help="folder of the models and results")
        command.add_argument("--seeds", type=int, nargs="+", default=[0])
    return top


if __name__ == "__main__":
    arguments = parser().parse_args()
    arguments.run(arguments)
