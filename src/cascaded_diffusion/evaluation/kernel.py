"""Kernel distance between two sets of features: KID where the features are Inception's.

Binkowski et al., "Demystifying MMD GANs", 2018 (1801.01401), section 4. Unlike the Frechet distance its expectation
does not depend on the number of samples, so it also serves few.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cascaded_diffusion.evaluation.statistics import checked_pair
from cascaded_diffusion.randomness import permutation

__all__ = ["KernelDistance", "kernel_distance", "polynomial_kernel", "unbiased_mmd"]

_NAMES = ("features of the first set", "features of the second set")


class KernelDistance(NamedTuple):
    """The squared maximum mean discrepancy (may fall below 0, for it is unbiased), and its standard error."""

    value: float
    standard_error: float


class _Estimate(NamedTuple):
    """Of one pair of subsets: MMD^2, and the jackknife's estimate of its variance, one part for each set."""

    value: Tensor
    variance: Tensor


def polynomial_kernel(x: Tensor, y: Tensor) -> Tensor:
    """(x . y / D + 1)^3 for every pair: (N, D), (M, D) -> (N, M); 1801.01401, section 4."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def _estimate(x: Tensor, y: Tensor) -> _Estimate:
    n, m = len(x), len(y)
    within_x, within_y, between = (polynomial_kernel(*pair) for pair in ((x, x), (y, y), (x, y)))
    # Without each sample's kernel with itself: that is what makes the estimate unbiased.
    rows_x = within_x.sum(dim=1) - within_x.diagonal()
    rows_y = within_y.sum(dim=1) - within_y.diagonal()
    cross_x, cross_y, cross = between.sum(dim=1), between.sum(dim=0), between.sum()
    sum_x, sum_y = rows_x.sum(), rows_y.sum()
    mean_x, mean_y = sum_x / (n * (n - 1)), sum_y / (m * (m - 1))
    value = mean_x + mean_y - 2 * cross / (n * m)
    if min(n, m) < 3:
        # Leaving one of two out leaves no pair, so the variance is unknown; only unbiased_mmd comes here.
        return _Estimate(value, torch.full((2,), torch.inf).to(value))
    without_x = (sum_x - 2 * rows_x) / ((n - 1) * (n - 2)) + mean_y - 2 * (cross - cross_x) / ((n - 1) * m)
    without_y = mean_x + (sum_y - 2 * rows_y) / ((m - 1) * (m - 2)) - 2 * (cross - cross_y) / (n * (m - 1))
    variance = [without.var(correction=0) * (len(without) - 1) for without in (without_x, without_y)]
    return _Estimate(value, torch.stack(variance))


def unbiased_mmd(x: Tensor, y: Tensor) -> float:
    """Unbiased MMD^2 of two sets under the polynomial kernel: Gretton et al., "A kernel two-sample test", 2012, eq. 3.

    Args:
        x: (N, D), N >= 2.
        y: (M, D), M >= 2.

    Raises:
        ValueError: D differs, fewer than 2 samples, or values that are not finite.
    """
    return _estimate(*checked_pair(x, y, names=_NAMES, least=2)).value.item()


def _subset(features: Tensor, size: int, number: int, seed: int, purpose: str) -> Tensor:
    """The ``number``-th subset: consecutive pieces of a random order, and of another order when that is used up."""
    pieces = len(features) // size
    order = permutation(seed, purpose, len(features), step=number // pieces)
    start = number % pieces * size
    return features[order[start : start + size].to(features.device)]


def kernel_distance(
    a: Tensor, b: Tensor, *, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> KernelDistance:
    """Mean of :func:`unbiased_mmd` over random subsets of both sets.

    The standard error is that of other samples, not merely of other subsets: the jackknife's variance of a subset's
    estimate (Efron and Stein, 1981), averaged over subsets and scaled from the subset's size to that of what the
    subsets cover of each set. The spread over subsets that papers print would be 0 for a set of one subset. Where both
    sets come from one distribution the variance falls faster than this scaling, and the error is too large.

    Args:
        a: (N, D), N >= 3.
        b: (M, D), M >= 3.
        subsets: their number, >= 1.
        subset_size: samples in each, >= 3; lowered to min(N, M).
        seed: of the draws.

    Raises:
        ValueError: D differs, too few samples, values that are not finite, or ``subsets``/``subset_size`` too small.
    """
    a, b = checked_pair(a, b, names=_NAMES, least=3)
    if subsets < 1 or subset_size < 3:
        raise ValueError(f"subsets: {subsets} of {subset_size} samples, must be at least 1 of at least 3")
    size = min(subset_size, len(a), len(b))
    if size == len(a) == len(b):
        # Every subset would be the whole.
        subsets = 1
    estimates = [
        _estimate(
            _subset(a, size, number, seed, "kernel distance, first set"),
            _subset(b, size, number, seed, "kernel distance, second set"),
        )
        for number in range(subsets)
    ]
    values = torch.stack([estimate.value for estimate in estimates])
    variance = torch.stack([estimate.variance for estimate in estimates]).mean(dim=0)
    covered = [min(subsets * size, len(features)) for features in (a, b)]
    scale = torch.tensor([size / count for count in covered]).to(variance)
    return KernelDistance(values.mean().item(), (variance * scale).sum().sqrt().item())
