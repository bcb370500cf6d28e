"""What the page's buttons do, without the page: from what a browser sent to pictures, files and words."""

from __future__ import annotations

import secrets
import shutil
from collections import OrderedDict
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cascaded_diffusion.cascade.chain import Cascade
from cascaded_diffusion.errors import UserError, one_line
from cascaded_diffusion.ui import view
from cascaded_diffusion.ui.command import Origin, enlarge_command, link_query, read_link, sample_command
from cascaded_diffusion.ui.limits import PageLimits, StageLimits
from cascaded_diffusion.ui.outcome import Files, caption, sheet, write_files
from cascaded_diffusion.ui.settings import Settings, choices, read_class, read_s, read_settings, with_s
from cascaded_diffusion.ui.upload import read_upload
from cascaded_diffusion.ui.worker import Engine, Job, Run, Snapshot

__all__ = ["Frame", "Outcome", "Studio"]

_MOST_SESSIONS = 64


@dataclass(frozen=True)
class Outcome:
    """What a finished run gives to the page; each button fills what it has.

    Attributes:
        gallery: pairs of a PNG file and its class.
        files: to download.
        pair: two pictures to lay over each other.
        words: what they are.
        command: the command line that makes the same images.
        link: the page with these settings.
    """

    gallery: tuple[tuple[Path, str], ...] = ()
    files: Files | None = None
    pair: tuple[Image.Image, Image.Image] | None = None
    words: str = ""
    command: str = ""
    link: str = ""


@dataclass(frozen=True)
class Frame:
    """How the page looks at one moment of a run; ``None`` leaves a part as it is."""

    status: str
    panels: str | None = None
    outcome: Outcome | None = None
    ended: bool = False


@dataclass
class _Session:
    """One open page: its runs, whether it was told to stop, and where its files lie."""

    folder: Path
    runs: list[Run] = field(default_factory=list)
    stopped: bool = False


@dataclass(frozen=True)
class _Pass:
    """One run that a button needs: the job, the classes of its images, and a word on it for the status line."""

    job: Job
    labels: list[int]
    what: str = ""


