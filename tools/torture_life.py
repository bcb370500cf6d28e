"""One case of tools/torture.py: lives of a command that end in a comparison, with deaths on the way."""

from __future__ import annotations

import random
import shutil
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from torture_cases import Case, differences, newest_checkpoint, violations
from torture_process import Order, Running, start

__all__ = ["Tally", "Torturer"]

_MOST_KILLS_IN_A_ROW = 5
_SLACK_S = 60.0
_MOST_LINES = 5


@dataclass
class Tally:
    """What was done to one case, and what went wrong."""

    name: str
    kills: dict[str, int] = field(default_factory=lambda: {"moment": 0, "operation": 0, "anew": 0})
    signals: int = 0
    ends: int = 0
    """Times that the command got to its end and was compared."""
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def killed(self) -> int:
        """All kills that hit."""
        return sum(self.kills.values())


class Torturer:
    """Does one case."""

    def __init__(self, case: Case, root: Path, generator: random.Random) -> None:
        self.case, self.random = case, generator
        self.shared, self.root = root / "shared", root / case.name
        self.life, self.reference = self.root / "life", self.root / "reference"
        self.log = self.root / "log.txt"
        self.tally = Tally(case.name)
        self.duration: dict[bool, float] = {}
        self.operations = 0
        self.newest = -1

    # -- one attempt

    def attempt(self, folder: Path, *, anew: bool = False, die_at: int | None = None) -> Running:
        """Start the command in ``folder``."""
        order = Order(self.case.arguments, folder, self.log, self.case.ranks, anew, die_at)
        return start(order)

    def finish(self, running: Running) -> None:
        """Wait for the end of a command that nobody harms."""
        if not running.wait(20 * max(self.duration.values(), default=0) + 2 * _SLACK_S):
            running.kill()
            self.fault("hangs")
        elif not self._is_through(running):
            self.fault(f"exit status {running.status}: {self._last_words()}")

    def _is_through(self, running: Running) -> bool:
        """Whether the command got to its end, now or right before it was killed.

        One whose last file was in its place when it was killed says the next time that there is nothing to do over.
        """
        at_place = running.status == 2 and "already there" in self._last_words()
        return running.status == 0 or (at_place and not differences(self.life, self.reference))

    def fault(self, what: str) -> None:
        """Note that something went wrong."""
        self.tally.faults.append(what)
        sys.stdout.write(f"  {self.case.name}, after {self.tally.killed} kills: {what}\n")

    def _last_words(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return lines[-1] if lines else "it said nothing"

    def begin(self, folder: Path) -> None:
        """An empty folder with what the command may change."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in self.case.copied:
            shutil.copytree(self.shared / name, folder / name)
        self.newest = -1

    # -- the uninterrupted run

    def measure(self, *, anew: bool) -> None:
        """The result to compare with, how long it takes and how many file-system operations."""
        self.begin(self.reference)
        running = self.attempt(self.reference)
        self.finish(running)
        self.duration[False] = time.monotonic() - running.started
        self.operations = int(running.order.count_file.read_text())
        if anew:
            self.begin(self.life)
            running = self.attempt(self.life, anew=True)
            self.finish(running)
            self.duration[True] = time.monotonic() - running.started
            self.compare()

    def compare(self, *, signalled: bool = False) -> None:
        """The end of the command against the uninterrupted one's.

        A signal has the state saved where it comes, and that checkpoint is one of those that are kept: then the last
        one alone is the same.
        """
        self.tally.ends += 1
        found = differences(self.life, self.reference)
        if signalled:
            last = f"{newest_checkpoint(self.reference):012d}"
            found = [line for line in found if "/checkpoints/" not in line or f"/checkpoints/{last}" in line]
        for line in found[:_MOST_LINES]:
            self.fault(line)
        if len(found) > _MOST_LINES:
            self.fault(f"and {len(found) - _MOST_LINES} more")

    def inspect(self) -> None:
        """The folder of a command that has just died."""
        for line in violations(self.life, self.reference):
            self.fault(line)
        newest = newest_checkpoint(self.life)
        if newest < self.newest:
            self.fault(f"the checkpoint at {self.newest} images is gone, the newest is {newest}")
        self.newest = newest

    # -- harm

    def kill(self, kind: str) -> bool:
        """Start the command and kill it; False if it was through before that."""
        if kind == "operation":
            running = self.attempt(self.life, die_at=self.random.randint(1, self.operations))
            running.wait(20 * self.duration[False] + _SLACK_S)
        else:
            anew = kind == "anew"
            running = self.attempt(self.life, anew=anew)
            running.wait(self.random.uniform(0, self.duration[anew]))
        if not running.ended():
            one = self.case.ranks > 1 and kind == "moment" and self.random.random() < 0.5
            running.kill(self.random.randrange(self.case.ranks) if one else None)
        status = running.status
        if self._is_through(running):
            return False
        if signal.SIGKILL not in [-each for each in running.statuses.values()] and kind != "anew":
            self.fault(f"exit status {status} before the kill: {self._last_words()}")
        self.tally.kills[kind] += 1
        return True

    def killed_life(self, kinds: list[str]) -> None:
        """From an empty folder to the end, with a kill of each kind on the way."""
        self.begin(self.life)
        for kind in kinds:
            killed = self.kill(kind)
            self.inspect()
            if not killed:
                break
        else:
            self.finish(self.attempt(self.life))
        self.compare()

    def signalled_life(self, number: int) -> None:
        """From an empty folder to the end, with a SIGTERM or SIGINT on the way."""
        self.begin(self.life)
        running = self.attempt(self.life)
        running.wait(self.random.uniform(0, self.duration[False]))
        if not running.ended():
            running.send(number)
            if not running.wait(20 * self.duration[False] + _SLACK_S):
                running.kill()
                self.fault(f"does not end after signal {number}")
        allowed = {0, -number, 128 + number}
        if running.told_to_end:  # a launcher's SIGTERM may come first where another rank is through with saving
            allowed.add(128 + signal.SIGTERM)
        if running.status not in allowed:
            self.fault(f"exit status {running.status} after signal {number}: {self._last_words()}")
        self.tally.signals += running.status != 0
        self.inspect()
        self.finish(self.attempt(self.life))
        self.compare(signalled=True)

    def run(self, kills: int, anew: int, signals: int) -> Tally:
        """Everything that was asked for."""
        started = time.monotonic()
        self.root.mkdir(parents=True)
        self.measure(anew=anew > 0)
        while self.tally.killed < kills and len(self.tally.faults) < 20:
            kinds = self.random.choices(["moment", "operation"], k=self.random.randint(1, _MOST_KILLS_IN_A_ROW))
            if self.tally.kills["anew"] < anew:
                kinds.insert(0, "anew")
            self.killed_life(kinds[: kills - self.tally.killed])
        for i in range(signals):
            self.signalled_life((signal.SIGTERM, signal.SIGINT)[i % 2])
        self.tally.seconds = time.monotonic() - started
        return self.tally
