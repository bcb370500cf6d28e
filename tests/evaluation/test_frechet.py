"""Frechet distance: by hand, in closed form, and against torchmetrics and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from cascaded_diffusion.evaluation.frechet import frechet_bootstrap, frechet_distance, frechet_replicates
from cascaded_diffusion.evaluation.statistics import FeatureStatistics


def features(count: int, dimensions: int, seed: int, *, smallest: float = 1e-3) -> Tensor:
    """Correlated, of differing scale (1 to ``smallest``), and away from 0, as real ones are."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dimensions, dimensions, generator=torch.Generator().manual_seed(99))
    scale = torch.logspace(0, math.log10(smallest), dimensions)
    drawn = torch.randn(count, dimensions, generator=generator) * scale
    return drawn @ mixing + 0.3 + 0.1 * seed * torch.randn(dimensions, generator=generator)


def distance(a: Tensor, b: Tensor) -> float:
    return frechet_distance(FeatureStatistics.of(a), FeatureStatistics.of(b))


class Same(nn.Module):
    """An extractor whose images are features already."""

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.num_features = dimensions

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_one_dimension_by_hand() -> None:
    # Means 1 and 4, standard deviations sqrt(2) and 2 sqrt(2): (4 - 1)^2 + (2 sqrt(2) - sqrt(2))^2.
    assert distance(torch.tensor([[0.0], [2]]), torch.tensor([[2.0], [6]])) == pytest.approx(9 + 2, rel=1e-14)


def test_gaussians_that_commute() -> None:
    """Diagonal covariances: the sum over dimensions of the one-dimensional distances."""
    corners = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    a, b = corners * torch.tensor([1.0, 3]), corners * torch.tensor([2.0, 5]) + torch.tensor([1.0, -2])
    # The unbiased variance of +-c over four points is 4/3 c^2.
    assert distance(a, b) == pytest.approx(1 + 4 + 4 / 3 * (1 + 4), rel=1e-14)


def test_agrees_with_torchmetrics() -> None:
    a, b = features(600, 24, 1), features(500, 24, 2)
    metric = FrechetInceptionDistance(feature=Same(24))
    metric.set_dtype(torch.float64)
    metric.update(a.double(), real=True)
    metric.update(b.double(), real=False)
    assert distance(a, b) == pytest.approx(metric.compute().item(), rel=1e-4)


