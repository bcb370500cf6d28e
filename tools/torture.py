"""Kill commands at random moments, start them again until they are through, and compare with an uninterrupted run.

    python tools/torture.py --kills 50 --seed 0 --command train

Every command runs on tiny data. It is killed with SIGKILL, at a moment drawn evenly from the duration of an
uninterrupted run, or before a file-system operation drawn evenly from all that such a run makes; some of the processes
are started anew, imports included, the others are forks of this one. After every kill all files under their final names
must be whole. The same command is then started again, killed again some times, and let through in the end: its folder
must be that of the uninterrupted run, bit for bit (wall-clock fields of metrics.jsonl apart), with nothing left over.

SIGTERM and SIGINT are sent at random moments too: the status must be 143 or 130, and the same command must go on to the
same end.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torture_life import Tally

_COMMANDS = ("train", "prepare", "sample", "search")


def _table(tallies: list[Tally]) -> str:
    """What was done and lost, a line for every case."""
    columns = ("kills", "moment", "operation", "anew", "signals", "compared", "lost", "seconds")
    rows: list[tuple[str, ...]] = [("case", *columns)]
    for each in tallies:
        numbers = (each.killed, *each.kills.values(), each.signals, each.ends, len(each.faults), round(each.seconds))
        rows.append((each.name, *map(str, numbers)))
    return "\n".join(" ".join(f"{cell:{18 if i == 0 else '>9'}}" for i, cell in enumerate(row)) for row in rows)


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, metavar="N", help="of every case (50)")
    parser.add_argument("--anew", type=int, default=3, metavar="N", help="of these in processes started anew (3)")
    parser.add_argument("--signals", type=int, default=6, metavar="N", help="SIGTERM and SIGINT in turn (6)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the random moments (0)")
    parser.add_argument("--command", action="append", choices=_COMMANDS, help="only this one; may be repeated")
    parser.add_argument("--case", action="append", metavar="NAME", help="only this case; may be repeated")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="work here, and leave the last files there")
    return parser.parse_args()


def main() -> int:
    """Torture what was asked for; 1 if anything was lost."""
    asked = _parsed()
    folder = asked.folder or Path(tempfile.mkdtemp(prefix="torture-"))
    root = (folder / "work").resolve()
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    os.environ |= {"OMP_NUM_THREADS": "1", "CASCADED_DIFFUSION_CACHE": str(root / "cache")}
    # Here and not above: the workers of cdm prepare import this file, and need not wait for torch.
    from torture_cases import cases, is_known, make_material
    from torture_life import Torturer
    from torture_process import warm_up

    warm_up()
    tallies = []
    try:
        make_material(root)
        for case in cases():
            if case.command not in (asked.command or _COMMANDS) or case.name not in (asked.case or [case.name]):
                continue
            if not is_known(case, root):
                sys.stdout.write(f"{case.name}: left out, cdm {case.command} has no {case.option}\n")
                continue
            torturer = Torturer(case, root, random.Random(f"{asked.seed}/{case.name}"))
            tallies.append(torturer.run(asked.kills, asked.anew, asked.signals))
            sys.stdout.write(f"{case.name}: {tallies[-1].killed} kills, {len(tallies[-1].faults)} faults\n")
            sys.stdout.flush()
    finally:
        if asked.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    sys.stdout.write(_table(tallies) + "\n")
    return 1 if any(each.faults for each in tallies) else 0


if __name__ == "__main__":
    # A shell that starts this in its background has it, and every process that it starts, ignore SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main())
