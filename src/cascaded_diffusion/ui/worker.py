"""Sampling in a thread of its own: what it has so far can be looked at, and it can be stopped between two steps."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from cascaded_diffusion.cascade.chain import Cascade
from cascaded_diffusion.cascade.walk import CascadeStep, Plan, first_batch_size
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.pixels import to_uint8

__all__ = ["Engine", "Job", "Run", "Snapshot", "StageProgress"]

_FRESH_S = 0.15
"""Pictures of the work are taken no more often than this."""
_LEAVE_S = 10.0

State = Literal["waiting", "running", "done", "stopped", "failed"]


@dataclass(frozen=True)
class Job:
    """What to sample: arguments of :meth:`Cascade.sample`, and how many images that makes."""

    plan: Plan
    count: int
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class StageProgress:
    """One stage at one moment.

    Attributes:
        name: the stage's.
        done: sampler steps it has made, over all batches.
        total: of so many.
        images: uint8 (N, R, R, C), its predictions of the finished images; black where it has none yet.
        seen: how many of the images it has begun.
        seconds: that it has run.
    """

    name: str
    done: int
    total: int
    images: np.ndarray | None
    seen: int
    seconds: float


@dataclass(frozen=True)
class Snapshot:
    """A run at one moment.

    Attributes:
        state: waiting for another run, running, or how it ended.
        stages: in order.
        running: the stage that runs, if one does.
        seconds: since it began.
        left: seconds that it still needs, as far as the speed of the stages to come is known.
        unmeasured: stages to come whose speed nobody knows yet.
    """

    state: State
    stages: tuple[StageProgress, ...]
    running: str | None
    seconds: float
    left: float
    unmeasured: tuple[str, ...]


class _StopError(Exception):
    """Somebody pressed Stop."""


@dataclass
class _StageWork:
    """What a run knows of a stage; ``price`` is what a step of it costs in network evaluations."""

    total: int
    price: float
    done: int = 0
    seconds: float = 0.0
    images: np.ndarray | None = None
    seen: int = 0


@dataclass
class Engine:
    """A cascade that does one run at a time, and remembers how fast its stages are.

    Attributes:
        cascade: the cascade.
        pace: stage name to seconds for one network evaluation of one image, of the latest run.
    """

    cascade: Cascade
    pace: dict[str, float] = field(default_factory=dict)
    busy: threading.Lock = field(default_factory=threading.Lock)
    _runs: set[Run] = field(default_factory=set)
    _closed: bool = False

    def start(self, job: Job, *, stopped: bool = False) -> Run:
        """Begin a run; it waits until the one before it has come to its end. One that is ``stopped`` makes no step."""
        run = Run(self, job)
        self._runs = {other for other in self._runs if other.is_alive()} | {run}
        if stopped or self._closed:
            run.stop()
        run.start()
        return run

    def close(self) -> None:
        """Stop every run, and wait for the step that one may be in."""
        self._closed = True
        for run in self._runs:
            run.stop()
        for run in self._runs:
            run.join(_LEAVE_S)


class Run(threading.Thread):
    """One run of :meth:`Cascade.sample`.

    Attributes:
        results: stage name to images, once it is done.
        error: what went wrong, if it failed.
    """

    def __init__(self, engine: Engine, job: Job) -> None:
        super().__init__(name="cdm-ui-sampling", daemon=True)
        self.results: dict[str, np.ndarray] = {}
        self.error: Exception | None = None
        self._engine, self._job = engine, job
        self._halt = threading.Event()
        self._news = threading.Condition()
        self._state: State = "waiting"
        steps, passes = job.plan.steps(), job.plan.passes()
        self._batch = min(job.count, first_batch_size("auto"))
        batches = -(-job.count // self._batch)  # more if memory runs out
        self._work = {
            stage.name: _StageWork(
                total=steps[stage.name] * batches,
                price=passes[stage.name] / max(steps[stage.name], 1),
            )
            for stage in job.plan.stages
        }
        self._running: str | None = None
        self._began = self._ended = self._stepped = 0.0
        self._pictured = -np.inf

    def stop(self) -> None:
        """End the run after the step that it is in."""
        self._halt.set()

    def run(self) -> None:
        """Sample; see :class:`Engine`."""
        with self._engine.busy:
            self._began = self._stepped = time.monotonic()
            self._tell("running")
            self._finish()

    def _finish(self) -> None:
        state: State = "failed"
        try:
            if self._halt.is_set():
                raise _StopError
            results = self._engine.cascade.sample(**self._job.arguments, return_stages=True, callback=self._watch)
            assert isinstance(results, dict)
            self.results = results
            state = "done"
        except _StopError:
            state = "stopped"
        except Exception as error:  # noqa: BLE001 - of a thread; whoever watches tells it
            self.error = error
        finally:
            self._ended = time.monotonic()
            self._tell(state)

    def _tell(self, state: State) -> None:
        with self._news:
            self._state = state
            self._news.notify_all()

    def _watch(self, step: CascadeStep) -> None:
        """Called by the sampler after every step."""
        now = time.monotonic()
        end = step.step.index in (0, step.step.total - 1)
        with self._news:
            work = self._work[step.stage]
            work.done += 1
            work.seconds += now - self._stepped
            if step.step.index > 0:  # the first step also pays for what the stage prepares
                pace = (now - self._stepped) / (work.price * len(step.samples))
                self._engine.pace[step.stage] = 0.7 * self._engine.pace.get(step.stage, pace) + 0.3 * pace
            self._running, self._stepped = step.stage, now
            if end or now - self._pictured > _FRESH_S:
                self._pictured = now
                self._picture(work, step)
            self._news.notify_all()
        if self._halt.is_set():
            raise _StopError

    def _picture(self, work: _StageWork, step: CascadeStep) -> None:
        new = to_uint8(step.step.x0)
        images = np.zeros((self._job.count, *new.shape[1:]), np.uint8) if work.images is None else work.images.copy()
        places = step.samples.cpu().numpy()
        images[places] = new
        work.images, work.seen = images, int(places[-1]) + 1

    def snapshot(self) -> Snapshot:
        """The run as it stands."""
        with self._news:
            now = self._ended if self._state in ("done", "stopped", "failed") else time.monotonic()
            stages = tuple(
                StageProgress(
                    name=name,
                    done=min(work.done, work.total),
                    total=work.total,
                    images=self.results.get(name, work.images),
                    seen=work.seen,
                    seconds=work.seconds,
                )
                for name, work in self._work.items()
            )
            left, unmeasured = self._forecast()
            elapsed = 0.0 if self._state == "waiting" else now - self._began
            return Snapshot(self._state, stages, self._running, elapsed, left, unmeasured)

    def _forecast(self) -> tuple[float, tuple[str, ...]]:
        left, unmeasured = 0.0, []
        for name, work in self._work.items():
            pace = self._engine.pace.get(name)
            if pace is not None:
                left += max(work.total - work.done, 0) * work.price * self._batch * pace
            elif work.done < work.total:
                unmeasured.append(name)
        return left, tuple(unmeasured)

    def watch(self, every: float = 0.25) -> Iterator[Snapshot]:
        """Snapshots, a new one no more often than ``every`` seconds, the last of them of the run's end.

        Whoever stops asking for them stops the run.
        """
        try:
            while self.is_alive():
                yield self.snapshot()
                self.join(every)
        finally:
            self.stop()
        if isinstance(self.error, UserError):
            raise self.error
        yield self.snapshot()
