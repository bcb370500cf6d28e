"""Nearest neighbours among features, and what they say about copied training images."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from cascaded_diffusion.evaluation.statistics import checked_features, checked_pair

__all__ = ["CHUNK", "Memorisation", "Nearest", "Tile", "distance_tiles", "memorisation", "nearest", "squared_radii"]

#: Rows and columns of one tile of the distance matrix: 32 MiB in float64.
CHUNK = 2048
# The baseline without held-out images compares training images with one another; so many are enough for a percentile.
_MOST_LEFT_OUT = 10_000


@dataclass(frozen=True, eq=False)
class Nearest:
    """For every query: how far its nearest row of the base is, and which that is.

    Attributes:
        distance: float64 (N,), Euclidean.
        index: int64 (N,).
    """

    distance: Tensor
    index: Tensor


class Memorisation(NamedTuple):
    """How near samples lie to training images, next to how near other real images lie.

    Attributes:
        share: of samples at most ``threshold`` from their nearest training image, in [0, 1].
        median_ratio: the median distance of samples over that of real images; well below 1 means copies.
        threshold: the distance that ``quantile`` (1 %) of real images do not exceed.
        expected: the share of real images at most ``threshold`` away: what ``share`` is about without copying.
        baseline: which real images: ``held-out``, or training images each ``left-out`` of its own search.
        samples: number of samples.
        real: number of real images.
    """

    share: float
    median_ratio: float
    threshold: float
    expected: float
    baseline: Literal["held-out", "left-out"]
    samples: int
    real: int


class Tile(NamedTuple):
    """A part of the matrix of squared distances: its first row and column, and its values."""

    row: int
    column: int
    squared: Tensor


def _pieces(count: int, chunk: int) -> Iterator[slice]:
    if chunk < 1:
        raise ValueError(f"chunk: {chunk}, must be at least 1")
    return (slice(start, min(start + chunk, count)) for start in range(0, count, chunk))


def distance_tiles(queries: Tensor, base: Tensor, *, chunk: int = CHUNK) -> Iterator[Tile]:
    """Squared Euclidean distances (N, M) in tiles of at most ``chunk`` x ``chunk``, row after row, in float64.

    By |x|^2 + |y|^2 - 2 x.y, fast but with an error of some 1e-15 (|x|^2 + |y|^2); both sets are therefore taken
    relative to the mean of the base. Nothing is checked here.
    """
    centre = base.to(torch.float64).mean(dim=0)
    for rows in _pieces(len(queries), chunk):
        x = queries[rows].to(torch.float64) - centre
        for columns in _pieces(len(base), chunk):
            y = base[columns].to(torch.float64) - centre
            squared = torch.addmm(y.square().sum(dim=1), x, y.T, alpha=-2)
            squared += x.square().sum(dim=1)[:, None]
            yield Tile(rows.start, columns.start, squared.clamp_(min=0))


def _hide_self(tile: Tile, first: Tensor) -> None:
    """Make the distance of query i from base row ``first[i]`` infinite."""
    height, width = tile.squared.shape
    column = first[tile.row : tile.row + height] - tile.column
    here = (column >= 0) & (column < width)
    tile.squared[here.nonzero()[:, 0], column[here]] = torch.inf


def squared_radii(features: Tensor, neighbours: int, *, chunk: int = CHUNK) -> Tensor:
    """Squared distance of every row to its k-th nearest other row: (N, D) -> float64 (N,), k = ``neighbours`` < N."""
    if not 1 <= neighbours < len(features):
        raise ValueError(f"neighbours: {neighbours}, must be between 1 and {len(features) - 1}")
    own = torch.arange(len(features), device=features.device)
    best = torch.full((len(features), neighbours), torch.inf, dtype=torch.float64, device=features.device)
    for tile in distance_tiles(features, features, chunk=chunk):
        _hide_self(tile, own)
        rows = slice(tile.row, tile.row + len(tile.squared))
        best[rows] = torch.cat([best[rows], tile.squared], dim=1).topk(neighbours, largest=False).values
    return best.amax(dim=1)


def _nearest(queries: Tensor, base: Tensor, chunk: int, own: Tensor | None = None) -> Nearest:
    """Of checked features; ``own`` gives for each query the base row that it is itself, to be passed over."""
    squared = torch.full((len(queries),), torch.inf, dtype=torch.float64, device=queries.device)
    index = torch.zeros(len(queries), dtype=torch.int64, device=queries.device)
    for tile in distance_tiles(queries, base, chunk=chunk):
        if own is not None:
            _hide_self(tile, own)
        rows = slice(tile.row, tile.row + len(tile.squared))
        best, where = tile.squared.min(dim=1)
        closer = best < squared[rows]
        squared[rows] = torch.where(closer, best, squared[rows])
        index[rows] = torch.where(closer, where + tile.column, index[rows])
    # The exact distance of the one that was found: a copy's is 0, not the rounding of the sum of squares.
    distance = torch.cat([(queries[rows] - base[index[rows]]).norm(dim=1) for rows in _pieces(len(queries), chunk)])
    return Nearest(distance, index)


def nearest(queries: Tensor, base: Tensor, *, chunk: int = CHUNK) -> Nearest:
    """The nearest row of ``base`` to every query, by Euclidean distance.

    Args:
        queries: (N, D), N >= 1.
        base: (M, D), M >= 1.
        chunk: rows and columns handled at once; bounds memory, never changes which is nearest (but among equals).

    Raises:
        ValueError: D differs, an empty set, values that are not finite, or ``chunk`` < 1.
    """
    return _nearest(*checked_pair(queries, base, names=("features searched for", "features searched")), chunk)


def _baseline(train: Tensor, held_out: Tensor | None, chunk: int) -> Tensor:
    """Distances of real images from the training images that are not themselves."""
    if held_out is not None:
        return nearest(held_out, train, chunk=chunk).distance
    exact = checked_features(train, what="features of training images", least=2)
    step = math.ceil(len(exact) / _MOST_LEFT_OUT)
    own = torch.arange(0, len(exact), step, device=exact.device)
    return _nearest(exact[own], exact, chunk, own).distance


def memorisation(
    fake: Tensor, train: Tensor, held_out: Tensor | None = None, *, quantile: float = 0.01, chunk: int = CHUNK
) -> Memorisation:
    """Whether samples lie nearer to training images than real images that were not trained on do.

    The threshold is the smallest of the real distances that at least ``quantile`` of them do not exceed. Without
    held-out images, training images (at most 10,000, evenly spaced) stand in, each compared with the others; if the
    training set holds copies of its own images, the threshold is then too small to see a model's.

    Args:
        fake: (N, D), features of samples.
        train: (M, D), features of the images trained on.
        held_out: (L, D), features of real images that were not, or None.
        quantile: in (0, 1), share of the real images at most the threshold away.
        chunk: as for :func:`nearest`.

    Raises:
        ValueError: D differs, an empty set, values that are not finite, ``quantile`` out of range, or half of the real
            images being copies of training images, which leaves nothing to compare with.
    """
    if not 0 < quantile < 1:
        raise ValueError(f"quantile: {quantile}, must be between 0 and 1")
    samples = nearest(fake, train, chunk=chunk).distance
    real = _baseline(train, held_out, chunk)
    threshold = real.sort().values[math.ceil(quantile * len(real)) - 1]
    median = real.median()
    if median == 0:
        raise ValueError("memorisation: half of the real images compared with are copies of training images")
    return Memorisation(
        share=(samples <= threshold).double().mean().item(),
        median_ratio=(samples.median() / median).item(),
        threshold=threshold.item(),
        expected=(real <= threshold).double().mean().item(),
        baseline="left-out" if held_out is None else "held-out",
        samples=len(samples),
        real=len(real),
    )
