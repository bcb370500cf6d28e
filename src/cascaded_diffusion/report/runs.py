"""The part about a run: what is trained, how the loss fell, what the previews looked like."""

from __future__ import annotations

import re
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cascaded_diffusion.cascade.stage import CONFIG_FILE, StageConfig
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.reading.json_text import read_json_lines
from cascaded_diffusion.reading.pictures import check_png
from cascaded_diffusion.reading.plain import read_bytes, refuse_outside
from cascaded_diffusion.report.charts import Line, chart_figure, line_chart, shades
from cascaded_diffusion.report.markup import Html, facts, folded, joined, paragraph, png_tag, tag
from cascaded_diffusion.report.page import Part, missing, subtitle
from cascaded_diffusion.report.stages import settings, stage_facts
from cascaded_diffusion.training.checkpoint import checkpoint_folders
from cascaded_diffusion.training.run import METRICS_FILE

__all__ = ["RunRecord", "compare_runs", "read_run", "run_part"]

_PREVIEWS = 6
"""Previews on the page; of more, these are evenly spaced over the run."""
_PREVIEW_NAME = re.compile(r"[0-9]{1,18}\.png")
_LARGEST_PREVIEW = 32 * 2**20
_MOST_LINES, _MOST_PARTS = 1_000_000, 100
_LARGEST = 1e30
"""Of numbers in charts; any that is larger is no loss, and axes end before float64 does."""
Row = dict[str, Any]


@dataclass(frozen=True)
class RunRecord:
    """A run as its folder tells it.

    Attributes:
        name: what it is called on the page.
        config: the stage's configuration.
        metrics: the lines of its log, in order.
        previews: (images seen, PNG file's bytes), oldest first, at most six.
        checkpoints: images seen at each one that is kept.
    """

    name: str
    config: StageConfig
    metrics: list[Row]
    previews: list[tuple[int, bytes]]
    checkpoints: list[int]


def read_run(name: str, folder: Path) -> RunRecord:
    """Read and check what the page shows of a run; a ``UserError`` names the file that is damaged."""
    refuse_outside(folder, folder / CONFIG_FILE, folder / METRICS_FILE, folder / "previews")
    checkpoints = [int(path.name) for path in checkpoint_folders(folder)]
    config = StageConfig.load(folder / CONFIG_FILE)
    return RunRecord(name, config, _metrics(folder / METRICS_FILE), _previews(folder / "previews"), checkpoints)


def _metrics(path: Path) -> list[Row]:
    if not path.exists():
        return []
    rows = []
    for number, row in read_json_lines(path):
        if isinstance(row, dict) and row.get("loss", 0) is None:
            continue  # every step of this line was skipped: nothing to draw
        if not _is_log_line(row):
            raise UserError(f"{path}: line {number} is not one of a run's log (images, loss, loss_by_time)")
        rows.append(row)
        if number > _MOST_LINES:
            raise UserError(f"{path}: more than {_MOST_LINES} lines; log less often (training.log_every)")
    return rows


def _is_log_line(row: Any) -> bool:
    """Whether a line has what the charts read; anything else in it is not the page's business."""
    if not isinstance(row, dict) or type(row.get("images")) is not int or not 0 <= row["images"] < 2**53:
        return False
    parts = row.get("loss_by_time")
    if not isinstance(parts, list) or len(parts) > _MOST_PARTS:
        return False
    return _is_drawable(row.get("loss")) and all(value is None or _is_drawable(value) for value in parts)