class Studio:
    """A cascade behind a page.

    Attributes:
        engine: does the sampling, one run at a time.
        limits: what the page offers.
        origin: how the cascade was named.
        uploads: the folder that uploaded files are read from.
    """

    def __init__(self, cascade: Cascade, limits: PageLimits, origin: Origin, folder: Path) -> None:
        """``folder`` is the page's own; files of results and uploads lie in it, nothing else is read or written."""
        self.engine = Engine(cascade)
        self.limits, self.origin = limits, origin
        self.uploads = folder / "files"
        self._results = folder / "results"
        self._sessions: OrderedDict[str, _Session] = OrderedDict()
        self._default_steps = cascade.plan().steps()

    @property
    def channels(self) -> int:
        """Of the images: 1 grey, 3 colour."""
        return next(iter(self.engine.cascade.stages.values())).config.channels

    def session(self, key: str) -> _Session:
        """The session of that key; of too many the oldest one goes, and before it those that run nothing."""
        if key not in self._sessions:
            self._sessions[key] = _Session(self._results / secrets.token_hex(16))
            while len(self._sessions) > _MOST_SESSIONS:
                others = [other for other in self._sessions if other != key]
                self.leave(next((other for other in others if not self._sessions[other].runs), others[0]))
        self._sessions.move_to_end(key)
        return self._sessions[key]

    def begin(self, key: str) -> Frame:
        """A button was pressed: what is asked for may have to wait for others."""
        self.session(key).stopped = False
        return Frame(view.wait("waiting for its turn"))

    def stop(self, key: str) -> None:
        """Stop what runs for a session, and what waits to."""
        session = self.session(key)
        session.stopped = True
        for run in session.runs:
            run.stop()

    def leave(self, key: str) -> None:
        """A page was closed: nothing of it goes on or stays."""
        session = self._sessions.pop(key, None)
        if session is not None:
            for run in session.runs:
                run.stop()
            shutil.rmtree(session.folder, ignore_errors=True)

    def link(self, query: Any) -> tuple[Frame | None, list[Any] | None]:
        """The controls' values that the page's address asks for, or what is wrong with it."""
        try:
            return None, read_link(self.limits, query)
        except UserError as error:
            return _wrong(error), None

    def sample(self, key: str, values: Sequence[Any]) -> Iterator[Frame]:
        """Sample images."""
        try:
            settings = read_settings(self.limits, values)
            job = self._pass(settings)
            command = sample_command(self.origin, self.limits, settings)
        except UserError as error:
            yield _wrong(error)
            return
        with self._ending(key) as session:
            run = yield from self._watch(session, job)
            if run is None:
                return
            images = run.results[self.limits.stages[-1].name]
            files = write_files(session.folder / "sample", images, np.array(job.labels), self.limits.class_names)
            words = [caption(label, self.limits.class_names) for label in job.labels]
            gallery = tuple(zip(files.pngs, words, strict=True))
            link = link_query(self.limits, settings)
            outcome = Outcome(gallery=gallery, files=files, command=command, link=link)
            yield self._last(run, job, outcome)

    def compare(self, key: str, values: Sequence[Any], stage: Any, left: Any, right: Any) -> Iterator[Frame]:
        """Sample twice on the same noise, with two strengths of one stage."""
        try:
            settings = read_settings(self.limits, values)
            chosen = self._named(stage, self.limits.comparable)
            strengths = [read_s(chosen, value) for value in (left, right)]
            both = [with_s(settings, chosen.name, s) for s in strengths]
            jobs = [
                self._pass(one, f"{i} of 2, s={s:g}") for i, (one, s) in enumerate(zip(both, strengths, strict=True), 1)
            ]
            commands = "\n\n".join(sample_command(self.origin, self.limits, one) for one in both)
        except UserError as error:
            yield _wrong(error)
            return
        with self._ending(key) as session:
            runs: list[Run] = []
            for job in jobs:
                run = yield from self._watch(session, job)
                if run is None:
                    return
                runs.append(run)
            pictures = [sheet(run.results[self.limits.stages[-1].name]) for run in runs]
            seconds = sum(run.snapshot().seconds for run in runs)
            words = f"left: s={strengths[0]:g}, right: s={strengths[1]:g}; drag the line"
            outcome = Outcome(pair=(pictures[0], pictures[1]), words=words, command=commands)
            yield replace(self._last(runs[-1], jobs[-1], outcome), status=view.finished("both runs", seconds))

    def enlarge(self, key: str, values: Sequence[Any], sent: Any, start: Any, label: Any, s: Any) -> Iterator[Frame]:
        """Enlarge a person's own image with an SR stage and those after it."""
        try:
            settings = self._from_stage(read_settings(self.limits, values), start, s)
            first = self._named(start, self.limits.enlarging)
            assert first.low_resolution is not None  # of those that enlarge
            number = read_class(self.limits, label, first.name)
            upload = read_upload(sent, self.uploads, first.low_resolution, self.channels)
            job = self._enlarging(settings, first, number, upload.image)
            command = enlarge_command(
                self.origin, self.limits, settings, start=first.name, file=upload.file, label=number
            )
        except UserError as error:
            yield _wrong(error)
            return
        with self._ending(key) as session:
            run = yield from self._watch(session, job)
            if run is None:
                return
            images = run.results[self.limits.stages[-1].name]
            files = write_files(session.folder / "enlarge", images, np.array(job.labels), self.limits.class_names)
            pair = (sheet(upload.image).resize(sheet(images).size, Image.Resampling.NEAREST), sheet(images))
            words = "left: your image as the stage gets it, right: enlarged; drag the line"
            yield self._last(run, job, Outcome(files=files, pair=pair, words=words, command=command))

    def _pass(self, settings: Settings, what: str = "") -> _Pass:
        cascade = self.engine.cascade
        asked: dict[str, Any] = choices(self.limits, settings)
        plan = cascade.plan(**asked)
        self._check_steps(plan.steps())
        classes = list(settings.classes) or None
        labels = cascade.sample_labels(plan, num=settings.num, classes=classes)
        arguments = {**asked, "num": settings.num, "classes": classes, "seed": settings.seed, "batch_size": "auto"}
        return _Pass(Job(plan, settings.num, arguments), labels.tolist(), what)

    def _enlarging(self, settings: Settings, first: StageLimits, label: int | None, image: np.ndarray) -> _Pass:
        cascade = self.engine.cascade
        asked: dict[str, Any] = choices(self.limits, settings)
        plan = cascade.plan(**asked, start_stage=first.name)
        self._check_steps(plan.steps())
        classes = None if label is None else [label]
        labels = cascade.sample_labels(plan, classes=classes, low_res=image)
        arguments = {**asked, "classes": classes, "seed": settings.seed, "batch_size": "auto"}
        arguments |= {"low_res": image, "start_stage": first.name}
        return _Pass(Job(plan, 1, arguments), labels.tolist())

    def _from_stage(self, settings: Settings, start: Any, s: Any) -> Settings:
        """The settings of the stages from ``start`` on, which takes a finished image and so cannot be truncated."""
        first = self._named(start, self.limits.enlarging)
        kept = {stage.name: settings.stages[stage.name] for stage in self.limits.from_stage(first.name)}
        if first.s_max is not None:
            strength = read_s(first, s)
            mode = "nontruncated" if strength > 0 else "none"
            kept[first.name] = replace(kept[first.name], augmentation=mode, s=strength)
        return replace(settings, num=1, stages=kept)

    def _named(self, name: Any, stages: Sequence[StageLimits]) -> StageLimits:
        for stage in stages:
            if stage.name == name:
                return stage
        allowed = ", ".join(stage.name for stage in stages) or "none in this cascade"
        raise UserError(f"stage: {str(name)[:60]!r} is not allowed; choose {allowed}")

    def _check_steps(self, steps: dict[str, int]) -> None:
        for name, count in steps.items():
            most = max(self.limits.stage(name).most_steps, self._default_steps[name])
            if count > most:
                raise UserError(f"steps of {name}: {count} are too many for this page; allowed: at most {most}")

    @contextmanager
    def _ending(self, key: str) -> Iterator[_Session]:
        """The session of a run; whatever happens, nothing goes on after it."""
        session = self.session(key)
        try:
            yield session
        finally:
            for run in session.runs:
                run.stop()
            session.runs.clear()

    def _watch(self, session: _Session, work: _Pass) -> Generator[Frame, None, Run | None]:
        """Show a run until it ends.

        The run if it is done, which the caller shows; ``None`` if it was stopped or failed, and that is shown.
        """
        run = self.engine.start(work.job, stopped=session.stopped)
        session.runs.append(run)
        if session.stopped:  # in the meantime
            run.stop()
        try:
            for snapshot in run.watch():
                if snapshot.state == "done":
                    return run
                ended = snapshot.state in ("stopped", "failed")
                told = _failure(run) if snapshot.state == "failed" else view.status(snapshot, work.what)
                yield Frame(told, self._panels(snapshot, work), ended=ended)
        except UserError as error:
            yield _wrong(error)
        return None

    def _panels(self, snapshot: Snapshot, work: _Pass) -> str:
        return view.panels(snapshot, self.limits, work.labels)

    def _last(self, run: Run, work: _Pass, outcome: Outcome) -> Frame:
        snapshot = run.snapshot()
        return Frame(view.status(snapshot), self._panels(snapshot, work), outcome, ended=True)


def _wrong(error: UserError) -> Frame:
    return Frame(view.complaint(one_line(error)), ended=True)


def _failure(run: Run) -> str:
    words = " ".join(str(run.error).split()) or type(run.error).__name__
    return view.complaint(f"sampling failed: {words}")
