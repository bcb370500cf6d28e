"""Kernel distance: by hand, against torchmetrics, unbiased, and with an error that means something."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchmetrics.image.kid import KernelInceptionDistance

from cascaded_diffusion.evaluation import kernel
from cascaded_diffusion.evaluation.kernel import kernel_distance, polynomial_kernel, unbiased_mmd


def features(count: int, dimensions: int = 8, seed: int = 0, shift: float = 0.0) -> Tensor:
    return torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed)) + shift


class Same(nn.Module):
    """An extractor whose images are features already."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_kernel_by_hand() -> None:
    assert polynomial_kernel(torch.tensor([[1.0, 2]]), torch.tensor([[3.0, 4], [0, 0]])).tolist() == [[6.5**3, 1]]


def test_pairs_by_hand() -> None:
    # One dimension: k(x, y) = (x y + 1)^3. Within {0, 1}: 1; within {1, 2}: 27; between: 1, 1, 8, 27.
    value = unbiased_mmd(torch.tensor([[0.0], [1]]), torch.tensor([[1.0], [2]]))
    assert value == pytest.approx(1 + 27 - 2 * 37 / 4, rel=1e-14)


def test_agrees_with_torchmetrics() -> None:
    a, b = features(60, seed=1), features(60, seed=2, shift=0.3)
    with pytest.warns(UserWarning, match="save all extracted features"):
        metric = KernelInceptionDistance(feature=Same(), subsets=1, subset_size=60)
    metric.update(a.double(), real=True)
    metric.update(b.double(), real=False)
    expected = metric.compute()[0].item()
    assert unbiased_mmd(a, b) == pytest.approx(expected, rel=1e-4)
    assert kernel_distance(a, b).value == pytest.approx(expected, rel=1e-4)


def test_subsets_agree_with_torchmetrics() -> None:
    a, b = features(600, seed=1), features(500, seed=2, shift=0.3)
    with pytest.warns(UserWarning, match="save all extracted features"):
        metric = KernelInceptionDistance(feature=Same(), subsets=50, subset_size=100)
    metric.update(a.double(), real=True)
    metric.update(b.double(), real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        mean, std = (value.item() for value in metric.compute())
    ours = kernel_distance(a, b, subsets=50, subset_size=100)
    assert ours.value == pytest.approx(mean, abs=4 * std / 50**0.5)
    assert ours.value == pytest.approx(unbiased_mmd(a, b), abs=4 * std / 50**0.5)


def test_subsets_of_one_order_do_not_overlap() -> None:
    x = torch.arange(10.0)[:, None]
    pieces = [kernel._subset(x, 3, number, 0, "a")[:, 0].tolist() for number in range(6)]
    assert len(set(itertools.chain(*pieces[:3]))) == 9
    assert len(set(itertools.chain(*pieces[3:]))) == 9
    assert pieces[0] != pieces[3]


def test_sizes_may_differ() -> None:
    a, b = features(30, seed=1), features(50, seed=2, shift=0.5)
    k_aa, k_bb, k_ab = (polynomial_kernel(x.double(), y.double()) for x, y in ((a, a), (b, b), (a, b)))
    pairs_a = [k_aa[i, j].item() for i, j in itertools.permutations(range(30), 2)]
    pairs_b = [k_bb[i, j].item() for i, j in itertools.permutations(range(50), 2)]
    expected = np.mean(pairs_a) + np.mean(pairs_b) - 2 * k_ab.mean().item()
    assert unbiased_mmd(a, b) == pytest.approx(expected, rel=1e-9)


def test_unbiased_whatever_the_size() -> None:
    """Over many sets of one distribution the mean is 0, so some values are negative."""
    values = np.array([unbiased_mmd(features(10, seed=2 * i), features(10, seed=2 * i + 1)) for i in range(400)])
    assert abs(values.mean()) < 4 * values.std() / 20
    assert (values < 0).any()


@pytest.mark.parametrize("size, subsets", [(100, 12), (300, 12), (60, 2)])
def test_standard_error_is_the_spread_of_fresh_sets(size: int, subsets: int) -> None:
    """Also where the only subset is the whole set, and its spread would be 0, and where two are a part of it."""
    results = [
        kernel_distance(
            features(300, seed=2 * i), features(300, seed=2 * i + 1, shift=0.5), subsets=subsets, subset_size=size
        )
        for i in range(60)
    ]
    spread = np.std([result.value for result in results], ddof=1)
    assert np.mean([result.standard_error for result in results]) == pytest.approx(spread, rel=0.1)


def test_jackknife_leaves_out_each_sample_in_turn() -> None:
    x, y = features(6, seed=1).double(), features(5, seed=2, shift=0.5).double()
    estimate = kernel._estimate(x, y)
    keep = [[j for j in range(6) if j != i] for i in range(6)]
    without_x = np.array([unbiased_mmd(x[rows], y) for rows in keep])
    without_y = np.array([unbiased_mmd(x, y[rows[:-1]]) for rows in ([j for j in k if j < 5] + [9] for k in keep[:5])])
    assert estimate.variance[0].item() == pytest.approx(5 / 6 * ((without_x - without_x.mean()) ** 2).sum(), rel=1e-9)
    assert estimate.variance[1].item() == pytest.approx(4 / 5 * ((without_y - without_y.mean()) ** 2).sum(), rel=1e-9)


def test_draws_by_seed() -> None:
    a, b = features(200, seed=1), features(100, seed=2, shift=0.3)
    first = kernel_distance(a, b, subsets=5, subset_size=40, seed=1)
    assert first == kernel_distance(a, b, subsets=5, subset_size=40, seed=1)
    assert first != kernel_distance(a, b, subsets=5, subset_size=40, seed=2)


def test_grows_with_noise() -> None:
    x = features(600)
    noise = features(300, seed=1)
    values = [kernel_distance(x[:300], x[300:] + level * noise).value for level in (0, 0.5, 1, 2)]
    assert values == sorted(values)
    assert abs(values[0]) < 0.01 * values[-1]


def test_wrong_input() -> None:
    x = features(10)
    for call in (unbiased_mmd, kernel_distance):
        with pytest.raises(ValueError, match="second set: 7 dimensions, features of the first set have 8"):
            call(x, features(10, 7))
        with pytest.raises(ValueError, match="first set: 1 samples, at least"):
            call(x[:1], x)
        with pytest.raises(ValueError, match="second set: 1 of 10 rows hold NaN"):
            call(x, torch.where(torch.arange(10)[:, None] == 3, float("nan"), x))
    with pytest.raises(ValueError, match="2 samples, at least 3"):
        kernel_distance(x, x[:2])
    for wrong in ({"subsets": 0}, {"subset_size": 2}):
        with pytest.raises(ValueError, match="subsets: "):
            kernel_distance(x, x, **wrong)
