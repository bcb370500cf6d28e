"""``python -m fuzz``: try every reader, print what came of it, and keep the inputs that went wrong."""

from __future__ import annotations

import argparse
import hashlib
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch

from fuzz import seeds
from fuzz.explore import Findings, _late, explore, try_once
from fuzz.targets import TARGETS


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=10_000, metavar="N", help="inputs for each reader (10000)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="the same seed tries the same inputs (0)")
    parser.add_argument("--reader", action="append", choices=sorted(TARGETS), metavar="NAME", help="only this one")
    parser.add_argument("--memory", type=int, default=1024, metavar="MIB", help="memory that a reader may take (1024)")
    parser.add_argument("--seconds", type=float, default=5.0, help="time that one input may take (5)")
    parser.add_argument("--out", type=Path, default=Path("out/fuzz"), metavar="DIR", help="where inputs are kept")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="try one kept input of the one --reader again")
    parser.add_argument("--list", action="store_true", help="name the readers")
    return parser.parse_args()


def _keep(found: Findings, seed: int, out: Path) -> None:
    for what, content in found.wrong:
        out.mkdir(parents=True, exist_ok=True)
        path = out / f"{found.name}-{hashlib.sha256(content).hexdigest()[:12]}.bin"
        path.write_bytes(content)
        path.with_suffix(".txt").write_text(
            f"{what}\npython -m fuzz --reader {found.name} --replay {path}\nseed {seed}\n"
        )
        print(f"  {what.splitlines()[0][:160]}\n    {path}", flush=True)


def _replay(name: str, path: Path) -> int:
    signal.signal(signal.SIGVTALRM, _late)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        target = TARGETS[name](Path(folder).resolve())
        outcome = try_once(target, path.read_bytes(), 60)
        print(outcome)
        if outcome not in ("taken", "refused"):
            target.read(path.read_bytes())  # once more, for where it came from
    return 0


def main() -> int:
    """0 if every input was read or refused in one line, else 1."""
    asked = _arguments()
    torch.set_num_threads(1)
    seeds.trained()
    names = asked.reader or list(TARGETS)
    if asked.list:
        print("\n".join(TARGETS))
        return 0
    if asked.replay is not None:
        return _replay(names[0], asked.replay)
    print(f"{'reader':<20} {'inputs':>7} {'taken':>7} {'refused':>7} {'wrong':>5} {'seconds':>7}", flush=True)
    wrong = 0
    for name in names:
        started = time.perf_counter()
        found = explore(name, asked.inputs, asked.seed, memory=asked.memory * 2**20, seconds=asked.seconds)
        seconds = time.perf_counter() - started
        row = f"{name:<20} {found.tried:>7} {found.taken:>7} {found.refused:>7} {len(found.wrong):>5} {seconds:>7.0f}"
        print(row, flush=True)
        _keep(found, asked.seed, asked.out)
        wrong += len(found.wrong)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
