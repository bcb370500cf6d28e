"""Nearest neighbours against brute force and scikit-learn, and copies that are found out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from cascaded_diffusion.evaluation import neighbours
from cascaded_diffusion.evaluation.neighbours import memorisation, nearest, squared_radii


def features(count: int, seed: int, dimensions: int = 6) -> Tensor:
    return torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed)) + 3


def test_on_a_line_by_hand() -> None:
    found = nearest(torch.tensor([[0.0], [4.5], [10]]), torch.tensor([[1.0], [4], [6]]))
    assert found.index.tolist() == [0, 1, 2]
    assert found.distance.tolist() == [1, 0.5, 4]


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_agrees_with_scikit_learn(chunk: int) -> None:
    queries, base = features(40, 1), features(90, 2)
    distance, index = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(base.double()).kneighbors(queries.double())
    found = nearest(queries, base, chunk=chunk)
    np.testing.assert_array_equal(found.index.numpy(), index[:, 0])
    np.testing.assert_allclose(found.distance.numpy(), distance[:, 0], rtol=1e-9)


def test_a_copy_is_at_distance_zero() -> None:
    """Even far from the origin, where sums of squares are all rounding."""
    base = features(50, 1) + 1e4
    found = nearest(base[10:20], base)
    assert found.index.tolist() == list(range(10, 20))
    assert found.distance.tolist() == [0] * 10


@pytest.mark.parametrize("chunk", [7, 1000])
def test_radii_agree_with_scikit_learn(chunk: int) -> None:
    x = features(60, 1).double()
    distance, _ = NearestNeighbors(n_neighbors=4).fit(x).kneighbors(x)
    np.testing.assert_allclose(squared_radii(x, 3, chunk=chunk).sqrt().numpy(), distance[:, 3], rtol=1e-9)


def test_honest_samples_are_as_near_as_held_out_images() -> None:
    told = memorisation(features(1000, 1), features(500, 2), features(1000, 3))
    assert told.baseline == "held-out"
    assert (told.samples, told.real) == (1000, 1000)
    assert told.expected == 0.01
    assert told.share == pytest.approx(0.01, abs=0.012)
    assert told.median_ratio == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("held_out", [True, False])
def test_copies_are_found_out(held_out: bool) -> None:
    train = features(400, 2)
    copies = torch.cat([train[:50] + 1e-4, features(50, 1)])
    told = memorisation(copies, train, features(200, 3) if held_out else None)
    assert told.baseline == ("held-out" if held_out else "left-out")
    assert told.real == (200 if held_out else 400)
    assert told.share == pytest.approx(0.5, abs=0.05)
    assert memorisation(train, train, features(200, 3)).share == 1
    assert memorisation(train, train, features(200, 3)).median_ratio == 0


def test_median_ratio_by_hand() -> None:
    train = torch.tensor([[0.0], [100]])
    told = memorisation(torch.tensor([[1.0], [2], [3]]), train, torch.tensor([[4.0], [6], [110]]), quantile=0.5)
    # Real images lie 4, 6 and 10 away, samples 1, 2 and 3; two of three real images reach half.
    assert told.median_ratio == pytest.approx(2 / 6)
    assert told.threshold == 6
    assert told.expected == pytest.approx(2 / 3)
    assert told.share == 1


def test_left_out_training_images_are_thinned_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    train = torch.tensor([[0.0], [1], [10], [12], [20], [23]])
    monkeypatch.setattr(neighbours, "_MOST_LEFT_OUT", 3)
    told = memorisation(torch.tensor([[5.0]]), train, chunk=2)
    # Images 0, 2 and 4 are left out: 1, 2 and 3 to the next.
    assert (told.real, told.threshold) == (3, 1)
    assert told.median_ratio == pytest.approx(4 / 2)


def test_wrong_input() -> None:
    x = features(10, 1)
    with pytest.raises(ValueError, match="features searched: 5 dimensions, features searched for have 6"):
        nearest(x, features(10, 1, 5))
    with pytest.raises(ValueError, match="features searched: 0 samples"):
        nearest(x, x[:0])
    with pytest.raises(ValueError, match="features searched for: 10 of 10 rows hold NaN"):
        nearest(x * float("nan"), x)
    with pytest.raises(ValueError, match="chunk: 0"):
        nearest(x, x, chunk=0)
    with pytest.raises(ValueError, match="neighbours: 10, must be between 1 and 9"):
        squared_radii(x, 10)
    with pytest.raises(ValueError, match="quantile: 1"):
        memorisation(x, x, quantile=1)
    with pytest.raises(ValueError, match="half of the real images compared with are copies"):
        memorisation(x, x, x)
    with pytest.raises(ValueError, match="NaN"):
        memorisation(x, x, x * float("nan"))
    with pytest.raises(ValueError, match="training images: 1 samples, at least 2"):
        memorisation(x, x[:1])
