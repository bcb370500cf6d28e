"""The pictures of a search: the score over each swept setting, with error bars."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from cascaded_diffusion.cascade.sampling import SamplingConfig
from cascaded_diffusion.cascade.search_store import PointResult, SearchRecord, StageResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["curves", "figures"]

_COLOURS = {"nontruncated": "#1f5fa8", "truncated": "#c4581a", "": "#1f5fa8"}
_GREY = "#555555"
_AXIS = {
    "s": "s, strength of the conditioning augmentation",
    "steps": "sampling steps",
    "guidance": "guidance",
    "endpoints": "first : last beta of the sampling schedule",
    "start": "time of the start from the enlarged image; 1 is noise",
    "guide": "weight of the guide",
    "guidance_interval": "sigmas between which guidance acts",
    "grid": "what the levels are even in",
}


def curves(record: SearchRecord) -> dict[str, bytes]:
    """A PNG for every setting that was swept, named as in :class:`Sweep`: see :func:`figures`."""
    pictures = {}
    for setting, figure in figures(record).items():
        buffer = io.BytesIO()
        # Without the library's version in it, equal searches give equal files.
        figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
        pictures[setting] = buffer.getvalue()
    return pictures


def figures(record: SearchRecord, kind: type[Figure] | None = None) -> dict[str, Figure]:
    """A figure for every setting that was swept, one panel a stage.

    A panel is the slice through the best point: the other swept settings have their best values. The best is ringed.
    Where those go with one value alone (truncated with a start, no guidance with an interval), it is the slice through
    the best of the points with more, and the ring stands beside it. Stages whose search is not finished are left out.

    Args:
        record: the search.
        kind: what the figures are; default matplotlib's own.
    """
    drawn = {}
    for setting in _AXIS:
        stages = [found for found in record.searched if setting in found.swept and found.winner is not None]
        if stages:
            drawn[setting] = _draw(record, setting, stages, kind)
    return drawn


def _draw(record: SearchRecord, setting: str, stages: Sequence[StageResult], kind: type[Figure] | None) -> Figure:
    from matplotlib.figure import Figure

    figure = (kind or Figure)(figsize=(6.4 * len(stages), 4.4), layout="constrained")
    for axes, found in zip(figure.subplots(1, len(stages), squeeze=False)[0], stages):
        _panel(axes, setting, found)
    request = record.request
    figure.supylabel(f"Frechet distance, {request.features} features", fontsize=10)
    figure.suptitle(
        f"{request.num:,} samples a point, the same noise at every point; bars: one standard error; lower is better",
        fontsize=9,
        color=_GREY,
    )
    return figure


def _panel(axes: Axes, setting: str, found: StageResult) -> None:
    best = found.winner
    assert best is not None  # only finished stages come here
    shown = _slice(found, setting, best)
    place = _places(setting, [*shown, best], found.stage)
    modes = sorted({_mode(point, found.stage) for point in shown} - {"none"}) if setting == "s" else [""]
    for mode in modes or ["nontruncated"]:
        # s = 0 belongs to both modes: each line begins there.
        line = [point for point in shown if setting != "s" or _mode(point, found.stage) in (mode, "none")]
        line.sort(key=place)
        axes.errorbar(
            [place(point) for point in line],
            [point.value for point in line],
            yerr=[point.standard_error for point in line],
            marker="o",
            markersize=4.5,
            capsize=3,
            linewidth=1.6,
            elinewidth=1,
            color=_COLOURS[mode],
            label={"nontruncated": "non-truncated", "truncated": "truncated", "": None}[mode],
        )
    axes.plot([place(best)], [best.value], "o", color="black", label="best", markersize=13, markerfacecolor="none")
    axes.set_title(
        f"{found.stage}, best: {best.label}\n{best.value:.4g} ± {best.standard_error:.2g}", fontsize=11, loc="left"
    )
    axes.set_xlabel(_AXIS[setting])
    _ticks(axes, setting, [*shown, best], place, found.stage)
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)


def _mode(point: PointResult, stage: str) -> str:
    return point.settings[stage].augmentation


def _value(point: PointResult, stage: str, setting: str) -> Any:
    value = getattr(point.settings[stage], setting)
    return 1.0 if setting == "start" and value is None else value


def _slice(found: StageResult, setting: str, best: PointResult) -> list[PointResult]:
    """The points that differ from the best in this setting alone; over s, in both modes."""
    own = {"s", "augmentation"} if setting == "s" else {setting}
    others = [name for name in found.swept if name not in own]

    def through(like: PointResult) -> list[PointResult]:
        return [
            point
            for point in found.points
            if all(_agree(point.settings[found.stage], like.settings[found.stage], name) for name in others)
        ]

    shown = through(best)
    if len(shown) > 1 or len({_value(point, found.stage, setting) for point in found.points}) == 1:
        return shown
    ranked = sorted(found.points, key=lambda point: point.value)
    return next((points for points in map(through, ranked) if len(points) > 1), shown)


def _agree(own: SamplingConfig, other: SamplingConfig, name: str) -> bool:
    """Whether two points have the same value of a setting; without guidance, any interval is the same."""
    unguided = own.guidance == 1 and own.guide == 1
    return getattr(own, name) == getattr(other, name) or (name == "guidance_interval" and unguided)


def _places(setting: str, shown: Sequence[PointResult], stage: str) -> Callable[[PointResult], float]:
    """Where on the axis a point lies: at its number, or in the order given if it is not one."""
    values = [_value(point, stage, setting) for point in shown]
    if all(isinstance(value, int | float) for value in values):
        return lambda point: float(_value(point, stage, setting))
    order = list(dict.fromkeys(values))
    return lambda point: float(order.index(_value(point, stage, setting)))


def _ticks(
    axes: Axes, setting: str, shown: Sequence[PointResult], place: Callable[[PointResult], float], stage: str
) -> None:
    named = {place(point): _value(point, stage, setting) for point in shown}
    words = [_word(value) for value in named.values()]
    if setting == "steps" and min(named) > 0 and all(isinstance(value, int) for value in named.values()):
        axes.set_xscale("log")
        axes.minorticks_off()
    if setting in ("steps", "endpoints", "guidance_interval", "grid"):
        axes.set_xticks(list(named), words)


def _word(value: Any) -> str:
    if value is None:
        return "none"
    return "{:g} : {:g}".format(*value) if isinstance(value, tuple) else str(value)
