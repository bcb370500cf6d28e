"""Frechet distance between two sets of features: FID where the features are Inception's, FD elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor

from cascaded_diffusion.evaluation.statistics import FeatureStatistics, checked_features
from cascaded_diffusion.randomness import uniform

__all__ = ["frechet_bootstrap", "frechet_distance", "frechet_replicates"]


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)): Heusel et al., 2017 (1706.08500), eq. 6.

    The last trace is that of the root of the symmetric S_a^(1/2) S_b S_a^(1/2), so the sum of the singular values of
    R_a^T R_b for any roots S = R R^T. Taken so, and not as roots of eigenvalues, rounding stays rounding: the root of
    an eigenvalue that should be 0 and is 1e-16 would be 1e-8, times the number of dimensions.

    The distance is biased: with fewer samples it is larger. Compare only values of equal N.

    Returns:
        The squared distance, >= 0; symmetric in its arguments.

    Raises:
        ValueError: D differs, or fewer than 2 features in a set.
    """
    if a.dimensions != b.dimensions:
        raise ValueError(f"Frechet distance: {a.dimensions} and {b.dimensions} dimensions, must be equal")
    shift = (a.mean - b.mean).square().sum()
    traces = a.covariance.trace() + b.covariance.trace()
    cross = torch.linalg.svdvals(_root(a).T @ _root(b)).sum()
    return max(0.0, float(shift + traces - 2 * cross))


def _root(statistics: FeatureStatistics) -> Tensor:
    """R of (D, min(D, N - 1)) with R R^T = covariance."""
    values, vectors = torch.linalg.eigh(statistics.covariance)
    # N points span at most N - 1 dimensions: what eigh finds beyond is rounding.
    rank = min(statistics.dimensions, statistics.count - 1)
    root: Tensor = vectors[:, -rank:] * values[-rank:].clamp(min=0).sqrt()
    return root


def frechet_bootstrap(features: Tensor, reference: FeatureStatistics, *, rounds: int = 20, seed: int) -> float:
    """Standard error of the Frechet distance of ``features`` from ``reference``; arguments as for the replicates."""
    return frechet_replicates(features, reference, rounds=rounds, seed=seed).std().item()


def frechet_replicates(features: Tensor, reference: FeatureStatistics, *, rounds: int = 20, seed: int) -> Tensor:
    """Frechet distances of resamples of ``features`` from ``reference``: float64 (rounds,).

    Their spread says how much the value would move with other samples of the same model; the reference is taken as
    fixed. (The resampled distances themselves are larger than the distance, as those of a smaller sample would be; only
    their spread is used.) Efron, "Bootstrap methods: another look at the jackknife", 1979.

    Row i is drawn equally often from every set of N rows. For two sets made of the same noise and classes, the spread
    of the difference of their replicates is thus the standard error of the difference, with what they share taken out.

    Args:
        features: (N, D), N >= 2.
        reference: of the real images.
        rounds: resamples, >= 2.
        seed: of the draws.

    Raises:
        ValueError: as for :func:`frechet_distance`, values that are not finite, or fewer than 2 rounds.
    """
    exact = checked_features(features, least=2)
    if rounds < 2:
        raise ValueError(f"rounds: {rounds}, must be at least 2")
    if exact.shape[1] != reference.dimensions:
        raise ValueError(f"Frechet distance: {exact.shape[1]} and {reference.dimensions} dimensions, must be equal")
    count = len(exact)
    # Centred once, so that weighted plain sums are as good as centred ones.
    centre = exact.mean(dim=0)
    exact = exact - centre
    root, constant = _root(reference), reference.covariance.trace()
    distances = []
    for step in range(rounds):
        draws = (uniform(seed, "frechet bootstrap", torch.arange(count), step=step) * count).to(torch.int64)
        weights = torch.bincount(draws, minlength=count).to(exact)[:, None]
        mean = (weights * exact).sum(dim=0) / count
        deviation = (exact - mean) * weights.sqrt()
        shift = (centre + mean - reference.mean).square().sum()
        trace = deviation.square().sum() / (count - 1) + constant
        distances.append(shift + trace - 2 * _cross(deviation / (count - 1) ** 0.5, root))
    return torch.stack(distances)


def _cross(factor: Tensor, root: Tensor) -> Tensor:
    """tr (S_a S_b)^(1/2) for S_a = factor^T factor, (N, D), and S_b = root root^T, (D, K).

    By eigenvalues of the smaller Gram matrix: half the time of singular values, and a spread needs no 9 digits.
    """
    if factor.shape[0] >= factor.shape[1]:
        gram = root.T @ (factor.T @ factor) @ root
    else:
        gram = factor @ root
        gram = gram @ gram.T
    values: Tensor = torch.linalg.eigvalsh(gram)
    return values.clamp(min=0).sqrt().sum()
