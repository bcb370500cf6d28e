"""Images a second and losses of one stage on 1, 2, 4 and 8 processes, whole (DDP) and sharded (FSDP2).

    python benchmarks/scaling.py --recipe imagenet-64 --stage base32 --data DATA --out OUT       # on a machine of GPUs
    python benchmarks/scaling.py --tiny --ranks 1,2 --steps 6 --device cpu --out OUT             # does it work?

Each way trains the same images from the same weights, at the same global batch, in a launch of torchrun of its own. The
table has the median images a second of the second half of the steps, what that is for each process against the first
way, and the largest relative difference of a loss from the first way's at the same step. Processes that share cores, as
with --tiny, say nothing about speed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
from measuring import hardware

from cascaded_diffusion.data.prepare import prepare
from cascaded_diffusion.precision import pick_device
from cascaded_diffusion.training.loop import read_metrics

TINY = {
    "name": "tiny",
    "channels": 3,
    "classes": 4,
    "flip": True,
    "stages": [
        {
            "name": "base8",
            "resolution": 8,
            "network": {"channels": 32, "multipliers": [1, 1], "blocks": 1, "attention": [4], "heads": 1},
            "training": {"images": 1_000_000, "batch_size": 16, "learning_rate": 1e-3, "ema_half_lives": [1000]},
        }
    ],
}


def tiny(out: Path) -> tuple[str, str, Path]:
    """A recipe, a stage and data of noise, made in a second."""
    generator = np.random.default_rng(0)
    out.mkdir(parents=True, exist_ok=True)
    images = generator.integers(0, 256, (64, 8, 8, 3), dtype=np.uint8)
    np.savez(out / "noise.npz", arr_0=images, arr_1=np.arange(64) % 4)
    if not (out / "data").exists():
        prepare(str(out / "noise.npz"), out / "data", resolutions=[8], workers=0)
    (out / "recipe.yaml").write_text(json.dumps(TINY))
    return str(out / "recipe.yaml"), "base8", out / "data"


def train(options: argparse.Namespace, run: Path, ranks: int, sharding: str) -> list[dict[str, float]]:
    """Train in ``ranks`` processes and return the lines of the run's log."""
    settings = {
        "batch_size": options.batch_size,
        "sharding": sharding,
        "precision": options.precision,
        "micro_batch": options.micro_batch,
        "log_every": options.batch_size,
        "checkpoint_every": 10**12,
        "preview_every": None,
    }
    words = ["train", options.recipe, "--stage", options.stage, "--data", str(options.data), "--out", str(run)]
    words += ["--max-images", str(options.steps * options.batch_size)]
    words += [word for key, value in settings.items() for word in ("--set", f"training.{key}={json.dumps(value)}")]
    words += ["--device", options.device] if options.device else []
    where = ["--nproc-per-node", str(ranks), "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
    launch = [sys.executable, "-m", "torch.distributed.run", *where, "--local-addr", "127.0.0.1"]
    subprocess.run(
        [*launch, "-m", "cascaded_diffusion", *words], check=True, env={"OMP_NUM_THREADS": "1", **os.environ}
    )
    return read_metrics(run)


def main() -> None:
    """Train each way and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", help="a packaged recipe's name or a YAML file")
    parser.add_argument("--stage", help="its stage")
    parser.add_argument("--data", type=Path, help="prepared data")
    parser.add_argument("--tiny", action="store_true", help="a network of a second and data of noise, instead of these")
    parser.add_argument("--out", type=Path, required=True, help="a new folder for the runs")
    parser.add_argument("--ranks", default="1,2,4,8", help="numbers of processes")
    parser.add_argument("--sharding", default="none,full", help="none, full")
    parser.add_argument("--batch-size", type=int, default=16, help="global batch, which each number divides")
    parser.add_argument("--micro-batch", type=int, help="images of a forward pass")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--precision", default="bf16", choices=["fp32", "bf16"])
    parser.add_argument("--device")
    options = parser.parse_args()
    if options.tiny:
        options.recipe, options.stage, options.data = tiny(options.out)
    elif None in (options.recipe, options.stage, options.data):
        parser.error("give --recipe, --stage and --data, or --tiny")
    rows, first = [], None
    for ranks in map(int, options.ranks.split(",")):
        for sharding in options.sharding.split(","):
            if ranks == 1 and sharding == "full":
                continue  # there is nothing to divide
            lines = train(options, options.out / f"{ranks}-{sharding}", ranks, sharding)
            speed = statistics.median(line["images_per_second"] for line in lines[len(lines) // 2 :])
            losses = np.array([line["loss"] for line in lines])
            first = first or (speed / ranks, losses)
            apart = float(np.abs(losses / first[1] - 1).max())
            rows.append((ranks, sharding, speed, speed / ranks / first[0], apart))
    print(
        f"\n{options.recipe} {options.stage}, global batch {options.batch_size}, {options.precision}; "
        f"{hardware(pick_device(options.device))}\n"
    )
    print("| processes | sharding | images/s | of the first way's, for each process | losses apart by at most |")
    print("|---|---|---|---|---|")
    for ranks, sharding, speed, share, apart in rows:
        print(f"| {ranks} | {sharding} | {speed:,.1f} | {share:.0%} | {apart:.1e} |")


if __name__ == "__main__":
    main()
