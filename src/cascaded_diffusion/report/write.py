"""From a run, a cascade or a folder of them to one self-contained page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from cascaded_diffusion.cascade.chain import CascadeStep
from cascaded_diffusion.cascade.stage import StageConfig
from cascaded_diffusion.data.prepared import PreparedData
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.files import atomic_write
from cascaded_diffusion.report.cascades import (
    CascadeRecord,
    Samples,
    cascade_part,
    draw_samples,
    read_cascade,
    sampled_classes,
)
from cascaded_diffusion.report.collect import Subjects, find_subjects
from cascaded_diffusion.report.markup import Html, joined, paragraph, tag
from cascaded_diffusion.report.neighbours import Neighbours, find_neighbours, why_unfit
from cascaded_diffusion.report.page import Part, render
from cascaded_diffusion.report.runs import RunRecord, compare_runs, read_run, run_part
from cascaded_diffusion.report.scores import ScoresRecord, read_scores_record, scores_part
from cascaded_diffusion.report.searches import SearchSubject, read_search, search_part
from cascaded_diffusion.version import VERSION

if TYPE_CHECKING:
    from cascaded_diffusion.evaluation.features import Extractor

__all__ = ["ReportRequest", "write_report"]

Watch = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and the total."""


@dataclass(frozen=True)
class ReportRequest:
    """What a page is about, and what is made for it.

    Attributes:
        target: a packaged cascade's name, a cascade, a run, a search folder, or a folder of them.
        data: prepared training data, for the samples' nearest training images.
        scores: further scores files.
        search: a further search folder.
        features: where distances between images come from; ``None`` for the default that fits the data.
        per_class: samples of each class and cascade; 0 for none.
        seed: of the samples.
        device: to sample on.
    """

    target: str
    data: Path | None = None
    scores: tuple[Path, ...] = ()
    search: Path | None = None
    features: str | None = None
    per_class: int = 4
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


@dataclass(frozen=True)
class _Records:
    """Everything that a page is made of, read and checked."""

    runs: list[RunRecord]
    cascades: list[CascadeRecord]
    searches: list[SearchSubject]
    scores: list[ScoresRecord]


def write_report(request: ReportRequest, out: Path, *, watch: Watch | None = None) -> Path:
    """Write the page: one HTML file that holds its pictures and fetches nothing.

    Everything is read and checked before anything is sampled.

    Args:
        request: what the page is about.
        out: the file; an existing one is replaced when the new one is complete.
        watch: shows progress.

    Returns:
        ``out``.

    Raises:
        UserError: nothing to report on, data that fit none of the cascades, or a damaged file, which it names.
    """
    subjects = find_subjects(request.target, scores=request.scores, search=request.search)
    records = _read(subjects)
    data = None if request.data is None else PreparedData.open(request.data)
    if data is not None:
        _check_data(records.cascades, data, request)
    extractor = None if data is None else _extractor(data, request)
    maker = _Maker(request, data, extractor, watch or _silent)
    parts = [maker.part(record) for record in records.cascades]
    parts += [scores_part(record) for record in records.scores]
    parts += [search_part(record) for record in records.searches]
    if sum(bool(run.metrics) for run in records.runs) > 1:
        parts.append(compare_runs(records.runs))
    parts += [run_part(run) for run in records.runs]
    page = render(f"Report: {_title(request.target)}", _lead(records), parts)
    with atomic_write(out) as file:
        file.write(page.encode())
    return out


def _silent(what: str, done: int, total: int) -> None:
    """Shows nothing."""


def _read(subjects: Subjects) -> _Records:
    return _Records(
        runs=[read_run(name, path) for name, path in subjects.runs],
        cascades=[read_cascade(name, path) for name, path in subjects.cascades],
        searches=[read_search(name, path) for name, path in subjects.searches],
        scores=[read_scores_record(name, path) for name, path in subjects.scores],
    )


def _check_data(cascades: Sequence[CascadeRecord], data: PreparedData, request: ReportRequest) -> None:
    """``UserError`` if the data can serve none of the cascades: then they are not what was meant."""
    reasons = [why_unfit(_last(record), data) for record in cascades]
    if not reasons:
        raise UserError(f"--data: {data.folder} serves to compare a cascade's samples, and {request.target} has none")
    if all(reasons):
        raise UserError(f"--data: {'; '.join(dict.fromkeys(filter(None, reasons)))}")
    if request.per_class == 0:
        raise UserError("--data: serves to compare samples, and --per-class 0 draws none")


def _extractor(data: PreparedData, request: ReportRequest) -> Extractor | str:
    """Where distances come from, or why there are none; only one asked for by name must be there."""
    from cascaded_diffusion.evaluation.features import default_extractor, load_extractor

    if request.features is not None:
        return load_extractor(request.features, device=request.device)
    try:
        name = default_extractor(data.channels, data.class_names, data.resolutions[-1])
        return load_extractor(name, device=request.device)
    except UserError as error:
        return str(error)


def _last(record: CascadeRecord) -> StageConfig:
    """Configuration of the stage whose images the cascade makes."""
    return list(record.cascade.stages.values())[-1].config


@dataclass(frozen=True)
class _Maker:
    """Makes what is not on disk: samples of a cascade, and their nearest training images."""

    request: ReportRequest
    data: PreparedData | None
    extractor: Extractor | str | None
    watch: Watch

    def part(self, record: CascadeRecord) -> Part:
        if self.request.per_class == 0:
            return cascade_part(record, None, None)
        record.cascade.to(self.request.device)
        samples = self.samples(record)
        record.cascade.to("cpu")  # makes room for the next one
        return cascade_part(record, samples, self.neighbours(record, samples))

    def samples(self, record: CascadeRecord) -> Samples:
        count = self.request.per_class * len(sampled_classes(record.cascade) or [0])
        cost = max(sum(record.cascade.plan().steps().values()), 1)
        steps = 0

        def follow(event: CascadeStep) -> None:
            nonlocal steps
            steps += len(event.samples)
            self.watch(f"samples of {record.name}", min(steps // cost, count), count)

        return draw_samples(record.cascade, per_class=self.request.per_class, seed=self.request.seed, watch=follow)

    def neighbours(self, record: CascadeRecord, samples: Samples) -> Neighbours | str | None:
        if self.data is None or self.extractor is None:
            return None
        last = _last(record)
        reason = why_unfit(last, self.data)
        if reason is not None:
            return reason
        if isinstance(self.extractor, str):
            return self.extractor
        return find_neighbours(samples.stages[last.name], samples.labels, self.data, self.extractor, watch=self.watch)


def _title(target: str) -> str:
    return Path(target).resolve().name or target


def _lead(records: _Records) -> Html:
    """What the page covers, and what made it."""
    counts = (
        (len(records.cascades), "cascade"),
        (len(records.scores), "scores file"),
        (len(records.searches), "search"),
        (len(records.runs), "training run"),
    )
    endings = {"search": "searches"}
    said = [f"{count} {what if count == 1 else endings.get(what, what + 's')}" for count, what in counts if count]
    lines = [
        paragraph(f"{', '.join(said)}. Made by cascaded-diffusion {VERSION}, torch {torch.__version__}.", class_="soft")
    ]
    if not records.scores:
        lines.append(_hint("No scores: ", "cdm evaluate … --data DIR --json FILE.json", " makes a file of them."))
    if records.cascades and not records.searches:
        lines.append(
            _hint("No search for the best s: ", "cdm search … --data DIR --stage STAGE --out DIR", " makes one.")
        )
    return joined(lines)


def _hint(before: str, command: str, after: str) -> Html:
    return paragraph(before, tag("code", command), after, class_="missing")
