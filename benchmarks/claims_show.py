"""Tables, verdicts and plots of what `paper_claims.py` measured."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from claims_measure import points_folder

Points = list[dict[str, Any]]
SIGNIFICANT = 2.0
"""Standard errors that a difference must have to count."""

TITLES = {
    "i": "Without augmentation a cascade is worse than with it, and than one stage of equal training cost",
    "ii": "The score over s is U-shaped on generated low-resolution images",
    "iii": "It gets steadily worse with s on real low-resolution images",
    "iv": "Truncated and non-truncated do about equally well",
    "v": "Blur beats none at the last of three stages",
    "vi": "The SR stage needs tens of steps or fewer",
    "vii": "Class conditioning helps the SR stage",
}


def over_seeds(sets: list[Points]) -> Points:
    """One row a point: the mean over seeds, and the larger of the spread between them and the bootstrap error."""
    rows = []
    for same in zip(*sets, strict=True):
        row = dict(same[0])
        for key in ("fd", "kid"):
            values = [point[key] for point in same]
            inner = math.sqrt(sum(point[f"{key}_standard_error"] ** 2 for point in same)) / len(same)
            outer = float(np.std(values, ddof=1)) / math.sqrt(len(same)) if len(same) > 1 else 0.0
            row[key], row[f"{key}_standard_error"] = float(np.mean(values)), max(inner, outer)
        if len(same) > 1:  # between training runs there is more to doubt than samples
            row.pop("fd_replicates", None)
        row["recognised"] = float(np.mean([point["recognised"] for point in same]))
        rows.append(row)
    return rows


def lead(worse: dict[str, Any], better: dict[str, Any]) -> float:
    """By how many standard errors the distance of one point is above that of another.

    Points share classes and noise, so the error of the difference is that of their paired resamples where there are
    any: what the points have in common is no reason for doubt.
    """
    error = math.hypot(worse["fd_standard_error"], better["fd_standard_error"])
    pair = worse.get("fd_replicates"), better.get("fd_replicates")
    if pair[0] is not None and pair[1] is not None:
        error = float(np.std(np.subtract(*pair), ddof=1))
    return (worse["fd"] - better["fd"]) / error if error else 0.0


def compared(worse: dict[str, Any], better: dict[str, Any], what: str) -> tuple[bool | None, str]:
    """Whether a point is worse than another, ``None`` if that cannot be told, and the words for it."""
    found = lead(worse, better)
    words = f"{what}: {worse['fd']:.3f} against {better['fd']:.3f} ({found:+.1f} standard errors)"
    return (None if abs(found) < SIGNIFICANT else found > 0), words


def verdict(parts: list[tuple[bool | None, str]]) -> str:
    """All parts in words, and what they come to."""
    results = [result for result, _ in parts]
    word = "Holds" if all(results) else "Does not hold" if False in results else "Cannot be told"
    return f"**{word}.** {'; '.join(words for _, words in parts)}."


def judge_i(points: Points) -> str:
    """Claim i."""
    none, noise, single = points
    return verdict(
        [
            compared(none, noise, "none is worse than noise"),
            compared(none, single, "none is worse than a single stage"),
            compared(single, noise, "a single stage is worse than noise"),
        ]
    )


def judge_ii(points: Points) -> str:
    """Claim ii: both ends are above the best."""
    best = min(points, key=lambda point: point["fd"])
    ends = [compared(points[0], best, f"s = 0 against the best, s = {best['s']:g}")]
    return verdict([*ends, compared(points[-1], best, f"s = {points[-1]['s']:g} against the best")])


def judge_iii(points: Points) -> str:
    """Claim iii: no step down, and the end above the start."""
    steps = [lead(after, before) for before, after in pairwise(points)]
    worst = min(steps)
    fall = f"steepest fall between neighbours {worst:+.1f} standard errors" if worst < 0 else "every step goes up"
    return verdict([(worst > -SIGNIFICANT, fall), compared(points[-1], points[0], "largest s against s = 0")])


def judge_iv(truncated: Points, nontruncated: Points) -> str:
    """Claim iv: the best of both are within noise or a tenth of each other."""
    best = [min(points[1:], key=lambda point: point["fd"]) for points in (truncated, nontruncated)]
    gap = abs(best[0]["fd"] - best[1]["fd"]) / min(point["fd"] for point in best)
    close = gap < 0.1 or abs(lead(*best)) < SIGNIFICANT
    words = (
        f"best truncated {best[0]['fd']:.3f} at s = {best[0]['s']:g}, best non-truncated {best[1]['fd']:.3f} at "
        f"s = {best[1]['s']:g} ({lead(*best):+.1f} standard errors, {gap:.0%})"
    )
    return verdict([(close, words)])


def judge_v(points: Points) -> str:
    """Claim v."""
    return verdict([compared(points[0], points[1], "none is worse than blur")])


def judge_vi(points: Points) -> str:
    """Claim vi: the fewest steps whose distance is within a tenth of the best's."""
    best = min(points, key=lambda point: point["fd"])
    few = next(point for point in points if point["fd"] <= 1.1 * best["fd"])
    words = f"{few['steps']} steps reach {few['fd']:.3f}; the best, {best['fd']:.3f}, takes {best['steps']}"
    return verdict([(few["steps"] <= 30, words)])


