"""Scores with everything that they depend on: as objects, as JSON, and as a table to read."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError

from cascaded_diffusion.config import Facts, Hashes, Name, StrictModel, Words, explain
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.files import read_json, write_json

__all__ = [
    "Origin",
    "Provenance",
    "Score",
    "comparison",
    "describe_sampling",
    "read_scores",
    "scores_json",
    "table",
    "warnings_of",
    "write_scores",
]

FORMAT_VERSION = 1
WIDTH = 100
ByStage = Facts | None
_Count = Annotated[int, Field(ge=1, le=10**12)]
_Side = Annotated[int, Field(ge=1, le=65_536)]
_Amount = Annotated[float, Field(ge=-1e6, le=1e6)]
Numbers = Annotated[dict[Name, _Amount | None], Field(max_length=1000)] | None
Ends = Annotated[dict[Name, tuple[_Amount, _Amount] | None], Field(max_length=1000)] | None


class Origin(StrictModel):
    """Which images were scored, and how they were made; settings are dictionaries by stage, null for a given file."""

    source: Facts = Field(description="kind, name and sha256 of what the images come from; of a run also which.")
    low_res: Words | None = Field(default=None, description="The real images that were enlarged, in words, or null.")
    seed: int | None = Field(
        default=None, ge=0, lt=2**63, description="Of the samples' noise, and of the choice among given images."
    )
    precision: Name | None = Field(default=None, description="Of the networks while sampling.")
    evaluations: ByStage = Field(
        default=None, description="Evaluations of the denoiser an image; guidance is not counted."
    )
    passes: ByStage = Field(default=None, description="Forward passes an image, those of guidance included.")
    sampler: ByStage = Field(default=None, description="The sampler.")
    steps: ByStage = Field(default=None, description="Steps over the whole range.")
    s: Numbers = Field(default=None, description="Strength of the conditioning augmentation.")
    augmentation: ByStage = Field(default=None, description="truncated, nontruncated or none.")
    guidance: Numbers = Field(default=None, description="Classifier-free guidance, 1 is none.")
    guide: Numbers = Field(default=None, description="Autoguidance, 1 is none.")
    guidance_interval: Ends = Field(default=None, description="The sigmas between which guidance acts, or null.")
    grid: ByStage = Field(default=None, description="Which levels are visited: time, edm or log-snr.")
    sigma_range: Ends = Field(default=None, description="Last and first sigma of a grid not even in time.")
    rho: Numbers = Field(default=None, description="rho of an edm grid.")
    start: Numbers = Field(default=None, description="Time at which an SR stage starts from its enlarged input.")
    endpoints: Ends = Field(default=None, description="Ends of a sampling schedule of its own, or null.")
    clip: ByStage = Field(default=None, description="Whether predictions are clipped.")
    dynamic_threshold: Numbers = Field(default=None, description="Percentile clipped to instead, or null.")
    extension: ByStage = Field(default=None, description="Whether the sampling-step extension ran.")


class Provenance(Origin):
    """Everything that a score depends on; null where it does not apply."""

    n: _Count = Field(description="Number of samples.")
    resolution: _Side = Field(description="Side of the samples in pixels.")
    channels: Words = Field(description="Channels of samples and data, and how a difference was settled.")
    data: Words = Field(description="Name of what the real images came from.")
    split: Name | None = Field(default=None, description="Which of the real images were compared with.")
    reference_n: _Count | None = Field(default=None, description="Their number.")
    reference_hash: Name | None = Field(default=None, description="SHA-256 that stands for images and extractor.")
    reference_resolution: _Side | None = Field(default=None, description="Side of the real images in pixels.")
    extractor: Words | None = Field(default=None, description="Name of the feature extractor.")
    extractor_hash: Name | None = Field(default=None, description="SHA-256 of what decides its features.")
    resize: Words | None = Field(default=None, description="How images reach the extractor's size, in words.")
    dtype: Name | None = Field(default=None, description="The extractor's arithmetic.")
    versions: Hashes = Field(description="Of cascaded_diffusion and torch.")
    device: Words = Field(description="What it was computed on.")
    warnings: tuple[Words, ...] = Field(
        default=(), max_length=1000, description="What makes the score doubtful, in words."
    )


@dataclass(frozen=True)
class Score:
    """One number and what it depends on.

    Attributes:
        value: the score.
        provenance: all it depends on.
        standard_error: how much other samples of the same model would move it (of ``cas``, other test images and
            classifiers), or ``None`` where that is not known.
        note: one line that helps to read it, or nothing.
        extra: further results, such as ``per_class``; JSON values under names that provenance does not use.
    """

    value: float
    provenance: Provenance
    standard_error: float | None = None
    note: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what JSON could not hold, and names that would hide one another."""
        numbers = {"value": self.value, "standard_error": self.standard_error}
        for name, number in numbers.items():
            if number is not None and not math.isfinite(number):
                raise ValueError(f"{name}: {number} is not finite")
        if self.standard_error is not None and self.standard_error < 0:
            raise ValueError(f"standard_error: {self.standard_error:g} is not allowed; a number from 0 is")
        taken = {*numbers, "note", *Provenance.model_fields} & set(self.extra)
        if taken:
            raise ValueError(f"extra: {', '.join(sorted(taken))} would hide what a score has anyway")

    def to_json(self) -> dict[str, Any]:
        """One flat object: the value, its error, the extra results, and the provenance."""
        head = {"value": self.value, "standard_error": self.standard_error, "note": self.note}
        return head | dict(self.extra) | self.provenance.model_dump(mode="json")

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_json`; ``UserError`` for something else."""
        known = {key: inner for key, inner in value.items() if key in Provenance.model_fields}
        extra = {key: inner for key, inner in value.items() if key not in known}
        try:
            provenance = Provenance.model_validate(known)
            number, error, note = float(extra.pop("value")), extra.pop("standard_error", None), extra.pop("note", "")
            return cls(number, provenance, None if error is None else float(error), str(note), extra)
        except ValidationError as error:
            raise UserError(f"not a score: {explain(error)}") from None
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UserError(f"not a score: {type(error).__name__} {error}") from None


def scores_json(scores: Mapping[str, Score], **more: Any) -> dict[str, Any]:
    """The content of a scores file; ``more`` are top-level entries, such as ``checkpoints``."""
    return {"format_version": FORMAT_VERSION, "scores": {key: score.to_json() for key, score in scores.items()}, **more}


def write_scores(path: Path, scores: Mapping[str, Score], **more: Any) -> None:
    """Write a scores file, atomically."""
    write_json(path, scores_json(scores, **more))


def read_scores(path: Path) -> dict[str, Score]:
    """The scores of a file by key; ``UserError`` if it is none."""
    value = read_json(path)
    scores = value.get("scores") if isinstance(value, dict) else None
    if not isinstance(scores, dict) or not all(isinstance(inner, dict) for inner in scores.values()):
        raise UserError(f"{path}: not a scores file (no table scores in it); make one with cdm evaluate --json")
    try:
        return {key: Score.from_json(inner) for key, inner in scores.items()}
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


# -- to read ----------------------------------------------------------------------------------------------------------


def _figure(score: Score) -> str:
    """The value, to two digits of its error if that is known."""
    error = score.standard_error
    if error is None or error == 0:
        return f"{score.value:.4g}"
    places = max(1 - math.floor(math.log10(error)), 0)
    if places > 6:
        return f"{score.value:.3g} ± {error:.2g}"
    return f"{score.value:.{places}f} ± {error:.{places}f}"


def _short(text: str | None, length: int = 8) -> str:
    return "-" if text is None else text[:length]


def _shortened(text: str, width: int) -> str:
    """The beginning and the end of a name, which say what is measured and against which split."""
    return text if len(text) <= width else f"{text[: width - 12]}…{text[-11:]}"


def _row(key: str, score: Score) -> list[str]:
    about = score.provenance
    real = "-" if about.reference_n is None else f"{about.reference_n:,}"
    hashes = [_short(about.extractor_hash), _short(about.reference_hash)]
    return [key, _figure(score), f"{about.n:,}", about.split or "-", real, *hashes]


_MARK = "  best"
_SETTINGS = (
    *("steps", "augmentation", "s", "guidance", "guide", "guidance_interval", "grid", "start", "endpoints"),
    *("dynamic_threshold", "extension"),
)
_HEADER = ["score", "value", "samples", "split", "real", "features", "real hash"]


def _columns(rows: list[list[str]], left: Collection[int]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    ]


def describe_sampling(origin: Origin) -> str:
    """The sampling settings in words, ``""`` for images from a file."""
    parts = []
    for stage, sampler in (origin.sampler or {}).items():
        settings = {name: (getattr(origin, name) or {}).get(stage) for name in _SETTINGS}
        words = [f"{stage} {sampler} {settings['steps']} steps"]
        if settings["augmentation"] not in (None, "none"):
            words.append(f"{settings['augmentation']} s={settings['s'] or 0:g}")
        if settings["guidance"] not in (None, 1):
            words.append(f"guidance {settings['guidance']:g}")
        if settings["guide"] not in (None, 1):
            words.append(f"guide {settings['guide']:g}")
        if settings["guidance_interval"] is not None:
            words.append("guided at sigma {:g} to {:g}".format(*settings["guidance_interval"]))
        if settings["grid"] not in (None, "time"):
            words.append(f"{settings['grid']} grid")
        if settings["start"] is not None:
            words.append(f"from time {settings['start']:g}")
        if settings["endpoints"] is not None:
            words.append(f"endpoints {settings['endpoints'][0]:g} to {settings['endpoints'][1]:g}")
        if settings["dynamic_threshold"] is not None:
            words.append(f"threshold {settings['dynamic_threshold']:g}")
        words += ["extension"] if settings["extension"] else []
        parts.append(", ".join(words))
    return "; ".join(parts)


def _source(origin: Origin) -> str:
    source = origin.source
    details = [str(source[key]) for key in ("kind", "stage") if key in source]
    details += [f"{source['images']:,} images"] if "images" in source else []
    details += [f"ema {source['ema']}"] if "ema" in source else []
    details += [f"hash {_short(str(source['sha256']))}"] if source.get("sha256") else []
    return f"{source.get('name', 'images')} ({', '.join(details)})"


def _said_once(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(value for value in values if value))


def _facts(scores: Mapping[str, Score]) -> list[tuple[str, str]]:
    """What stands below the table: (word, text), each text once however many scores share it."""
    abouts = [score.provenance for score in scores.values()]
    extractors = (
        f"{about.extractor}, {about.resize}, {about.dtype}, hash {_short(about.extractor_hash)}"
        for about in abouts
        if about.extractor is not None
    )
    made = [f"seed {about.seed}, {about.precision}" if about.precision else "" for about in abouts]
    facts: list[tuple[str, Iterable[str]]] = [
        ("samples", (f"{_source(about)}, {about.resolution}x{about.resolution}" for about in abouts)),
        ("enlarged", (about.low_res or "" for about in abouts)),
        ("sampling", (describe_sampling(about) for about in abouts)),
        ("", made),
        ("features", extractors),
        ("real", (f"{about.data}; {about.channels}" for about in abouts)),
        ("made with", (", ".join([*(f"{k} {v}" for k, v in a.versions.items()), a.device]) for a in abouts)),
        ("note", (f"{key}: {score.note}" if score.note else "" for key, score in scores.items())),
    ]
    return [(word, text) for word, texts in facts for text in _said_once(texts)]


def warnings_of(scores: Mapping[str, Score]) -> list[str]:
    """Every warning once."""
    return _said_once(warning for score in scores.values() for warning in score.provenance.warnings)


def table(scores: Mapping[str, Score]) -> str:
    """Lines of at most 100 columns: a row for each score, and below what it depends on; warnings are left out."""
    rows = [_HEADER, *(_row(key, score) for key, score in scores.items())]
    room = WIDTH - sum(2 + max(map(len, column)) for column in list(zip(*rows, strict=True))[1:])
    rows = [[_shortened(row[0], max(room, 24)), *row[1:]] for row in rows]
    lines = _columns(rows, left={0, 3, 5, 6})
    for word, text in _facts(scores):
        wrapped = textwrap.wrap(text, WIDTH - 11, break_on_hyphens=False) or [""]
        lines += [f"{word if i == 0 else '':<11}{line}".rstrip() for i, line in enumerate(wrapped)]
    return "\n".join(lines)


def comparison(what: str, rows: Mapping[str, Mapping[str, Score]], *, best: str) -> str:
    """Several sets of scores side by side, as far as 100 columns reach; the row ``best`` is marked."""
    keys = list(dict.fromkeys(key for row in rows.values() for key in row))
    lines = []
    while keys:
        cells = [
            [what, *keys],
            *([name, *(_figure(row[key]) if key in row else "none" for key in keys)] for name, row in rows.items()),
        ]
        lines = _columns(cells, left=())
        if max(map(len, lines)) <= WIDTH - len(_MARK):
            break
        keys.pop()
    names = [what, *rows]
    return "\n".join(line + (_MARK if name == best else "") for name, line in zip(names, lines, strict=True))
