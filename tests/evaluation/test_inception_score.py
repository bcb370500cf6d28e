"""The Inception score of answers whose score is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchmetrics.image.inception import InceptionScore as Theirs

from cascaded_diffusion.evaluation.inception_score import inception_score


def drawn(count: int = 100, classes: int = 7, seed: int = 0) -> Tensor:
    return 3 * torch.randn(count, classes, generator=torch.Generator().manual_seed(seed))


class Same(nn.Module):
    """A classifier whose images are logits already."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_two_answers_by_hand() -> None:
    p = torch.tensor([[0.75, 0.25], [0.25, 0.75]])
    # The marginal is (1/2, 1/2) and both divergences are equal.
    kl = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
    assert inception_score(p.log(), splits=1).mean == pytest.approx(np.exp(kl), rel=1e-6)


def test_from_one_to_the_number_of_classes() -> None:
    sure = 1000 * torch.eye(5).repeat(4, 1)
    assert inception_score(sure, splits=4) == pytest.approx((5, 0), abs=1e-9)
    assert inception_score(torch.zeros(20, 5), splits=2) == pytest.approx((1, 0), abs=1e-12)
    assert inception_score(sure[:1].repeat(20, 1), splits=2) == pytest.approx((1, 0), abs=1e-12)


def test_splits_are_consecutive() -> None:
    """Sorted by class, each split knows one class only."""
    sure = 1000 * torch.eye(5).repeat_interleave(4, dim=0)
    assert inception_score(sure, splits=5).mean == pytest.approx(1)
    # Splits of 6, 7 and 7 images, with 4+2, 2+4+1 and 3+4 of their classes.
    sizes = ([4, 2], [2, 4, 1], [3, 4])
    expected = [np.exp(-sum(n / sum(part) * np.log(n / sum(part)) for n in part)) for part in sizes]
    score = inception_score(sure, splits=3)
    assert score.mean == pytest.approx(np.mean(expected))
    assert score.std == pytest.approx(np.std(expected))


@pytest.mark.parametrize("splits", [1, 4])
def test_agrees_with_torchmetrics(splits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = drawn().double()
    with pytest.warns(UserWarning, match="save all extracted features"):
        metric = Theirs(feature=Same(), splits=splits)
    metric.update(logits)
    # It shuffles, and its deviation is the sample's.
    monkeypatch.setattr(torch, "randperm", torch.arange)
    ours = inception_score(logits, splits=splits)
    if splits == 1:
        with pytest.warns(UserWarning, match="degrees of freedom"):
            mean, _ = metric.compute()
    else:
        mean, std = metric.compute()
        assert ours.std == pytest.approx(std.item() * (3 / 4) ** 0.5, rel=1e-4)
    assert ours.mean == pytest.approx(mean.item(), rel=1e-4)


def test_certainty_raises_it_and_noise_lowers_it() -> None:
    logits = drawn(400)
    scores = [inception_score(logits * scale).mean for scale in (0.1, 0.5, 1, 3)]
    assert scores == sorted(scores)


def test_huge_logits_do_not_overflow() -> None:
    assert inception_score(1e6 * drawn(50), splits=1).mean < 7 + 1e-9


def test_wrong_input() -> None:
    with pytest.raises(ValueError, match="logits: 1 samples, at least 2"):
        inception_score(drawn(1))
    with pytest.raises(ValueError, match="splits: 10, must be between 1 and the number of samples, 9"):
        inception_score(drawn(9))
    with pytest.raises(ValueError, match="splits: 0"):
        inception_score(drawn(9), splits=0)
    with pytest.raises(ValueError, match="logits: 9 of 9 rows hold NaN"):
        inception_score(drawn(9) * float("nan"))
