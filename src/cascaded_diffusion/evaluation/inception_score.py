"""The Inception score of a classifier's answers."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cascaded_diffusion.evaluation.statistics import checked_features

__all__ = ["InceptionScore", "inception_score"]


class InceptionScore(NamedTuple):
    """Mean and (population) standard deviation over the splits; between 1 and the number of classes."""

    mean: float
    std: float


def inception_score(logits: Tensor, *, splits: int = 10) -> InceptionScore:
    """exp(E_x KL(p(y|x) || p(y))), mean over splits: Salimans et al., 2016 (1606.03498), section 4.

    High when every image is of a class without doubt and the classes are evenly used; it never looks at real images.
    Splits are consecutive, as in the authors' code, so samples in the order of their classes must be shuffled first
    or scored with ``splits=1``.

    Args:
        logits: (N, K), N >= 2.
        splits: 10 in the paper; at most N.

    Raises:
        ValueError: fewer than 2 samples, values that are not finite, or ``splits`` outside [1, N].
    """
    exact = checked_features(logits, what="logits", least=2)
    count = len(exact)
    if not 1 <= splits <= count:
        raise ValueError(f"splits: {splits}, must be between 1 and the number of samples, {count}")
    # Logarithms throughout: a probability that underflows to 0 contributes 0, not NaN.
    log_p = torch.log_softmax(exact, dim=1)
    scores = torch.stack(
        [_score(log_p[count * part // splits : count * (part + 1) // splits]) for part in range(splits)]
    )
    return InceptionScore(scores.mean().item(), scores.std(correction=0).item())


def _score(log_p: Tensor) -> Tensor:
    marginal = log_p.logsumexp(dim=0) - torch.tensor(len(log_p)).to(log_p).log()
    return (log_p.exp() * (log_p - marginal)).sum(dim=1).mean().exp()
