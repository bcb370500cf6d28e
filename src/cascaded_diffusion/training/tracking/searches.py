"""A search's outcome in the trackers: its curves, the points behind them, and what was asked."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cascaded_diffusion.cascade.search_plot import curves
from cascaded_diffusion.cascade.search_store import SearchRecord, StageResult
from cascaded_diffusion.telling import tell
from cascaded_diffusion.training.tracking.base import check_trackers
from cascaded_diffusion.training.tracking.follow import Channel, Note, Table, pixels_of

__all__ = ["track_search"]


def track_search(record: SearchRecord, folder: Path, trackers: Sequence[str], *, note: Note = tell) -> None:
    """Show a finished search.

    Args:
        record: what was found.
        folder: the search's folder.
        trackers: names, from :data:`TRACKERS`.
        note: called with a line for a person.

    Raises:
        UserError: a tracker is not known or not installed.
    """
    judged = sum(point.n for found in record.searched for point in found.points)
    pictures = {f"{setting}-curve": pixels_of(io.BytesIO(png)) for setting, png in curves(record).items()}
    tables = {f"points/{found.stage}": _points(found, record.score) for found in record.searched}
    for name in check_trackers(trackers):
        channel = Channel(name, folder, note=note)
        channel.open({**record.request.model_dump(mode="json"), "score": record.score})
        channel.tables(judged, tables)
        channel.pictures(judged, pictures)
        channel.close()


def _points(found: StageResult, score: str) -> Table:
    columns = [_column([getattr(point.settings[found.stage], name) for point in found.points]) for name in found.swept]
    rows = []
    for number, point in enumerate(found.points):
        best = "best" if point.key == found.best else ""
        settings = [column[number] for column in columns]
        rows.append([point.label, *settings, point.value, point.standard_error, point.n, best])
    return Table(["point", *found.swept, score, "standard error", "samples", "best"], rows)


def _column(values: Sequence[Any]) -> list[Any]:
    """Numbers, or all of them as words: a table of W&B takes no column of both."""
    return list(values) if all(isinstance(value, int | float) for value in values) else list(map(str, values))
