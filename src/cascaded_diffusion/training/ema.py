"""Exponential moving averages of the weights, their lengths given as half-lives in images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

__all__ = ["Averages", "ema_decay"]


def ema_decay(half_life: float, batch_size: int, images_seen: int, rampup: float | None) -> float:
    """The decay of one step, 0.5^(batch / half-life).

    A decay of 0.9999 at batch 2048 (CDM) is a half-life of 14.2 million images. With ``rampup`` it is at most
    that share of the images seen, so that early averages forget the initial weights (EDM, 2206.00364, appendix F.2).
    """
    if rampup is not None:
        half_life = min(half_life, images_seen * rampup)
    return float(0.5 ** (batch_size / max(half_life, 1e-8)))


class Averages:
    """Several averages of one network's parameters, kept in float32 beside it and never inside it.

    Attributes:
        half_lives: in images; the first is the default for sampling.
        weights: for each half-life, parameter name to tensor.
    """

    def __init__(self, network: nn.Module, half_lives: Sequence[int], rampup: float | None) -> None:
        self.half_lives = tuple(half_lives)
        self._rampup = rampup
        self._source = {name: parameter.detach() for name, parameter in network.named_parameters()}
        self.weights = {
            half_life: {name: value.clone().float() for name, value in self._source.items()}
            for half_life in self.half_lives
        }

    @torch.no_grad()
    def update(self, batch_size: int, images_seen: int) -> None:
        """Move every average towards the network's weights after a step of ``batch_size`` images."""
        source = list(self._source.values())
        for half_life, average in self.weights.items():
            decay = ema_decay(half_life, batch_size, images_seen, self._rampup)
            torch._foreach_lerp_(list(average.values()), source, 1 - decay)

    def load(self, half_life: int, weights: Mapping[str, Tensor]) -> None:
        """Take up a saved average."""
        for name, value in self.weights[half_life].items():
            value.copy_(weights[name])
