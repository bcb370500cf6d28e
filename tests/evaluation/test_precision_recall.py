"""Precision and recall by hand and against scikit-learn's neighbours."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from cascaded_diffusion.evaluation.precision_recall import precision_recall


def features(count: int, seed: int, dimensions: int = 4) -> Tensor:
    return torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed))


def brute(points: Tensor, centres: Tensor, k: int) -> float:
    """Share of points in some centre's ball, one pair after the other."""
    c, p = centres.double().numpy(), points.double().numpy()
    radius = NearestNeighbors(n_neighbors=k + 1).fit(c).kneighbors(c)[0][:, k]
    return float(np.mean([(np.linalg.norm(c - point, axis=1) <= radius).any() for point in p]))


def test_on_a_line_by_hand() -> None:
    real = torch.tensor([[0.0], [1], [3]])
    fake = torch.tensor([[2.0], [4], [10], [11]])
    # k = 1. Balls of real: 0+-1, 1+-1, 3+-2, holding 2 and 4. Balls of fake: 2+-2, 4+-2, 10+-1, 11+-1, holding all.
    assert precision_recall(real, fake, neighbours=1) == (0.5, 1)
    # k = 2. Balls of real: 0+-3, 1+-2, 3+-3. Of fake: 2+-8, 4+-6, 10+-6, 11+-7.
    assert precision_recall(real, fake, neighbours=2) == (0.5, 1)
    assert precision_recall(fake, real, neighbours=1) == (1, 0.5)


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("chunk", [13, 2048])
def test_agrees_with_scikit_learn(k: int, chunk: int) -> None:
    real, fake = features(80, 1), features(60, 2) * 1.3 + 0.4
    found = precision_recall(real, fake, neighbours=k, chunk=chunk)
    assert found == (brute(fake, real, k), brute(real, fake, k))
    assert 0 < found.precision < 1
    assert 0 < found.recall < 1


def test_a_point_on_the_sphere_is_inside() -> None:
    """Whatever rounding makes of a turned grid far from the origin, where every distance is a tie."""
    grid = torch.cartesian_prod(*3 * [torch.arange(4.0)]).double() / 10 + 7
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    moved = grid + torch.tensor([0.1, 0, 0], dtype=torch.float64)
    assert precision_recall(grid @ turn, moved @ turn, neighbours=3) == (1, 1)


def test_the_same_set_twice() -> None:
    x = features(50, 1)
    assert precision_recall(x, x) == (1, 1)
    assert precision_recall(x, x[torch.randperm(50, generator=torch.Generator().manual_seed(0))]) == (1, 1)


def test_missing_kinds_cost_recall_and_noise_costs_precision() -> None:
    kinds = torch.arange(4).repeat_interleave(50)[:, None] * 100
    real = features(200, 1) + kinds
    assert precision_recall(real, features(100, 2) + kinds[:100]).recall < 0.6
    assert precision_recall(real, features(100, 2) + kinds[:100]).precision > 0.7
    noisy = precision_recall(real, 30 * features(200, 3) + kinds)
    assert noisy.precision < 0.1


def test_one_sample_repeated_has_no_recall() -> None:
    real = features(100, 1)
    found = precision_recall(real, real[:1].repeat(100, 1))
    assert found.precision == 1
    assert found.recall == 0.01


def test_wrong_input() -> None:
    x = features(10, 1)
    with pytest.raises(ValueError, match="features of samples: 5 dimensions, features of real images have 4"):
        precision_recall(x, features(10, 1, 5))
    with pytest.raises(ValueError, match="neighbours: 3, must be between 1 and 2"):
        precision_recall(x, x[:3])
    with pytest.raises(ValueError, match="neighbours: 0"):
        precision_recall(x, x, neighbours=0)
    with pytest.raises(ValueError, match="features of samples: 1 samples, at least 2"):
        precision_recall(x, x[:1])
    with pytest.raises(ValueError, match="features of real images: 10 of 10 rows hold NaN"):
        precision_recall(x * float("inf"), x)
