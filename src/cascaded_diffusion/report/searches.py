"""The part about a search: a curve over what was swept, its best point, and every point's score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cascaded_diffusion.cascade.sampling import SamplingConfig
from cascaded_diffusion.cascade.search_store import RECORD_FILE, PointResult, SearchRecord, StageResult
from cascaded_diffusion.config import explain
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.files import read_json
from cascaded_diffusion.report.charts import Line, chart_figure, line_chart
from cascaded_diffusion.report.markup import Html, facts, joined, paragraph, table, tag
from cascaded_diffusion.report.page import Part, missing, subtitle
from cascaded_diffusion.report.scores import with_error
from cascaded_diffusion.report.stages import provenance_facts, settings

__all__ = ["SearchSubject", "read_search", "search_part", "sweep_lines"]

_MOST_LINES = 8
_AXES = {
    "s": "s",
    "steps": "sampling steps",
    "guidance": "guidance",
    "start": "start time, 1 is noise",
    "guide": "weight of the guide",
}


@dataclass(frozen=True)
class SearchSubject:
    """A search's record, and what it is called on the page."""

    name: str
    record: SearchRecord


def read_search(name: str, folder: Path) -> SearchSubject:
    """Read a search's folder; a ``UserError`` names the file that is missing or damaged."""
    path = folder / RECORD_FILE
    try:
        return SearchSubject(name, SearchRecord.model_validate(read_json(path)))
    except ValidationError as error:
        raise UserError(f"{path}: {explain(error)}") from None


def search_part(subject: SearchSubject) -> Part:
    """The part of the page about one search."""
    record = subject.record
    request = record.request
    told: dict[str, object] = {
        "Score": f"{record.score}, lower is better",
        "Samples a point": f"{request.num:,}, the same noise at every point",
        "Seed": str(request.seed),
        "Real images": request.split,
        "Features": f"{request.features}, {request.features_hash[:12]}…",
        "Precision": request.precision,
    }
    body: list[Html] = [facts(told | provenance_facts(record.provenance))]
    for stage in record.searched:
        body += _stage(stage, len(request.points.get(stage.stage, ())), subject)
    if not record.searched:
        body.append(missing("No point was scored yet; the same command goes on:", "cdm search"))
    body.append(settings("What was asked (search.json)", request.model_dump(mode="json")))
    return Part(f"Search: {subject.name}", joined(body))


def _stage(stage: StageResult, wanted: int, subject: SearchSubject) -> list[Html]:
    """Curves and table of one searched stage, of whose points there are to be ``wanted``."""
    score = subject.record.score
    found = [subtitle(f"Stage {stage.stage}, by {' and '.join(stage.swept)}")]
    winner = stage.winner
    if winner is not None:
        best = with_error(winner.value, winner.standard_error)
        found.append(paragraph("Best: ", tag("strong", winner.label), f", {score} {best}."))
    elif len(stage.points) < max(wanted, 1):
        words = f"{len(stage.points)} of {wanted} points are scored; the same command goes on:"
        found.append(missing(words, "cdm search"))
    charts = [chart for axis in _AXES if axis in stage.swept and (chart := _chart(stage, axis, subject)) is not None]
    if charts:
        found.append(tag("div", *charts, class_="charts"))
    if stage.points:
        found.append(_points(stage, score))
    if stage.passes:
        passes = ", ".join(f"{count} through {name}" for name, count in stage.passes.items())
        found.append(paragraph(f"Passes of all samples: {passes}.", class_="soft"))
    return found


def _place(own: SamplingConfig, axis: str) -> Any:
    """Where on an axis settings lie; to start from noise is to start at time 1."""
    return 1.0 if axis == "start" and own.start is None else getattr(own, axis)


def sweep_lines(stage: StageResult, axis: str) -> list[Line]:
    """Lines over one swept setting, one for each combination of the others.

    Args:
        stage: the searched stage.
        axis: ``s``, ``steps``, ``guidance``, ``start`` or ``guide``. Over s there is a line for each mode, and s = 0 is
            on all of them.

    Returns:
        At most eight lines of two points or more, each in rising order; none if the setting is not a number everywhere.
    """
    lines: dict[str, dict[float, PointResult]] = {}
    clean: list[tuple[str, PointResult]] = []
    for point in stage.points:
        own = point.settings[stage.stage]
        others = _others(own, stage.swept, axis)
        x = _place(own, axis)
        if not isinstance(x, int | float):
            return []
        if axis == "s" and own.augmentation == "none":
            clean.append((others, point))
        else:
            name = ", ".join(filter(None, [own.augmentation if axis == "s" else "", others]))
            lines.setdefault(name, {})[float(x)] = point
    for others, point in clean:
        mine = [line for name, line in lines.items() if name.partition(", ")[2] == others]
        for line in mine or [lines.setdefault(", ".join(filter(None, ["none", others])), {})]:
            line[0.0] = point
    drawn = [(name, sorted(line.items())) for name, line in lines.items() if len(line) > 1]
    return [
        Line(
            name,
            [x for x, _ in line],
            [point.value for _, point in line],
            [point.standard_error for _, point in line],
        )
        for name, line in drawn[:_MOST_LINES]
    ]


def _others(own: SamplingConfig, swept: Sequence[str], axis: str) -> str:
    """The swept settings but ``axis``, in words."""
    words = []
    if "s" in swept and axis != "s":
        words.append("s = 0" if own.augmentation == "none" else f"{own.augmentation} s = {own.s:g}")
    if "steps" in swept and axis != "steps":
        words.append(f"{own.steps} steps")
    if "guidance" in swept and axis != "guidance":
        words.append(f"guidance {own.guidance:g}")
    if "endpoints" in swept and own.endpoints is not None:
        words.append("schedule {:g} to {:g}".format(*own.endpoints))
    if "start" in swept and axis != "start":
        words.append("from noise" if own.start is None else f"from time {own.start:g}")
    if "guide" in swept and axis != "guide":
        words.append(f"guide {own.guide:g}")
    if "guidance_interval" in swept and own.guidance_interval is not None:
        words.append("at sigma {:g} to {:g}".format(*own.guidance_interval))
    if "grid" in swept:
        words.append(f"{own.grid} grid")
    return ", ".join(words)


def _chart(stage: StageResult, axis: str, subject: SearchSubject) -> Html | None:
    score = subject.record.score
    lines = sweep_lines(stage, axis)
    if not lines:
        return None
    winner = stage.winner
    best = None if winner is None else (float(_place(winner.settings[stage.stage], axis)), winner.value)
    chart = line_chart(
        lines,
        description=f"{score} of {stage.stage} over {_AXES[axis]} in {subject.name}",
        x_label=_AXES[axis],
        y_label=score,
        points=True,
        best=best,
    )
    ring = "" if best is None else ", the ring the best point"
    return chart_figure(chart, f"{score} over {_AXES[axis]}; bars are standard errors{ring}.")


def _points(stage: StageResult, score: str) -> Html:
    rows = []
    for point in stage.points:
        evaluations = ", ".join(f"{name} {count:,}" for name, count in point.evaluations.items())
        value = with_error(point.value, point.standard_error)
        rows.append([point.label, value, f"{point.n:,}", f"{point.reference_n:,}", evaluations])
    marked = next((i for i, point in enumerate(stage.points) if point.key == stage.best), None)
    return table(["Point", score, "Samples", "Real images", "Evaluations an image"], rows, marked=marked)
