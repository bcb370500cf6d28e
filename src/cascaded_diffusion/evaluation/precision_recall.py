"""Precision (do samples look real?) and recall (are all kinds of real images made?)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cascaded_diffusion.evaluation.neighbours import CHUNK, distance_tiles, squared_radii
from cascaded_diffusion.evaluation.statistics import checked_pair

__all__ = ["PrecisionRecall", "precision_recall"]

# The error of the tiles relative to |x|^2 + |y|^2, with room: a point on a sphere's surface counts as inside.
_ROUNDING = 1e-12


class PrecisionRecall(NamedTuple):
    """Both in [0, 1]."""

    precision: float
    recall: float


def precision_recall(real: Tensor, fake: Tensor, *, neighbours: int = 3, chunk: int = CHUNK) -> PrecisionRecall:
    """Improved precision and recall: Kynkaanniemi et al., 2019 (1904.06991), eqs. 1 and 2.

    Around every point of a set lies a ball that reaches to its k-th nearest neighbour in that set; precision is the
    share of samples in some real image's ball, recall that of real images in some sample's. Both depend on the sizes
    of the sets, which should be equal (50,000 each in the paper).

    Args:
        real: (N, D), N > ``neighbours``.
        fake: (M, D), M > ``neighbours``.
        neighbours: k, 3 in the paper.
        chunk: rows and columns of distances handled at once; bounds memory, never changes the result.

    Raises:
        ValueError: D differs, too few samples, values that are not finite, ``neighbours`` or ``chunk`` < 1.
    """
    real, fake = checked_pair(real, fake, names=("features of real images", "features of samples"), least=2)
    smallest = min(len(real), len(fake))
    if not 1 <= neighbours < smallest:
        raise ValueError(f"neighbours: {neighbours}, must be between 1 and {smallest - 1}")
    return PrecisionRecall(_covered(fake, real, neighbours, chunk), _covered(real, fake, neighbours, chunk))


def _covered(points: Tensor, centres: Tensor, neighbours: int, chunk: int) -> float:
    """Share of points in the ball of at least one centre."""
    radius = squared_radii(centres, neighbours, chunk=chunk)
    middle = centres.mean(dim=0)
    slack_points, slack_centres = ((x - middle).square().sum(dim=1) * _ROUNDING for x in (points, centres))
    inside = torch.zeros(len(points), dtype=torch.bool, device=points.device)
    for tile in distance_tiles(points, centres, chunk=chunk):
        height, width = tile.squared.shape
        rows, columns = slice(tile.row, tile.row + height), slice(tile.column, tile.column + width)
        reach = radius[columns] + slack_centres[columns] + slack_points[rows, None]
        inside[rows] |= (tile.squared <= reach).any(dim=1)
    return inside.double().mean().item()
