r"""Power-function averages of the weights, and averages of any length made of snapshots after training.

EDM2 (2312.02696), section 3: the average at time t weighs the weights of time tau by the profile

.. math:: p_{t,\gamma}(\tau) = (\gamma + 1)\, \tau^\gamma / t^{\gamma+1}, \qquad 0 \le \tau \le t,

whose length grows with training. Its relative width sigma_rel, the profile's standard deviation over t, stands for
gamma (eq. 126 and section 3.1). Time is counted in images. Snapshots of two profiles, kept along the run, give any
other by least squares between profiles (section 3.2 and appendix C).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["WIDEST", "PowerAverages", "Profile", "Solution", "gamma_of", "power_name", "reconstruct", "sigma_rel_of"]

WIDEST = 0.288
"""Largest sigma_rel; gamma = 0, the plain mean of all weights, has 1/sqrt(12)."""


def sigma_rel_of(gamma: float) -> float:
    """Relative width of a profile: the standard deviation of a Beta(gamma + 1, 1)."""
    return float((gamma + 1) ** 0.5 / ((gamma + 2) * (gamma + 3) ** 0.5))


def gamma_of(sigma_rel: float) -> float:
    """The exponent whose profile has this relative width, in (0, 0.288]: the largest root of a cubic.

    (gamma + 2)^2 (gamma + 3) = (gamma + 1) / sigma_rel^2.
    """
    inverse = sigma_rel**-2
    roots = np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse])
    return float(roots[np.isreal(roots)].real.max())


def power_name(sigma_rel: float) -> str:
    """The average's name among a checkpoint's: ``power-0.05``."""
    return f"power-{sigma_rel:g}"


class PowerAverages:
    """Power-function averages of one network's parameters, in float32 beside it.

    Attributes:
        sigma_rels: their relative widths.
        weights: for each average's name, parameter name to tensor.
    """

    def __init__(self, network: nn.Module, sigma_rels: Sequence[float]) -> None:
        self.sigma_rels = tuple(sigma_rels)
        self._gammas = [gamma_of(sigma_rel) for sigma_rel in self.sigma_rels]
        self._source = {name: parameter.detach() for name, parameter in network.named_parameters()}
        self.weights = {
            power_name(sigma_rel): {name: value.clone().float() for name, value in self._source.items()}
            for sigma_rel in self.sigma_rels
        }

    @torch.no_grad()
    def update(self, batch_size: int, images_seen: int) -> None:
        """Take in the weights after a step of ``batch_size`` images, which ends at ``images_seen``.

        The decay (1 - batch/images)^(gamma + 1) makes it the exact integral of the profile over weights that stand
        still within a step; the first step's is 0, and the initial weights are forgotten.
        """
        source = list(self._source.values())
        for gamma, average in zip(self._gammas, self.weights.values(), strict=True):
            decay = (1 - batch_size / images_seen) ** (gamma + 1)
            torch._foreach_lerp_(list(average.values()), source, 1 - decay)

    def load(self, name: str, weights: Mapping[str, Tensor]) -> None:
        """Take up a saved average."""
        for key, value in self.weights[name].items():
            value.copy_(weights[key])


class Profile(NamedTuple):
    """What an average at ``images`` seen weighs: p of the module's text."""

    images: int
    gamma: float


class Solution(NamedTuple):
    """Coefficients of the snapshots, and the distance of their sum to the wanted profile, relative to its norm."""

    coefficients: list[float]
    error: float


def _inner(one: Profile, other: Profile, scale: int) -> float:
    """The integral of both profiles' product, times ``scale`` images: appendix C, with powers that cannot overflow."""
    least = min(one.images, other.images)
    powers = (least / one.images) ** one.gamma * (least / other.images) ** other.gamma
    weight = (one.gamma + 1) * (other.gamma + 1) / (one.gamma + other.gamma + 1)
    return float(weight * powers * (least / one.images) * (scale / other.images))


def reconstruct(snapshots: Sequence[Profile], wanted: Profile) -> Solution:
    """The sum of snapshots that is nearest to the wanted profile in the mean square, its coefficients adding up to 1.

    The paper leaves their sum free. But every profile adds up to 1, and weights are large beside the changes that an
    average is about, so that a hundredth missing would count for more than all the rest.
    """
    scale, count = wanted.images, len(snapshots)
    gram = np.array([[_inner(one, other, scale) for other in snapshots] for one in snapshots])
    right = np.array([_inner(one, wanted, scale) for one in snapshots])
    bordered = np.block([[gram, np.ones((count, 1))], [np.ones((1, count)), np.zeros((1, 1))]])
    coefficients = np.linalg.lstsq(bordered, np.append(right, 1.0), rcond=1e-12)[0][:count]
    norm = _inner(wanted, wanted, scale)
    squared = norm - 2 * coefficients @ right + coefficients @ gram @ coefficients
    return Solution(coefficients.tolist(), float(np.sqrt(max(squared, 0.0) / norm)))
