"""What every residual block is told: the time, the class and the augmentation level, as one vector."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ClassEmbedding", "ScalarEmbedding", "sinusoid"]


def sinusoid(values: Tensor, width: int, max_period: float = 10000.0) -> Tensor:
    """Embed numbers ``values`` (N,) as cosines, then sines, of geometrically spaced frequencies: (N, width), float32.

    The frequencies are ``max_period ** (-i / half)`` for i in 0 ... half - 1, half = width // 2; an odd ``width`` gets
    one last column of zeros. Source: the embedding of DDPM (2006.11239), in the order that ADM uses.
    """
    half = width // 2
    steps = torch.arange(half, dtype=torch.float32, device=values.device)
    angles = values.float()[:, None] * torch.exp(steps * (-math.log(max_period) / max(half, 1)))
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, width - 2 * half))


class ScalarEmbedding(nn.Module):
    """A number for each image, by sinusoids and a two-layer perceptron: (N,) -> (N, out_width)."""

    def __init__(self, width: int, out_width: int, scale: float = 1.0) -> None:
        super().__init__()
        self.width = width
        self.scale = scale
        self.expand = nn.Linear(width, out_width)
        self.mix = nn.Linear(out_width, out_width)

    def forward(self, values: Tensor) -> Tensor:
        waves = sinusoid(values * self.scale, self.width).to(self.expand.weight.dtype)
        out: Tensor = self.mix(F.silu(self.expand(waves)))
        return out


class ClassEmbedding(nn.Module):
    """A learned vector for each class: labels (N,) int64 -> (N, out_width). Label -1 ("no class") gives zeros."""

    def __init__(self, classes: int, out_width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(classes, out_width)

    def forward(self, labels: Tensor) -> Tensor:
        vectors: Tensor = self.table(labels.clamp(min=0))
        # A product, not a choice by value: the graph stays the same whatever the labels are.
        return vectors * (labels >= 0).to(vectors.dtype)[:, None]
