"""The part about a scores file: every score with what it depends on, the classes, and the checkpoints compared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cascaded_diffusion.errors import UserError
from cascaded_diffusion.evaluation.scores import Provenance, Score, read_scores
from cascaded_diffusion.files import read_json
from cascaded_diffusion.report.charts import Line, chart_figure, line_chart
from cascaded_diffusion.report.markup import Html, as_html, facts, folded, joined, paragraph, table, tag
from cascaded_diffusion.report.page import Part, subtitle
from cascaded_diffusion.report.stages import provenance_facts, settings

__all__ = ["ScoresRecord", "class_table", "read_scores_record", "scores_part", "with_error"]

_MEANINGS = {
    "fid": "Fréchet distance in Inception's features; lower is better",
    "fd": "Fréchet distance in these features; lower is better",
    "kid": "kernel distance in these features; lower is better, 0 for equal sets",
    "is": "inception score in this classifier; higher is better",
    "precision": "share of samples that look real; higher is better",
    "recall": "share of real images that samples come near; higher is better",
    "nn": "share of samples very near a training image; about 0.01 is expected",
    "recognition": "share of samples seen as the class asked for; higher is better",
    "cas": "accuracy on real images after training on samples alone; higher is better",
    "drift": "change of colour by a stage, of 255; 0 is best",
}
_IN_TABLE = ("n", "split", "reference_n")
_FEW_CLASSES = 20
"""Up to so many classes are all shown; of more, half as many worst and best."""


@dataclass(frozen=True)
class ScoresRecord:
    """A scores file.

    Attributes:
        name: what it is called on the page.
        scores: by key.
        checkpoints: (images seen, scores by key) of each checkpoint that was scored, if several were.
        content: the whole file.
    """

    name: str
    scores: dict[str, Score]
    checkpoints: list[tuple[int, dict[str, Score]]]
    content: Any


def read_scores_record(name: str, path: Path) -> ScoresRecord:
    """Read a scores file; a ``UserError`` names it if it is damaged."""
    scores = read_scores(path)
    content = read_json(path)
    try:
        checkpoints = [
            (int(entry["images"]), {key: Score.from_json(value) for key, value in entry["scores"].items()})
            for entry in content.get("checkpoints") or []
        ]
        for score in scores.values():
            _check_classes(score)
    except (UserError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a whole scores file ({type(error).__name__}: {error})") from None
    return ScoresRecord(name, scores, sorted(checkpoints, key=lambda entry: entry[0]), content)


def _check_classes(score: Score) -> None:
    """``ValueError`` if results by class do not hold a share or null for each class."""
    for key in ("per_class", "real_per_class"):
        shares = score.extra.get(key)
        if shares is None:
            continue
        names = score.extra.get("class_names")
        if not isinstance(shares, list) or (names is not None and len(names) != len(shares)):
            raise ValueError(f"{key} does not go with class_names")
        if any(share is not None and not 0 <= float(share) <= 1 for share in shares):
            raise ValueError(f"{key} holds something that is no share from 0 to 1")


def with_error(value: float, error: float | None) -> str:
    """A value, to two digits of its standard error if that is known."""
    if error is None or error <= 0:
        return f"{value:.4g}"
    places = min(max(1 - math.floor(math.log10(error)), 0), 8)
    return f"{value:.{places}f} ± {error:.{places}f}"


def _meaning(key: str) -> str:
    return _MEANINGS.get(key.split("_")[0], "")


def scores_part(record: ScoresRecord) -> Part:
    """The part of the page about one scores file."""
    body: list[Html] = [_score_table(record.scores)]
    abouts = [score.provenance for score in record.scores.values()]
    warnings = list(dict.fromkeys(warning for about in abouts for warning in about.warnings))
    if warnings:
        body.append(tag("ul", *(tag("li", "Warning: ", warning) for warning in warnings)))
    notes = {key: score.note for key, score in record.scores.items() if score.note}
    if notes:
        body.append(tag("ul", *(tag("li", tag("code", key), ": ", note) for key, note in notes.items()), class_="soft"))
    if abouts:
        body += [subtitle("What the scores depend on"), _provenance(record.scores)]
    if record.checkpoints:
        body += [subtitle("Checkpoints"), _checkpoints(record)]
    for key in ("cas", *(key for key in record.scores if key.startswith("recognition"))):
        if key in record.scores and record.scores[key].extra.get("per_class"):
            title = "classification accuracy score" if key == "cas" else "recognition"
            body += [subtitle(f"Worst and best classes, by {title}"), class_table(record.scores[key])]
    body.append(settings("The whole file", record.content))
    return Part(f"Scores: {record.name}", joined(body))


def _score_table(scores: Mapping[str, Score]) -> Html:
    if not scores:
        return paragraph("The file holds no scores.")
    rows = []
    for key, score in scores.items():
        about = score.provenance
        real = "none" if about.reference_n is None else f"{about.reference_n:,} {about.split or ''}".strip()
        cells = [tag("code", key), with_error(score.value, score.standard_error), f"{about.n:,}", real, _meaning(key)]
        rows.append(cells)
    return table(["Score", "Value", "Samples", "Real images", "What it says"], rows)


def _provenance(scores: Mapping[str, Score]) -> Html:
    """What all scores share as names and values, and what differs as a table with a row a score."""
    records = {key: score.provenance.model_dump(mode="json") for key, score in scores.items()}
    names = [name for name in Provenance.model_fields if name not in (*_IN_TABLE, "warnings")]
    seen = {name: [record[name] for record in records.values()] for name in names}
    shared = {name: values[0] for name, values in seen.items() if all(value == values[0] for value in values)}
    told = facts(provenance_facts({name: value for name, value in shared.items() if value not in (None, {}, [])}))
    differing = [name for name in names if name not in shared]
    if not differing:
        return told
    header = ["Score", *(name.replace("_", " ") for name in differing)]
    rows = [
        [tag("code", key), *provenance_facts({name: record[name] for name in differing}).values()]
        for key, record in records.items()
    ]
    return joined([told, paragraph("These differ from score to score:", class_="soft"), table(header, rows)])


def _checkpoints(record: ScoresRecord) -> Html:
    """Every checkpoint's scores; the one that the file's own scores are of stands out."""
    checkpoints, best = record.checkpoints, record.content.get("images")
    keys = list(dict.fromkeys(key for _, scores in checkpoints for key in scores))
    images = [float(seen) for seen, _ in checkpoints]
    charts = []
    for key in [key for key in keys if key.split("_")[0] in ("fid", "fd", "kid")][:2]:
        found = [scores.get(key) for _, scores in checkpoints]
        line = Line(
            key,
            images,
            [None if score is None else score.value for score in found],
            [None if score is None else score.standard_error for score in found],
        )
        words = f"{key} over images seen"
        chart = line_chart(
            [line], description=f"{words} in {record.name}", x_label="images seen", y_label=key, points=True
        )
        charts.append(chart_figure(chart, f"{words}; bars are standard errors."))
    rows = [
        [f"{seen:,}", *(with_error(s.value, s.standard_error) if (s := scores.get(key)) else "none" for key in keys)]
        for seen, scores in checkpoints
    ]
    marked = next((i for i, (seen, _) in enumerate(checkpoints) if seen == best), None)
    return joined([tag("div", *charts, class_="charts"), table(["Images seen", *keys], rows, marked=marked)])


def class_table(score: Score) -> Html:
    """Results by class, worst first; of many classes the worst and the best."""
    shares: list[float | None] = score.extra["per_class"]
    real = score.extra.get("real_per_class") or [None] * len(shares)
    names = score.extra.get("class_names") or [str(i) for i in range(len(shares))]
    known = [
        (float(share), name, other) for share, name, other in zip(shares, names, real, strict=True) if share is not None
    ]
    ranked = sorted(known, key=lambda row: row[0])
    header = ["Class", "Samples", "", *(["Real images"] if any(other is not None for *_, other in ranked) else [])]

    def rows(part: Sequence[tuple[float, str, float | None]]) -> list[list[object]]:
        return [
            [name, f"{share:.1%}", _bar(share), *(["" if other is None else f"{other:.1%}"] if len(header) > 3 else [])]
            for share, name, other in part
        ]

    if len(ranked) <= _FEW_CLASSES:
        return table(header, rows(ranked))
    half = _FEW_CLASSES // 2
    return joined(
        [
            table(header, rows(ranked[:half])),
            paragraph(f"… {len(ranked) - 2 * half} classes between …", class_="soft"),
            table(header, rows(ranked[-half:])),
            folded("All classes", table(header, rows(ranked))),
        ]
    )


def _bar(share: float) -> Html:
    return tag("span", as_html(""), class_="bar", style=f"width: {9 * share:.2f}rem")