@pytest.mark.parametrize("count", [400, 40])
def test_agrees_with_scipy(count: int) -> None:
    """On covariances that scipy can resolve: its root of a general matrix loses half the digits otherwise."""
    a, b = (features(count, 20, seed, smallest=0.1).double().numpy() for seed in (1, 3))
    root = scipy.linalg.sqrtm(np.cov(a, rowvar=False) @ np.cov(b, rowvar=False))
    shift = ((a.mean(0) - b.mean(0)) ** 2).sum()
    expected = shift + np.trace(np.cov(a, rowvar=False) + np.cov(b, rowvar=False) - 2 * root.real)
    assert distance(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("count, dimensions", [(500, 16), (20, 64), (2, 64), (64, 64)])
def test_a_set_is_at_no_distance_from_itself(count: int, dimensions: int) -> None:
    """Fewer samples than dimensions, too: there most eigenvalues are 0 but for rounding."""
    statistics = FeatureStatistics.of(features(count, dimensions, 1))
    assert 0 <= frechet_distance(statistics, statistics) <= 1e-11 * statistics.covariance.trace().item()


def test_a_dimension_that_never_moves() -> None:
    a, b = features(100, 5, 1), features(100, 5, 2)
    still = torch.zeros(100, 3)
    assert distance(torch.cat([a, still], 1), torch.cat([b, still], 1)) == pytest.approx(distance(a, b), rel=1e-9)


def test_few_samples_of_many_dimensions_gather_no_rounding() -> None:
    """Of ten points' covariance, 291 eigenvalues are 0: roots of their rounding, 1e-8 each, would show."""
    few, many = features(10, 300, 1).double().numpy(), features(900, 300, 2).double().numpy()
    factor = (few - few.mean(0)) / 3
    # The same trace by the other factorisation, 10 x 300, in which those eigenvalues do not appear.
    cross = np.linalg.svd(factor @ np.linalg.cholesky(np.cov(many, rowvar=False)), compute_uv=False).sum()
    traces = np.trace(np.cov(few, rowvar=False)) + np.trace(np.cov(many, rowvar=False))
    expected = ((few.mean(0) - many.mean(0)) ** 2).sum() + traces - 2 * cross
    assert distance(torch.from_numpy(few), torch.from_numpy(many)) == pytest.approx(expected, rel=1e-11)


def test_symmetric_and_free_of_scale() -> None:
    a, b = features(200, 12, 1), features(150, 12, 2)
    assert distance(a, b) == pytest.approx(distance(b, a), rel=1e-10)
    assert distance(a * 8, b * 8) == pytest.approx(64 * distance(a, b), rel=1e-10)


def test_grows_with_noise() -> None:
    x = features(2000, 12, 1)
    first, second = x[:1000], x[1000:]
    noise = torch.randn(1000, 12, generator=torch.Generator().manual_seed(7))
    distances = [distance(first, second + level * noise) for level in (0, 0.5, 1, 2, 4)]
    assert distances == sorted(distances)
    assert distances[-1] > 20 * distances[0]


@pytest.mark.parametrize("shift", [0.5, 3])
def test_bootstrap_tells_the_spread_of_fresh_sets(shift: float) -> None:
    reference = FeatureStatistics.of(features(4000, 6, 1))
    fresh = torch.randn(60, 300, 6, generator=torch.Generator().manual_seed(3)) + shift
    spread = np.std([frechet_distance(FeatureStatistics.of(x), reference) for x in fresh], ddof=1)
    estimates = [frechet_bootstrap(x, reference, rounds=40, seed=0) for x in fresh[:4]]
    assert np.mean(estimates) == pytest.approx(spread, rel=0.3)


def test_bootstrap_for_fewer_samples_than_dimensions() -> None:
    reference, x = FeatureStatistics.of(features(200, 24, 1)), features(12, 24, 2)
    # The same plane, seen without the dimensions that it lacks, takes the other branch.
    error = frechet_bootstrap(x, reference, rounds=10, seed=0)
    turn = torch.linalg.qr(torch.randn(24, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(5)))[0]
    turned = FeatureStatistics.of(features(200, 24, 1).double() @ turn)
    assert error > 0
    assert frechet_bootstrap(x.double() @ turn, turned, rounds=10, seed=0) == pytest.approx(error, rel=1e-6)


def test_bootstrap_draws_by_seed() -> None:
    reference, x = FeatureStatistics.of(features(100, 3, 1)), features(50, 3, 2)
    assert frechet_bootstrap(x, reference, seed=1) == frechet_bootstrap(x, reference, seed=1)
    assert frechet_bootstrap(x, reference, seed=1) != frechet_bootstrap(x, reference, seed=2)
    # A set of one repeated point has nothing to vary.
    assert frechet_bootstrap(x[:1].repeat(50, 1), reference, seed=1) == pytest.approx(0, abs=1e-7)


def test_wrong_input() -> None:
    a = FeatureStatistics.of(features(10, 3, 1))
    with pytest.raises(ValueError, match="Frechet distance: 3 and 4 dimensions"):
        frechet_distance(a, FeatureStatistics.of(features(10, 4, 1)))
    with pytest.raises(ValueError, match="1 samples, at least 2"):
        frechet_distance(a, FeatureStatistics.of(features(1, 3, 1)))
    with pytest.raises(ValueError, match="Frechet distance: 4 and 3 dimensions"):
        frechet_bootstrap(features(10, 4, 1), a, seed=0)
    with pytest.raises(ValueError, match="1 samples, at least 2"):
        frechet_bootstrap(features(1, 3, 1), a, seed=0)
    with pytest.raises(ValueError, match="rounds: 1"):
        frechet_bootstrap(features(10, 3, 1), a, rounds=1, seed=0)
    with pytest.raises(ValueError, match="NaN or infinity"):
        frechet_bootstrap(features(10, 3, 1) * float("nan"), a, seed=0)


def test_replicates_of_like_samples_move_together() -> None:
    make = torch.Generator().manual_seed(3)
    shared = torch.randn(400, 6, generator=make)
    reference = FeatureStatistics.of(torch.randn(2000, 6, generator=make))
    one, other = shared * 1.3 + 0.2, shared * 1.35 + 0.2
    a, b = (frechet_replicates(features, reference, rounds=30, seed=0) for features in (one, other))
    assert a.shape == (30,)
    assert torch.equal(a, frechet_replicates(one, reference, rounds=30, seed=0))
    assert float((a - b).std()) < 0.3 * float(a.std())
    shuffled = other[torch.randperm(400, generator=make)]
    strange = frechet_replicates(shuffled, reference, rounds=30, seed=0)
    assert float((a - strange).std()) > 0.7 * float(a.std())
