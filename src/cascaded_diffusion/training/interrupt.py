"""Signals that end a run early: remembered until the step is over, so that the run saves and leaves."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

__all__ = ["Interrupt"]

_ALWAYS = (signal.SIGTERM, signal.SIGINT)
# Slurm's warning before it takes the machine away, and a terminal that closes; who has them ignored (nohup) means it.
_UNLESS_IGNORED = (signal.SIGUSR1, signal.SIGHUP)


class Interrupt:
    """Remembers SIGTERM, SIGINT, SIGUSR1 and SIGHUP until the step is over.

    Attributes:
        received: the number of the newest one, or ``None``.
    """

    def __init__(self) -> None:
        self.received: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.received = number

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Take the signals for the length of the block."""
        numbers = (*_ALWAYS, *(number for number in _UNLESS_IGNORED if signal.getsignal(number) is not signal.SIG_IGN))
        try:
            previous = {number: signal.signal(number, self) for number in numbers}
        except ValueError:  # not in the main thread: the caller handles signals
            previous = {}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
