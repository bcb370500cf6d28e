"""Trying a reader: each input in a process of limited memory and time, which is replaced when an input kills it."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import selectors
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import FrameType
from typing import IO, Any

from fuzz.targets import TARGETS, Target
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from cascaded_diffusion.errors import UserError

__all__ = ["Findings", "explore", "try_once"]


@dataclass
class Findings:
    """What came of a reader's inputs.

    Attributes:
        name: the reader.
        tried, taken, refused: inputs, those that were read, those that were refused in one line.
        wrong: (what happened, the input) of all others.
        seconds: of the trying alone.
    """

    name: str
    tried: int = 0
    taken: int = 0
    refused: int = 0
    wrong: list[tuple[str, bytes]] = field(default_factory=list)
    seconds: float = 0.0


class _TooSlow(BaseException):
    """Raised by the clock."""


def _late(number: int, frame: FrameType | None) -> None:
    raise _TooSlow


def try_once(target: Target, content: bytes, seconds: float) -> str | None:
    """``taken``, ``refused``, or what went wrong."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        target.read(content)
    except UserError as error:
        line = str(error)
        return "refused" if line and line.isprintable() else f"not one printable line: {line!r}"
    except _TooSlow:
        return f"took longer than {seconds:g} s"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"[:500]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return "taken"


def _inputs(target: Target, count: int, number: int) -> Iterator[bytes]:
    """``count`` inputs whose every choice is hypothesis's, with a seed of their own."""
    made: list[bytes] = []

    @seed(number)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.randoms(use_true_random=False))
    def draw(rng: Random) -> None:
        made.append(target.make(rng))

    draw()
    yield from made


def _child(name: str, count: int, number: int, limits: tuple[int, float], out: int) -> None:
    """Try inputs and tell each outcome; the input at hand lies in a file, in case it is the last."""
    memory, seconds = limits
    warnings.simplefilter("ignore")  # Pillow's and torch's about damaged files; commands do not fail over them
    signal.signal(signal.SIGALRM, _late)
    with os.fdopen(out, "w", buffering=1) as tell, tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        folder = Path(place).resolve()
        target = TARGETS[name](folder)
        for content in target.valid:
            outcome = try_once(target, content, 60)
            if outcome != "taken" and name != "class-names":
                tell.write(json.dumps(["wrong", f"a valid input: {outcome}", content.hex()]) + "\n")
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
        rest, round_ = count, 0
        while rest > 0:
            for content in _inputs(target, min(rest, 500), number * 1000 + round_):
                tell.write(json.dumps(["at", "", content.hex()]) + "\n")
                outcome = try_once(target, content, seconds)
                kind = outcome if outcome in ("taken", "refused") else "wrong"
                tell.write(json.dumps([kind, outcome, content.hex() if kind == "wrong" else ""]) + "\n")
                rest -= 1
            round_ += 1
        tell.write(json.dumps(["end", "", ""]) + "\n")


@contextlib.contextmanager
def _forked(*arguments: Any) -> Iterator[tuple[int, IO[str]]]:
    """A child process and what it tells; it is gone at the end."""
    read, write = os.pipe()
    sys.stdout.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from Python 3.12 on, about threads; none runs here
        child = os.fork()
    if child == 0:
        try:
            os.close(read)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders complain there
            _child(*arguments, write)
        finally:
            os._exit(0)
    os.close(write)
    try:
        with os.fdopen(read) as told:
            yield child, told
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def explore(name: str, inputs: int, number: int = 0, *, memory: int = 2**30, seconds: float = 5.0) -> Findings:
    """Try a reader.

    Args:
        name: of :data:`TARGETS`.
        inputs: how many.
        number: the seed; the same one tries the same inputs.
        memory: bytes that the reader may take beyond what its process has when it starts.
        seconds: that one input may take; a process that does not come back from one is killed after thrice that.
    """
    found = Findings(name)
    while found.tried < inputs and len(found.wrong) < 50:
        with _forked(name, inputs - found.tried, number + 7919 * len(found.wrong), (memory, seconds)) as (_, told):
            if _follow(found, told, 3 * seconds):
                break
    return found


def _follow(found: Findings, told: IO[str], patience: float) -> bool:
    """Take down what a child tells; whether it came to its end."""
    ready = selectors.DefaultSelector()
    ready.register(told, selectors.EVENT_READ)
    last, started, begun = b"", None, False
    pending = ""
    descriptor = told.fileno()
    while True:
        # Making the valid files and drawing inputs takes its time too; only a reader is under the clock.
        if not ready.select(patience if begun else 120):
            found.wrong.append((f"did not come back within {patience:g} s", last))
            found.tried += 1
            return False
        block = os.read(descriptor, 2**16).decode()
        if not block:
            found.wrong.append(("killed its process", last))
            found.tried += 1
            return False
        pending += block
        *lines, pending = pending.split("\n")
        for line in lines:
            kind, outcome, content = json.loads(line)
            if kind == "end":
                return True
            if kind == "at":
                last, begun, started = bytes.fromhex(content), True, time.perf_counter()
                continue
            begun = False
            found.seconds += time.perf_counter() - started if started is not None else 0
            if kind == "wrong":
                found.wrong.append((outcome, bytes.fromhex(content)))
            found.tried += 1
            found.taken += kind == "taken"
            found.refused += kind == "refused"
