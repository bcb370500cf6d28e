"""Features of real images, found once for each extractor and kept in a cache."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cascaded_diffusion.cache import cache_folder
from cascaded_diffusion.data.packed import ImageRows
from cascaded_diffusion.data.prepared import PreparedData, Split
from cascaded_diffusion.evaluation.features import Extractor, extract
from cascaded_diffusion.evaluation.statistics import FeatureStatistics
from cascaded_diffusion.files import atomic_write
from cascaded_diffusion.ranks import current_ranks, gather_rows, on_main
from cascaded_diffusion.reading.archive import read_npz

__all__ = ["Reference", "reference", "reference_hash"]

FORMAT_VERSION = 1
# Statistics are gathered block by block: a million feature vectors need not be in memory for a mean and a covariance.
_BLOCK = 8192
_LARGEST = 2**36  # a cached file is the machine's own; what it holds was in memory once
_ARRAYS: dict[str, type[np.generic]] = {
    "key": np.str_,
    "count": np.int64,
    "total": np.float64,
    "outer": np.float64,
    "features": np.float32,
    "predicted": np.int64,
}


@dataclass(frozen=True, eq=False)
class Reference:
    """What scores need of real images.

    Attributes:
        split, resolution: which images.
        statistics: of the features of all images.
        features: float32 (N, D) in the order of the split, or ``None`` if nobody asked.
        predicted: int64 (N,), the class that the extractor's own classifier sees, or ``None`` if it has none.
        labels: int64 (N,), -1 without classes.
        hash: hexadecimal SHA-256 of extractor, images and format; the cache's key.
        remark: why the cache could not be used, or nothing.
    """

    split: str
    resolution: int
    statistics: FeatureStatistics
    features: Tensor | None
    predicted: Tensor | None
    labels: np.ndarray
    hash: str
    remark: str = ""

    @property
    def count(self) -> int:
        """Number of images."""
        return self.statistics.count


def reference_hash(data: PreparedData, split: str, resolution: int, extractor: Extractor) -> str:
    """Hexadecimal SHA-256 that changes with the extractor, the images, and how both become statistics."""
    images = data.manifest.files[data.manifest.images_file(split, resolution)]
    said = f"reference {FORMAT_VERSION}\nextractor {extractor.content_hash}\nimages {images}\n"
    return hashlib.sha256(said.encode()).hexdigest()


def reference(
    data: PreparedData,
    split: str,
    resolution: int,
    extractor: Extractor,
    *,
    need_features: bool = False,
    cache: Path | None = None,
    batch_size: int = 256,
    watch: Callable[[int, int], None] | None = None,
) -> Reference:
    """Features and statistics of a split's real images, from the cache if they are there.

    On several ranks each works on a share of the images, and all get the whole.

    Args:
        data: prepared data.
        split: ``train`` or ``val``.
        resolution: side in pixels, one of the data's.
        extractor: where features come from.
        need_features: whether the features themselves are wanted, not only their statistics.
        cache: folder to keep results in; ``None`` for :func:`cache_folder`. A file in it that is damaged or not its own
            is made anew; a folder that cannot be written is done without.
        batch_size: images handed to the extractor at once.
        watch: called with images done (of this rank's share) and their number, unless the cache has them.

    Raises:
        UserError: no such split or resolution.
    """
    chosen = data.split(split)
    images = chosen.images(resolution)
    key = reference_hash(data, split, resolution, extractor)
    path = (cache_folder() if cache is None else cache) / f"reference-{key}.npz"
    # One rank looks, so that all agree on whether there is work to share.
    look = current_ranks().is_main
    (known,) = on_main((_read(path, key, chosen, need_features) if look else None,))
    remark = ""
    if known is None:
        known = _measure(images, extractor, need_features, batch_size, watch)
        if current_ranks().is_main:
            remark = _write(path, key, known)
    statistics, features, predicted = known
    kept = features if need_features else None
    return Reference(split, resolution, statistics, kept, predicted, chosen.labels, key, remark)


_Known = tuple[FeatureStatistics, Tensor | None, Tensor | None]


def _measure(
    images: ImageRows,
    extractor: Extractor,
    need_features: bool,
    batch_size: int,
    watch: Callable[[int, int], None] | None,
) -> _Known:
    share = current_ranks().share(len(images))
    dimensions = extractor(np.asarray(images[:1])).features.shape[1]
    statistics = FeatureStatistics.empty(dimensions)
    features = [torch.empty(0, dimensions)]
    predicted: list[Tensor] = []
    for start in range(share.start, share.stop, _BLOCK):
        block = images[start : min(start + _BLOCK, share.stop)]
        told = None if watch is None else _shifted(watch, start - share.start, len(share))
        found = extract(extractor, block, batch_size=batch_size, watch=told)
        statistics = statistics.add(found.features)
        if need_features:
            features.append(found.features)
        if found.logits is not None:
            predicted.append(found.logits.argmax(dim=1))
    everyone = gather_rows(torch.cat([torch.empty(0, dtype=torch.int64), *predicted]))
    return (
        statistics.over_ranks(),
        gather_rows(torch.cat(features)) if need_features else None,
        everyone if len(everyone) else None,
    )


def _shifted(watch: Callable[[int, int], None], before: int, total: int) -> Callable[[int, int], None]:
    return lambda done, _: watch(before + done, total)


def _write(path: Path, key: str, known: _Known) -> str:
    """Keep a result; returns why that failed, or nothing."""
    statistics, features, predicted = known
    arrays: dict[str, Any] = {
        "key": np.array(key),
        "count": np.array(statistics.count),
        "total": statistics.total.numpy(),
        "outer": statistics.outer.numpy(),
    }
    if features is not None:
        arrays["features"] = features.numpy()
    if predicted is not None:
        arrays["predicted"] = predicted.numpy()
    try:
        with atomic_write(path) as file:
            np.savez(file, **arrays)
    except OSError as error:
        return f"{path.parent}: cannot keep the features of real images there ({error.strerror or error})"
    return ""


def _read(path: Path, key: str, split: Split, need_features: bool) -> _Known | None:
    """What the cache has under this key, or ``None`` if that is nothing, too little, damaged, or something else's."""
    try:
        held = read_npz(path, _ARRAYS, limit=_LARGEST)
        if str(_shaped(held["key"], ())) != key or int(_shaped(held["count"], ())) != len(split):
            return None
        dimensions = len(held["total"])
        statistics = FeatureStatistics(
            len(split),
            torch.from_numpy(_shaped(held["total"], (dimensions,))),
            torch.from_numpy(_shaped(held["outer"], (dimensions, dimensions))),
        )
        predicted = torch.from_numpy(_shaped(held["predicted"], (len(split),))) if "predicted" in held else None
        if not need_features:
            return statistics, None, predicted
        features = torch.from_numpy(_shaped(held["features"], (len(split), dimensions)))
    except (ValueError, KeyError, TypeError):  # a UserError is a ValueError
        return None
    return statistics, features, predicted


def _shaped(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if array.shape != shape:
        raise ValueError(f"{array.dtype} {array.shape}")
    return array
