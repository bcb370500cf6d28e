"""Figures of runs and searches from Python, for notebooks and papers."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cascaded_diffusion.cascade.search_plot import figures
from cascaded_diffusion.cascade.stage import CONFIG_FILE
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.report.charts import shades
from cascaded_diffusion.report.runs import RunRecord, read_run
from cascaded_diffusion.report.searches import read_search

__all__ = ["Plot", "plot_search", "plot_training"]


class Plot(Figure):
    """A matplotlib figure that a notebook shows, whatever it was told of plotting: no pyplot, no state."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=80)
        return buffer.getvalue()


def plot_search(folder: str | Path, setting: str | None = None) -> Plot:
    """The score over a setting that ``cdm search`` has swept, one panel a stage, with error bars and the best ringed.

    Args:
        folder: the search's folder.
        setting: a swept one, such as ``s`` or ``guidance_interval``; default the first of these that was swept.

    Raises:
        UserError: no search there, none of its stages is through, or the setting was not swept.
    """
    record = read_search(str(folder), Path(folder)).record
    drawn = figures(record, Plot)
    if not drawn:
        raise UserError(f"{folder}: no stage of this search is through; the same cdm search command goes on")
    chosen = setting or next(iter(drawn))
    if chosen not in drawn:
        raise UserError(f"setting: {chosen!r} was not swept here; allowed: {', '.join(drawn)}")
    figure = drawn[chosen]
    assert isinstance(figure, Plot)
    return figure


def plot_training(*runs: str | Path) -> Plot:
    """How runs went, over images seen: loss, loss by diffusion time of the last run, gradient norm and learning rate.

    Args:
        runs: run folders.

    Raises:
        UserError: none given, or one is not a run or has logged nothing yet.
    """
    if not runs:
        raise UserError("runs: none given; give run folders of cdm train")
    records = [_read(Path(run)) for run in runs]
    figure = Plot(figsize=(10, 6), layout="constrained")
    panels: Any = figure.subplots(2, 2)
    _lines(panels[0, 0], records, "loss", "loss")
    _by_time(panels[0, 1], records[-1])
    _lines(panels[1, 0], records, "grad_norm", "gradient norm")
    _lines(panels[1, 1], records, "lr", "learning rate")
    panels[0, 0].set_yscale("log")
    if len(records) > 1:
        panels[0, 0].legend(frameon=False, fontsize=9)
    return figure


def _read(run: Path) -> RunRecord:
    if not (run / CONFIG_FILE).is_file():
        raise UserError(f"{run}: not a run folder (no {CONFIG_FILE})")
    record = read_run(run.resolve().name, run)
    if not record.metrics:
        raise UserError(
            f"{run}: nothing was logged yet; training.log_every is {record.config.training.log_every:,} images"
        )
    return record


def _lines(axes: Axes, records: Sequence[RunRecord], key: str, label: str) -> None:
    for record in records:
        rows = [row for row in record.metrics if isinstance(row.get(key), int | float)]
        axes.plot([row["images"] for row in rows], [row[key] for row in rows], label=record.name, linewidth=1.4)
    _finish(axes, label)


def _by_time(axes: Axes, record: RunRecord) -> None:
    """One line for each part of the diffusion time: which noise levels are learned, and which are not."""
    buckets = max(len(row["loss_by_time"]) for row in record.metrics)
    for bucket, colour in enumerate(shades(buckets)):
        known = [row for row in record.metrics if bucket < len(row["loss_by_time"])]
        points = [(row["images"], row["loss_by_time"][bucket]) for row in known]
        points = [(x, y) for x, y in points if y is not None]
        name = f"{bucket}/{buckets} to {bucket + 1}/{buckets}"
        axes.plot([x for x, _ in points], [y for _, y in points], color=colour, label=name, linewidth=1.2)
    axes.set_yscale("log")
    axes.legend(frameon=False, fontsize=7, ncols=2, title="diffusion time (0 is clean)", title_fontsize=8)
    _finish(axes, f"loss of {record.name}")


def _finish(axes: Axes, label: str) -> None:
    axes.set_ylabel(label)
    axes.set_xlabel("images seen")
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
