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
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from types import FrameType
from typing import IO

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from cascaded_diffusion.errors import UserError
from fuzz.targets import TARGETS, Target

__all__ = ["Findings", "explore", "try_once"]


@dataclass
class Findings:
    """What came of a reader's inputs.

    Attributes:
        name: the reader.
        tried, taken, refused: inputs, those that were read, those that were refused in one line.
        wrong: (what happened, the input) of all others.
    """

    name: str
    tried: int = 0
    taken: int = 0
    refused: int = 0
    wrong: list[tuple[str, bytes]] = field(default_factory=list)


LAST = "at-hand.bin"
_ROUND = 500  # hypothesis remembers every choice of a round
_ENOUGH = 50
_PATIENCE = 60.0


class _TooSlow(BaseException):
    """Raised by the clock."""


def _late(number: int, frame: FrameType | None) -> None:
    raise _TooSlow


def try_once(target: Target, content: bytes, seconds: float) -> str | None:
    """``taken``, ``refused``, or what went wrong."""
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)  # of work: another process may have the processor
    try:
        target.read(content)
    except UserError as error:
        line = str(error)
        return "refused" if line and line.isprintable() else f"not one printable line: {line!r}"
    except _TooSlow:
        return f"took longer than {seconds:g} s"
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever it is, it is a finding
        return f"{type(error).__name__}: {error}"[:500]
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    return "taken"


def _draw(target: Target, count: int, number: int, use: Callable[[bytes], None]) -> None:
    """Hand ``count`` inputs to ``use``; every choice in them is hypothesis's."""

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
        use(target.make(rng))

    draw()


def _child(name: str, count: int, number: int, limits: tuple[int, float], folder: Path, out: int) -> None:
    """Try inputs and tell each outcome; the input at hand lies in a file, in case it is the last."""
    memory, seconds = limits
    warnings.simplefilter("ignore")  # Pillow's and torch's about damaged files; commands do not fail over them
    signal.signal(signal.SIGVTALRM, _late)
    with os.fdopen(out, "w", buffering=1) as pipe:

        def tell(*words: str) -> None:
            pipe.write(json.dumps(words) + "\n")

        target = TARGETS[name](folder)
        for content in target.valid:
            outcome = try_once(target, content, 60)
            if outcome != "taken":
                tell("wrong", f"a valid input: {outcome}", content.hex())
        rest = count

        def use(content: bytes) -> None:
            nonlocal rest
            rest -= 1
            (folder / LAST).write_bytes(content)
            tell("at")
            with _frugal(max(memory, target.memory)):
                outcome = try_once(target, content, max(seconds, target.seconds))
            kind = outcome if outcome in ("taken", "refused") else "wrong"
            tell(kind, str(outcome), content.hex() if kind == "wrong" else "")

        round_ = 0
        while rest > 0:
            _draw(target, min(rest, _ROUND), number * 1000 + round_, use)
            round_ += 1
        tell("end")


@contextlib.contextmanager
def _frugal(memory: int) -> Iterator[None]:
    """No more than so many bytes beyond what the process has now; what draws inputs is not meant."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + memory, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@contextlib.contextmanager
def _forked(child_of: Callable[[int], None]) -> Iterator[IO[str]]:
    """What a child process tells; it is gone at the end."""
    read, write = os.pipe()
    sys.stdout.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from Python 3.12 on, about threads; none runs here
        child = os.fork()
    if child == 0:
        try:
            os.close(read)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders complain there
            child_of(write)
        finally:
            os._exit(0)
    os.close(write)
    try:
        with os.fdopen(read) as told:
            yield told
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
        seconds: of work that one input may take; a process that does not come back from one is killed after a minute.
    """
    found = Findings(name)
    while found.tried < inputs and len(found.wrong) < _ENOUGH:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
            folder = Path(place).resolve()
            rest, at = inputs - found.tried, number + 7919 * len(found.wrong)
            child = partial(_child, name, rest, at, (memory, seconds), folder)
            with _forked(child) as told:
                outcome = _follow(found, told, _PATIENCE)
            if outcome is None:
                break
            last = folder / LAST
            found.wrong.append((outcome, last.read_bytes() if last.exists() else b""))
            found.tried += 1
    return found


def _follow(found: Findings, told: IO[str], patience: float) -> str | None:
    """Take down what a child tells; why it did not come to its end, or ``None`` if it did."""
    ready = selectors.DefaultSelector()
    ready.register(told, selectors.EVENT_READ)
    begun, pending = False, ""
    # Making the valid files and drawing inputs takes its time too; only a reader is under the clock.
    while ready.select(patience if begun else 300):
        block = os.read(told.fileno(), 2**16).decode()
        if not block:
            return "killed its process"
        *lines, pending = (pending + block).split("\n")
        for kind, *more in map(json.loads, lines):
            if kind == "end":
                return None
            begun = kind == "at"
            if kind == "wrong":
                found.wrong.append((more[0], bytes.fromhex(more[1])))
            if not begun:
                found.tried += not more[0].startswith("a valid input")
                found.taken += kind == "taken"
                found.refused += kind == "refused"
    return f"did not come back within {patience:g} s"