def _is_drawable(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST


def _previews(folder: Path) -> list[tuple[int, bytes]]:
    paths = sorted(path for path in folder.glob("*.png") if _PREVIEW_NAME.fullmatch(path.name))
    steps = min(_PREVIEWS, len(paths))
    chosen = sorted({round(i * (len(paths) - 1) / max(steps - 1, 1)) for i in range(steps)})
    if len(chosen) == 1:
        chosen = [len(paths) - 1]
    found = []
    for path in (paths[i] for i in chosen):
        refuse_outside(folder, path)
        content = read_bytes(path, _LARGEST_PREVIEW)
        check_png(content, path)
        found.append((int(path.stem), content))
    return found


def compare_runs(runs: list[RunRecord]) -> Part:
    """The losses of several runs in one chart."""
    lines = [Line(run.name, _column(run, "images"), _column(run, "loss")) for run in runs if run.metrics]
    chart = line_chart(
        lines, description="Loss of every run over images seen", x_label="images seen", y_label="loss", log_y=True
    )
    words = "Losses of stages that differ in resolution, schedule or prediction are not comparable."
    return Part("Runs side by side", tag("div", chart_figure(chart, words), class_="charts"))


def run_part(run: RunRecord) -> Part:
    """The part of the page about one run."""
    body = [
        facts(_progress(run) | stage_facts(run.config)),
        settings("All settings of this run (config.json)", run.config.model_dump(mode="json")),
        subtitle("Loss"),
        _losses(run),
        subtitle("Previews"),
        _preview_sheets(run),
    ]
    return Part(f"Run: {run.name} ({run.config.name})", joined(body))


def _column(run: RunRecord, key: str) -> list[Any]:
    return [row[key] for row in run.metrics]


def _progress(run: RunRecord) -> dict[str, object]:
    """How far the run is, and at what speed."""
    seen = max([*(row["images"] for row in run.metrics[-1:]), *run.checkpoints], default=0)
    values: dict[str, object] = {"Images seen": f"{seen:,} of {run.config.training.images:,}"}
    if run.metrics:
        values["Last loss"] = f"{run.metrics[-1]['loss']:.4g}"
    speeds, waits = _numbers(run, "images_per_second"), _numbers(run, "data_wait")
    if speeds:
        values["Speed"] = f"{statistics.median(speeds):,.3g} images/s (median)"
    if waits:
        values["Waiting for data"] = f"{statistics.median(waits):.1%} of the time (median)"
    if run.checkpoints:
        values["Checkpoints at"] = ", ".join(f"{images:,}" for images in run.checkpoints[-6:]) + " images"
    return values


def _numbers(run: RunRecord, key: str) -> list[float]:
    return [float(value) for row in run.metrics if (value := row.get(key)) is not None and _is_drawable(value)]


def _losses(run: RunRecord) -> Html:
    if not run.metrics:
        words = f"No loss was logged yet; a line is written every {run.config.training.log_every:,} images by"
        return missing(words, "cdm train")
    images, losses = _column(run, "images"), _column(run, "loss")
    overall = line_chart(
        [Line("loss", images, losses)],
        description=f"Loss of {run.name} over images seen, from {losses[0]:.3g} to {losses[-1]:.3g}",
        x_label="images seen",
        y_label="loss",
        log_y=True,
    )
    figures = [chart_figure(overall, "Loss, averaged between two lines of the log.")]
    buckets = max(len(row["loss_by_time"]) for row in run.metrics)
    if buckets:
        figures.append(_loss_by_time(run, images, buckets))
    charts = [tag("div", *figures, class_="charts")]
    slow = [
        chart
        for key, label in (("grad_norm", "gradient norm"), ("lr", "learning rate"))
        if (chart := _extra(run, key, label))
    ]
    if slow:
        charts.append(folded("Gradient norm and learning rate", tag("div", *slow, class_="charts")))
    return joined(charts)


def _loss_by_time(run: RunRecord, images: list[float], buckets: int) -> Html:
    """One line for each part of the diffusion time: which noise levels are learned, and which are not."""

    def values(bucket: int) -> list[float | None]:
        return [row["loss_by_time"][bucket] if bucket < len(row["loss_by_time"]) else None for row in run.metrics]

    lines = [Line(f"{i}/{buckets} to {i + 1}/{buckets}", images, values(i)) for i in range(buckets)]
    chart = line_chart(
        lines,
        description=f"Loss of {run.name} over images seen in each of {buckets} parts of the diffusion time",
        x_label="images seen",
        y_label="loss",
        log_y=True,
        colours=shades(buckets),
        legend_title="diffusion time (0 is clean, 1 is noise)",
    )
    return chart_figure(chart, "The same loss by how noisy the images were.")


def _extra(run: RunRecord, key: str, label: str) -> Html | None:
    values = [value if _is_drawable(value := row.get(key)) else None for row in run.metrics]
    if all(value is None for value in values):
        return None
    chart = line_chart(
        [Line(label, _column(run, "images"), values)],
        description=f"{label} of {run.name} over images seen",
        x_label="images seen",
        y_label=label,
    )
    return chart_figure(chart, f"{label.capitalize()} over images seen.")


def _preview_sheets(run: RunRecord) -> Html:
    if not run.previews:
        every = run.config.training.preview_every
        if every is None:
            return missing(
                "None: this run's settings switch them off. They come with", "--set training.preview_every=N"
            )
        return missing(f"None yet; one is drawn every {every:,} images by", "cdm train")
    words = "The same few samples (of an SR stage also its input and the truth), drawn with averaged weights."
    figures = [
        tag(
            "figure",
            tag(
                "div",
                png_tag(data, f"Preview of {run.name} after {images:,} images", class_="sheet"),
                class_="wide",
                tabindex=0,
            ),
            tag("figcaption", f"after {images:,} images"),
            style="max-width: none; margin: .8rem 0",
        )
        for images, data in run.previews
    ]
    return joined([paragraph(words), *figures])
