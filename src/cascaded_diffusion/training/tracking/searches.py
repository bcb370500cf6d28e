"""A search's outcome in the trackers: its curves, the points behind them, and what was asked."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from cascaded_diffusion.cascade.search_plot import curves
from cascaded_diffusion.cascade.search_store import SearchRecord, StageResult
from cascaded_diffusion.training.tracking.base import check_trackers, to_stderr
from cascaded_diffusion.training.tracking.follow import Channel, Note, Table, pixels_of

__all__ = ["track_search"]


def track_search(record: SearchRecord, folder: Path, trackers: Sequence[str], *, note: Note = to_stderr) -> None:
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
    rows = []
    for point in found.points:
        own = point.settings[found.stage]
        settings = [getattr(own, name) for name in found.swept]
        words = [value if isinstance(value, int | float) else str(value) for value in settings]
        best = "best" if point.key == found.best else ""
        rows.append([point.label, *words, point.value, point.standard_error, point.n, best])
    return Table(["point", *found.swept, score, "standard error", "samples", "best"], rows)
