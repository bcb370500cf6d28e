"""Seven claims of the cascaded diffusion paper, put to the test on Fashion-MNIST at 32x32."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from claims_models import ARMS, SIZES, train_arm

from cascaded_diffusion import PreparedData
from cascaded_diffusion.precision import pick_device
from cascaded_diffusion.training.loop import Progress


def train_command(args: argparse.Namespace) -> None:
    """Train the models. Each goes on where it was stopped."""
    data = PreparedData.open(args.data)

    def watch(progress: Progress) -> None:
        if progress.metrics is not None:
            line = f"{progress.images}/{progress.target} loss {progress.metrics['loss']:.4f}"
            print(line, f"{progress.metrics['images_per_second']:.0f} img/s", flush=True)

    for seed in args.seeds:
        for name in args.arms:
            started = time.perf_counter()
            if not train_arm(
                name, data, args.out, size=SIZES[args.size], seed=seed, device=pick_device(args.device), watch=watch
            ):
                sys.exit(130)
            print(f"{name} seed {seed}: {time.perf_counter() - started:.0f} s", flush=True)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    trainer = commands.add_parser("train", help=train_command.__doc__)
    trainer.set_defaults(run=train_command)
    trainer.add_argument("--data", type=Path, required=True)
    trainer.add_argument("--out", type=Path, required=True)
    trainer.add_argument("--size", choices=list(SIZES), default="cpu")
    trainer.add_argument("--device")
    trainer.add_argument("--seeds", type=int, nargs="+", default=[0])
    trainer.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    return top


if __name__ == "__main__":
    arguments = parser().parse_args()
    arguments.run(arguments)
