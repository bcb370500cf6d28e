"""A search's folder: what was asked, the passes made so far, the scores, and the tables people read.

Every file appears under its name only when it is whole, so a search that is killed has lost no more than the pass it
was in. Nothing here depends on the time, or on how often a search was stopped: its files are those of one that never
was.
"""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import Field, ValidationError

from cascaded_diffusion.cascade.sampling import SamplingConfig
from cascaded_diffusion.cascade.search_points import Pass, Point
from cascaded_diffusion.config import Facts, Hashes, Name, StrictModel, Words, explain
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.files import atomic_write, read_json, write_json
from cascaded_diffusion.networks.compiling import CompileChoice
from cascaded_diffusion.precision import Precision
from cascaded_diffusion.reading.archive import read_npz
from cascaded_diffusion.samples import write_npz

__all__ = [
    "RECORD_FILE",
    "PointResult",
    "SearchRecord",
    "SearchRequest",
    "SearchStore",
    "StageResult",
    "difference_error",
]

RECORD_FILE = "search.json"
RESULTS_FILE = "results.csv"
_LARGEST = 2**36  # what it holds was in memory once

Model = TypeVar("Model", bound=StrictModel)
_STAGES = Field(max_length=16)
_Count = Annotated[int, Field(ge=1, le=10**12)]
_Distance = Annotated[float, Field(ge=-1e18, le=1e18)]


class SearchRequest(StrictModel):
    """What was asked. Two searches may share a folder only if all of this is equal."""

    points: Annotated[dict[Name, Annotated[tuple[Name, ...], Field(max_length=100_000)]], _STAGES] = Field(
        description="Stage to its points in words, in the order of the search."
    )
    fixed: Annotated[dict[Name, Facts], _STAGES] = Field(
        description="Settings that are not swept, of every stage that runs."
    )
    weights: Annotated[dict[Name, Hashes], _STAGES] = Field(
        description="SHA-256 of the files of every stage that runs."
    )
    num: int = Field(ge=2, le=10**12, description="Samples a point.")
    seed: int = Field(ge=0, lt=2**63, description="Of the samples; sample i has the same noise at every point.")
    split: Name = Field(description="The real images compared with.")
    features: Words = Field(description="Name of the features.")
    features_hash: Name = Field(description="SHA-256 of what computes them.")
    references: Hashes = Field(description="Searched stage to the hash of its real images' statistics.")
    precision: Precision = Field(description="Arithmetic of the networks.")
    compile: CompileChoice = Field(default="off", description="Whether sampling goes through torch.compile.")


class PointResult(StrictModel):
    """One point's score."""

    key: Name = Field(description="Name of the point's files.")
    label: Name = Field(description="The point in words.")
    stage: Name = Field(description="The searched stage.")
    settings: Annotated[dict[Name, SamplingConfig], _STAGES] = Field(description="Of every stage that ran.")
    evaluations: Annotated[dict[Name, Annotated[int, Field(ge=0, le=10**9)]], _STAGES] = Field(
        description="Network evaluations an image, of every stage that ran."
    )
    value: _Distance = Field(description="Frechet distance to the real images of the stage's resolution.")
    standard_error: float = Field(ge=0, le=1e18, description="Its standard error over samples, by bootstrap.")
    replicates: tuple[_Distance, ...] = Field(
        default=(),
        max_length=10_000,
        description="Its value for each resample; resample i draws the same samples at every point.",
    )
    n: _Count = Field(description="Samples.")
    dimensions: _Count = Field(description="Of the features.")
    reference_n: _Count = Field(description="Real images.")


def difference_error(a: PointResult, b: PointResult) -> float:
    """Standard error of the difference of two points' values.

    Points share classes and noise, so what moves one moves the other: the error is that of paired resamples.
    """
    pairs = list(zip(a.replicates, b.replicates, strict=False))
    if len(pairs) < 2:
        return math.hypot(a.standard_error, b.standard_error)
    return statistics.stdev(x - y for x, y in pairs)


