"""Signals that end a run early: remembered until the step is over, so that the run saves and leaves."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

__all__ = ["Interrupt"]


class Interrupt:
    """Remembers SIGTERM or SIGINT until the step is over."""

    def __init__(self) -> None:
        self.received: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.received = number

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        try:
            previous = {number: signal.signal(number, self) for number in (signal.SIGTERM, signal.SIGINT)}
        except ValueError:  # not in the main thread: the caller handles signals
            previous = {}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
