"""Mean and covariance of features, gathered batch by batch and rank by rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from cascaded_diffusion.ranks import add_up

__all__ = ["FeatureStatistics", "checked_features", "checked_pair"]


def checked_features(features: Tensor, *, what: str = "features", least: int = 1) -> Tensor:
    """``features`` as float64 (N, D), or the reason why they cannot be measured.

    Args:
        features: (N, D) of any real type.
        what: their name in the error.
        least: the smallest N allowed.

    Raises:
        ValueError: not two-dimensional, D = 0, fewer than ``least`` rows, or values that are not finite.
    """
    if features.dim() != 2 or features.shape[1] == 0:
        raise ValueError(f"{what}: shape {tuple(features.shape)}, must be (N, D) with D >= 1")
    if features.shape[0] < least:
        raise ValueError(f"{what}: {features.shape[0]} samples, at least {least} are needed")
    exact = features.detach().to(torch.float64)
    finite = torch.isfinite(exact).all(dim=1)
    if not finite.all():
        bad = int((~finite).sum())
        first = int((~finite).to(torch.int8).argmax())
        raise ValueError(f"{what}: {bad} of {len(exact)} rows hold NaN or infinity, the first is row {first}")
    return exact


def checked_pair(first: Tensor, second: Tensor, *, names: tuple[str, str], least: int = 1) -> tuple[Tensor, Tensor]:
    """Both of :func:`checked_features`, of one D.

    Raises:
        ValueError: as there, or the numbers of dimensions differ.
    """
    a, b = (checked_features(x, what=name, least=least) for x, name in zip((first, second), names))
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"{names[1]}: {b.shape[1]} dimensions, {names[0]} have {a.shape[1]}")
    return a, b


@dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """Sums from which the mean and the covariance of N features follow.

    ``outer`` is centred, not the plain sum of x x^T: subtracting N mean mean^T from that afterwards would lose every
    digit of the covariance when the mean is large. Parts are joined by the pairwise update of Chan, Golub and LeVeque
    ("Updating formulae and a pairwise algorithm for computing sample variances", 1979).

    Attributes:
        count: N.
        total: float64 (D,), the sum of the features.
        outer: float64 (D, D), the sum of (x - mean) (x - mean)^T with the mean of these N.

    Raises:
        ValueError: the shapes or types do not belong together, or values are not finite.
    """

    count: int
    total: Tensor
    outer: Tensor

    def __post_init__(self) -> None:
        """Statistics read from a file come this way too."""
        size = self.total.numel()
        if self.count < 0 or self.total.shape != (size,) or self.outer.shape != (size, size) or size == 0:
            shapes = f"total {tuple(self.total.shape)}, outer {tuple(self.outer.shape)}"
            raise ValueError(f"statistics: {self.count} features, {shapes}; must be N >= 0, (D,) and (D, D)")
        if self.total.dtype != torch.float64 or self.outer.dtype != torch.float64:
            raise ValueError(f"statistics: types {self.total.dtype} and {self.outer.dtype}, must be torch.float64")
        if not (torch.isfinite(self.total).all() and torch.isfinite(self.outer).all()):
            raise ValueError("statistics: NaN or infinity in the sums")

    @classmethod
    def empty(cls, dimensions: int) -> Self:
        """Of no features yet, D = ``dimensions``."""
        zeros = torch.zeros(dimensions, dtype=torch.float64)
        return cls(0, zeros, torch.zeros(dimensions, dimensions, dtype=torch.float64))

    @classmethod
    def of(cls, features: Tensor) -> Self:
        """Of features (N, D); N = 0 is allowed, values that are not finite raise ValueError."""
        exact = checked_features(features, least=0)
        total = exact.sum(dim=0)
        centred = exact - total / max(len(exact), 1)
        return cls(len(exact), total, centred.T @ centred)

    @property
    def dimensions(self) -> int:
        """D."""
        return self.total.numel()

    @property
    def mean(self) -> Tensor:
        """float64 (D,); ValueError without any feature."""
        if self.count < 1:
            raise ValueError("mean: 0 samples, at least 1 is needed")
        return self.total / self.count

    @property
    def covariance(self) -> Tensor:
        """float64 (D, D), unbiased (divided by N - 1); ValueError for fewer than 2 features."""
        if self.count < 2:
            raise ValueError(f"covariance: {self.count} samples, at least 2 are needed")
        return self.outer / (self.count - 1)

    def add(self, features: Tensor) -> Self:
        """These and a batch (N, D) more."""
        return self.merge(type(self).of(features))

    def merge(self, other: FeatureStatistics) -> Self:
        """Of both sets together; ValueError if D differs."""
        if other.dimensions != self.dimensions:
            raise ValueError(f"statistics: {other.dimensions} dimensions cannot be joined with {self.dimensions}")
        count = self.count + other.count
        outer = self.outer + other.outer
        if self.count and other.count:
            step = other.mean - self.mean
            outer = outer + torch.outer(step, step) * (self.count * other.count / count)
        return type(self)(count, self.total + other.total, outer)

    def over_ranks(self) -> Self:
        """Of the features of all processes together, on every process."""
        count = int(add_up(torch.tensor([self.count])).item())
        total = add_up(self.total)
        outer = self.outer
        if self.count:
            # Each rank moves its sum from its own mean to everybody's; after that plain sums are enough.
            step = self.mean - total / count
            outer = outer + torch.outer(step, step) * self.count
        return type(self)(count, total, add_up(outer))