class StageResult(StrictModel):
    """What is known of one stage."""

    stage: Name = Field(description="The searched stage.")
    swept: tuple[Name, ...] = Field(max_length=10, description="The settings that differ between its points.")
    passes: Annotated[dict[Name, Annotated[int, Field(ge=0, le=10**9)]], _STAGES] = Field(
        description="Times that all samples went through each stage for these points."
    )
    points: tuple[PointResult, ...] = Field(max_length=100_000, description="The points done so far.")
    best: Name | None = Field(description="Key of the best point; null while points are missing.")

    @property
    def winner(self) -> PointResult | None:
        """The best point, once all are done."""
        return next((point for point in self.points if point.key == self.best), None)


class SearchRecord(StrictModel):
    """The content of ``search.json``."""

    format_version: Literal[1] = Field(default=1, description="Version of this file's layout.")
    request: SearchRequest = Field(description="What was asked.")
    score: Name = Field(description="Name of the score, such as fd_fashion-mnist; lower is better.")
    provenance: Hashes = Field(description="Versions and device.")
    searched: tuple[StageResult, ...] = Field(
        default=(), max_length=16, description="Stages in the order in which they are searched."
    )


def _is_foreign(path: Path) -> bool:
    """Whether a file is not what a search leaves that died while it wrote its first one."""
    return not path.name.startswith(f".{RECORD_FILE}.")


class SearchStore:
    """The folder of one search."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def check(self, request: SearchRequest) -> None:
        """``UserError`` if the folder holds something else than (a part of) this search; it says what differs."""
        path = self.folder / RECORD_FILE
        if not path.exists():
            if self.folder.exists() and (not self.folder.is_dir() or any(map(_is_foreign, self.folder.iterdir()))):
                raise UserError(f"{self.folder}: already there and not a search's folder; choose another name")
            return
        differences = _differences(_read(path, SearchRecord).request, request)
        if differences:
            raise UserError(f"{self.folder}: holds another search ({differences}); choose another name for this one")

    def missing(self, points: Iterable[Point]) -> list[Pass]:
        """The passes that still have to be made for these points."""
        needed: dict[Pass, None] = {}
        for point in points:
            work: Pass | None = point.work
            if self.score_path(point).exists() or self.images_path(point).exists():
                continue
            while work is not None and (work is point.work or not self.lower_path(work).exists()):
                needed[work] = None
                work = work.below
        return list(needed)

    def lower_path(self, work: Pass) -> Path:
        """Where the outcome of a pass below the searched stage is kept."""
        return self.folder / "lower" / f"{work.key}.npz"

    def images_path(self, point: Point) -> Path:
        """Where a point's images are kept."""
        return self.folder / "points" / f"{point.key}.npz"

    def score_path(self, point: Point) -> Path:
        """Where a point's score is kept."""
        return self.folder / "points" / f"{point.key}.json"

    def save_lower(self, work: Pass, images: np.ndarray, labels: np.ndarray, carried: np.ndarray) -> None:
        """Keep what a stage hands on.

        Args:
            work: the pass.
            images: uint8 (N, r, r, C) to look at; of a stage that was stopped at s, its prediction of z_0.
            labels: int64 (N,).
            carried: float32 (N, C, r, r), what the next stage gets: z_0, or z_s. Not rounded, so that a point's images
                are those that ``cdm sample`` makes with its settings.
        """
        with atomic_write(self.lower_path(work)) as file:
            np.savez(file, arr_0=images, arr_1=labels, carried=carried)

    def load_lower(self, work: Pass, share: range) -> np.ndarray:
        """``carried`` of some of the samples."""
        # A copy, for a view would keep the samples of all processes in memory.
        return _array(self.lower_path(work), "carried", np.float32)[share.start : share.stop].copy()

    def save_images(self, point: Point, images: np.ndarray, labels: np.ndarray) -> None:
        """Keep a point's images in the form of any samples, which ``cdm evaluate`` reads too."""
        write_npz(self.images_path(point), images, labels)

    def load_images(self, point: Point, share: range) -> np.ndarray:
        """Some of a point's images: uint8 (n, R, R, C)."""
        return _array(self.images_path(point), "arr_0", np.uint8)[share.start : share.stop].copy()

    def score(self, point: Point) -> PointResult | None:
        """A point's score, if it has one."""
        path = self.score_path(point)
        return _read(path, PointResult) if path.exists() else None

    def save_score(self, point: Point, result: PointResult) -> None:
        """Keep a point's score; with this the point is done."""
        write_json(self.score_path(point), result.model_dump(mode="json"))

    def write(self, record: SearchRecord) -> None:
        """Write ``search.json`` and ``results.csv``."""
        write_json(self.folder / RECORD_FILE, record.model_dump(mode="json"))
        with atomic_write(self.folder / RESULTS_FILE) as file:
            file.write(_table(record).encode())