def judge_vii(points: Points) -> str:
    """Claim vii."""
    return verdict([compared(points[1], points[0], "without class is worse than with it")])


def table(points: Points) -> str:
    """A markdown table of points."""
    lines = ["| images | FD | KID x 1000 | recognised |", "|---|---|---|---|"]
    for point in points:
        fd = f"{point['fd']:.3f} +- {point['fd_standard_error']:.3f}"
        kid = f"{1000 * point['kid']:.2f} +- {1000 * point['kid_standard_error']:.2f}"
        lines.append(f"| {point['point']} | {fd} | {kid} | {point['recognised']:.1%} |")
    return "\n".join(lines)


def _load(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    found = {}
    for claim in TITLES:
        paths = [points_folder(args.out, args.high, seed, args.num) / f"claim-{claim}.json" for seed in args.seeds]
        files = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]
        if files:
            found[claim] = {**files[0], "points": over_seeds([file["points"] for file in files]), "seeds": len(files)}
    return found


def _plot(path: Path, curves: dict[str, Points], axis: str, label: str, *, logarithmic: bool = False) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, points in curves.items():
        x, y = [point[axis] for point in points], [point["fd"] for point in points]
        axes.errorbar(x, y, [point["fd_standard_error"] for point in points], marker="o", capsize=3, label=name)
    if logarithmic:
        axes.set_xscale("log")
        ticks = [point[axis] for points in curves.values() for point in points]
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
    axes.set_xlabel(label)
    axes.set_ylabel("Frechet distance (lower is better)")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    if len(curves) > 1:
        axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def show(args: argparse.Namespace) -> None:
    """Print tables and verdicts as markdown, and draw the plots."""
    found = _load(args)
    judges: dict[str, Callable[[Points], str]] = {
        "i": judge_i,
        "ii": judge_ii,
        "iii": judge_iii,
        "iv": lambda points: judge_iv(points, found["ii"]["points"]),
        "v": judge_v,
        "vi": judge_vi,
        "vii": judge_vii,
    }
    for claim, title in TITLES.items():
        print(f"### {claim}. {title}\n")
        if claim not in found:
            print("Not measured.\n")
            continue
        content = found[claim]
        arms = ", ".join(
            f"{name} {arm['images']:,} images in {arm['seconds']:,} s" for name, arm in content["arms"].items()
        )
        sampled = sum(point["sampling_seconds"] for point in content["points"])
        print(f"{judges[claim](content['points'])}\n\n{table(content['points'])}\n")
        print(f"{content['seeds']} training seed(s). Training: {arms}. Sampling: {sampled:,.0f} s.")
        print(f"Hardware: {content['hardware']}. Command: `{content['command']}`\n")
    if args.images is not None:
        names = {"ii": "generated, non-truncated", "iv": "generated, truncated", "iii": "real low-resolution images"}
        curves = {name: found[claim]["points"] for claim, name in names.items() if claim in found}
        if curves:
            _plot(
                args.images / f"claims-{args.high}-s.png", curves, "s", "s, strength of the conditioning augmentation"
            )
        if "vi" in found:
            steps = {"steps": found["vi"]["points"]}
            _plot(
                args.images / f"claims-{args.high}-steps.png", steps, "steps", "steps of the SR stage", logarithmic=True
            )
