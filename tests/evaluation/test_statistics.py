"""Mean and covariance gathered in parts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from cascaded_diffusion.evaluation.statistics import FeatureStatistics, checked_features, checked_pair


def features(count: int = 50, dimensions: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed))


def assert_same(a: FeatureStatistics, b: FeatureStatistics, relative: float = 1e-12) -> None:
    assert a.count == b.count
    torch.testing.assert_close(a.mean, b.mean, rtol=relative, atol=relative)
    torch.testing.assert_close(a.covariance, b.covariance, rtol=relative, atol=relative)


def test_three_points_by_hand() -> None:
    statistics = FeatureStatistics.of(torch.tensor([[0.0, 1], [2, 1], [4, 4]]))
    assert statistics.count == 3
    assert statistics.dimensions == 2
    assert statistics.mean.tolist() == [2, 2]
    # Deviations (-2, -1), (0, -1), (2, 2): sums of products 8, 6, 6 over N - 1 = 2.
    assert statistics.covariance.tolist() == [[4, 3], [3, 3]]


def test_agrees_with_numpy() -> None:
    x = features()
    statistics = FeatureStatistics.of(x)
    np.testing.assert_allclose(statistics.covariance.numpy(), np.cov(x.double().numpy(), rowvar=False), rtol=1e-12)
    np.testing.assert_allclose(statistics.mean.numpy(), x.double().numpy().mean(0), rtol=1e-12)


@pytest.mark.parametrize("sizes", [(50,), (1, 49), (20, 30), (0, 25, 0, 25), (1,) * 50])
def test_parts_make_the_whole(sizes: tuple[int, ...]) -> None:
    x = features()
    parts = x.split(list(sizes))
    batched = FeatureStatistics.empty(4)
    for part in parts:
        batched = batched.add(part)
    joined = FeatureStatistics.empty(4)
    for part in reversed(parts):
        joined = FeatureStatistics.of(part).merge(joined)
    assert_same(batched, FeatureStatistics.of(x))
    assert_same(joined, FeatureStatistics.of(x))


@pytest.mark.parametrize("shift", [1e4, 1e8])
def test_a_large_mean_costs_no_digits(shift: float) -> None:
    """Plain sums of products would lose 16 digits of the covariance at 1e8."""
    x = (features().double() * 1024).round() / 1024
    moved = FeatureStatistics.empty(4)
    for batch in (x + shift).split(7):
        moved = moved.add(batch)
    torch.testing.assert_close(moved.covariance, FeatureStatistics.of(x).covariance, rtol=0, atol=shift * 1e-13)
    plain = (x + shift).T @ (x + shift) / 49 - torch.outer((x + shift).mean(0), (x + shift).mean(0)) * 50 / 49
    if shift == 1e8:
        assert not torch.allclose(plain, moved.covariance, rtol=1e-3)


def test_one_process_is_all_ranks() -> None:
    statistics = FeatureStatistics.of(features())
    assert_same(statistics.over_ranks(), statistics)
    assert FeatureStatistics.empty(3).over_ranks().count == 0


def test_too_few_samples() -> None:
    with pytest.raises(ValueError, match="mean: 0 samples, at least 1 is needed"):
        _ = FeatureStatistics.empty(3).mean
    with pytest.raises(ValueError, match="covariance: 1 samples, at least 2 are needed"):
        _ = FeatureStatistics.of(features(1)).covariance


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_never_passes(value: float) -> None:
    x = features()
    x[7, 2] = x[9, 0] = value
    message = "2 of 50 rows hold NaN or infinity, the first is row 7"
    with pytest.raises(ValueError, match=message):
        FeatureStatistics.of(x)
    with pytest.raises(ValueError, match=message):
        FeatureStatistics.empty(4).add(x)
    good = FeatureStatistics.of(features())
    for total, outer in ((good.total * value, good.outer), (good.total, good.outer * value)):
        with pytest.raises(ValueError, match="NaN or infinity in the sums"):
            FeatureStatistics(good.count, total, outer)


def test_shapes_that_do_not_belong_together() -> None:
    good = FeatureStatistics.of(features())
    for count, total, outer in (
        (-1, good.total, good.outer),
        (5, good.total[:3], good.outer),
        (5, good.total, good.outer[:, 0]),
        (5, good.total[:0], good.outer[:0, :0]),
    ):
        with pytest.raises(ValueError, match="must be N >= 0"):
            FeatureStatistics(count, total, outer)
    with pytest.raises(ValueError, match=r"must be torch\.float64"):
        FeatureStatistics(5, good.total.float(), good.outer)
    with pytest.raises(ValueError, match="3 dimensions cannot be joined with 4"):
        good.merge(FeatureStatistics.empty(3))


def test_features_of_a_wrong_shape() -> None:
    for shape in ((3,), (3, 0), (3, 2, 1)):
        with pytest.raises(ValueError, match="must be"):
            checked_features(torch.zeros(shape))
    with pytest.raises(ValueError, match="logits: 1 samples, at least 2 are needed"):
        checked_features(torch.zeros(1, 2), what="logits", least=2)
    with pytest.raises(ValueError, match="b: 3 dimensions, a have 2"):
        checked_pair(torch.zeros(4, 2), torch.zeros(4, 3), names=("a", "b"))