def _table(record: SearchRecord) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    settings = ["sampler", "steps", "guidance", "augmentation", "s", "endpoints", *_optional_columns(record)]
    writer.writerow(
        ["stage", "point", *settings, "evaluations", "score", "value", "standard_error", "n", "best", "file"]
    )
    for stage in record.searched:
        for point in stage.points:
            own = point.settings[point.stage].model_dump()
            for name in ("endpoints", "guidance_interval"):
                own[name] = "{:g}:{:g}".format(*own[name]) if own[name] else ""
            row = [point.stage, point.label, *(own[name] for name in settings), sum(point.evaluations.values())]
            best = "yes" if point.key == stage.best else ""
            writer.writerow([*row, record.score, point.value, point.standard_error, point.n, best, point.key])
    return text.getvalue()


def _optional_columns(record: SearchRecord) -> list[str]:
    """Settings that are off by default have a column where they do something, so that other tables stay narrow."""
    own = [point.settings[point.stage] for stage in record.searched for point in stage.points]
    fields = SamplingConfig.model_fields
    optional = ("start", "guide", "guidance_interval", "grid")
    return [name for name in optional if any(getattr(settings, name) != fields[name].default for settings in own)]


def _read(path: Path, model: type[Model]) -> Model:
    try:
        return model.model_validate(read_json(path))
    except ValidationError as error:
        raise UserError(f"{path}: {explain(error)}") from None


def _array(path: Path, name: str, dtype: type[np.generic]) -> np.ndarray:
    try:
        array = read_npz(path, {name: dtype}, limit=_LARGEST)[name]
        if array.ndim != 4:
            raise ValueError(f"{name} is {array.dtype} {array.shape}")
    except (ValueError, KeyError) as error:  # a UserError is a ValueError
        reason = str(error).removeprefix(f"{path}: ")
        raise UserError(f"{path}: damaged ({reason}); delete it, and the same command makes it again") from None
    return array


def _differences(there: SearchRequest, asked: SearchRequest) -> str:
    old, new = _flat(there.model_dump(mode="json")), _flat(asked.model_dump(mode="json"))
    keys = [key for key in dict.fromkeys((*old, *new)) if old.get(key) != new.get(key)]
    words = [_difference(key, old.get(key), new.get(key)) for key in keys[:3]]
    return "; ".join([*words, *([f"and {len(keys) - 3} more"] if len(keys) > 3 else [])])


def _difference(key: str, old: Any, new: Any) -> str:
    if isinstance(old, list) and isinstance(new, list):
        sides = (("there", _only(old, new)), ("asked", _only(new, old)))
        return f"{key}: " + (", ".join(f"only {side} {what}" for side, what in sides if what) or "another order")
    return f"{key}: {_short(old)} there, {_short(new)} asked"


def _only(values: Sequence[Any], others: Sequence[Any]) -> str:
    extra = [str(value) for value in values if value not in others]
    return " / ".join([*extra[:3], *(["..."] if len(extra) > 3 else [])])


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 32 else f"{text[:12]}..."


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {path: value}
    parts = [_flat(inner, f"{path}.{key}" if path else key) for key, inner in value.items()]
    return {key: leaf for part in parts for key, leaf in part.items()}
