"""Progress of long work: a bar on a terminal, plain lines elsewhere; always on stderr."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cascaded_diffusion.telling import tell

if TYPE_CHECKING:
    from rich.progress import TaskID

__all__ = ["ProgressDisplay"]

PLAIN_INTERVAL_S = 10.0


class ProgressDisplay:
    """A bar with images/s and time left on a terminal, a plain line every ten seconds elsewhere."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._console = Console(stderr=True, highlight=False)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._works: dict[str, _Work] = {}

    def __enter__(self) -> ProgressDisplay:
        self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()

    def note(self, line: str) -> None:
        """Show one line, above the bar if there is one."""
        if self._console.is_terminal:
            self._console.print(line, markup=False, soft_wrap=True)
        else:
            tell(line)

    def begin(self, what: str, done: int = 0) -> None:
        """Start the clock of a piece of work of which ``done`` images were done before."""
        now = time.monotonic()
        self._works[what] = _Work(first=done, started=now, told=now)

    def advance(self, what: str, done: int, total: int | None, note: str = "") -> None:
        """Show that ``done`` of ``total`` images are through the work called ``what``; several may go on together.

        ``total`` is None where nobody knows it.
        """
        now = time.monotonic()
        if what not in self._works:
            self.begin(what)
        work = self._works[what]
        if work.task is None:
            work.task = self._bar.add_task(what, total=total, rate="")
        work.note = note or work.note
        seconds = max(now - work.started, 1e-9)
        speed = (done - work.first) / seconds
        pace = "" if seconds <= 0.1 else f"{speed:,.0f} images/s" if speed >= 10 else f"{speed:.2g} images/s"
        pace = ", ".join(part for part in (pace, work.note) if part)
        if self._console.is_terminal:
            self._bar.update(work.task, completed=done, total=total, rate=pace)
        elif (total is not None and done >= total) or now - work.told >= PLAIN_INTERVAL_S:
            work.told = now
            left = "" if total is None or done >= total or speed <= 0 else f"{(total - done) / speed:,.0f} s left"
            counted = f"{what}: {done:,}" if total is None else f"{what}: {done:,} of {total:,}"
            self.note(", ".join(part for part in (counted, pace, left) if part))


@dataclass
class _Work:
    """One bar: where it began, when a plain line was last written, and what else is known of it."""

    first: int
    started: float
    told: float
    task: TaskID | None = None
    note: str = ""
