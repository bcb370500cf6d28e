"""The parts of the U-Net: residual block, self-attention, resampling, and the levels that hold them.

Shapes: images are (N, C, H, W), best in ``torch.channels_last`` memory format, which every part keeps;
``signal`` is the activated sum of all embeddings, (N, E).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "AttentionOrder",
    "DecoderLevel",
    "Direction",
    "EncoderLevel",
    "GroupNorm",
    "Head",
    "Middle",
    "Resampling",
    "ResidualBlock",
    "SelfAttention",
    "Unit",
    "group_norm",
    "resize_by_two",
    "zeroed",
]

AttentionOrder = Literal["heads-first", "qkv-first"]
Direction = Literal["down", "up"]

_GROUPS = 32


_LARGE = 64 * 64
"""Pixels from which GroupNorm takes its own sums on a CPU."""

_STRIP = 2**17
"""Numbers that it squares at once; they stay in the processor's cache."""


class GroupNorm(nn.GroupNorm):
    """Group normalisation that is as exact on large images as on small ones.

    On a CPU, torch adds up float32 images in channels_last one pixel after the other: answers are off by about 4e-5 at
    256x256 pixels and 2e-4 at 512x512. Here rows are added up first, then their means.
    """

    def forward(self, x: Tensor) -> Tensor:
        height, columns = x.shape[2:]
        if x.device.type != "cpu" or x.dtype != torch.float32 or height * columns < _LARGE:
            return super().forward(x)
        pixels = x.permute(0, 2, 3, 1)
        mean = _of_groups(pixels.mean(2).mean(1), self.num_groups)
        strips = pixels.split(max(_STRIP // (len(x) * columns * x.shape[1]), 1), dim=1)
        squares = [(strip - mean[:, None, None]).square_().mean(2) for strip in strips]
        variance = _of_groups(torch.cat(squares, dim=1).mean(1), self.num_groups)
        scale = (variance + self.eps).rsqrt() * self.weight
        shift = self.bias - mean * scale
        return torch.addcmul(shift[:, :, None, None], x, scale[:, :, None, None])


def _of_groups(means: Tensor, groups: int) -> Tensor:
    """The mean of each channel's group in the place of the channel's own: (N, C) -> (N, C)."""
    n, width = means.shape
    return means.view(n, groups, -1).mean(2, keepdim=True).expand(-1, -1, width // groups).reshape(n, width)


def group_norm(width: int) -> nn.GroupNorm:
    """Group normalisation with 32 groups, or as many as both 32 and ``width`` are multiples of."""
    return GroupNorm(math.gcd(_GROUPS, width), width)


def zeroed(module: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    """Set weight and bias to zero: the branch that ends here starts as no change at all."""
    nn.init.zeros_(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
    return module


def resize_by_two(x: Tensor, direction: Direction) -> Tensor:
    """Halve the resolution by 2x2 means, or double it by repetition."""
    if direction == "down":
        return F.avg_pool2d(x, 2)
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class ResidualBlock(nn.Module):
    """Norm, SiLU, conv; embedding; norm, SiLU, dropout, zero-initialised conv; added to the input (ADM, BigGAN).

    With ``resample``, both the branch (between its first SiLU and its first conv) and the shortcut change resolution
    by two; with ``conv_first`` the branch does so after its first conv. The signal enters as GN(h) * (1 + scale) +
    shift (``scale_shift``), else is added before the second norm.
    (N, width, H, W), (N, signal_width) -> (N, out_width, H', W').
    """

    def __init__(
        self,
        width: int,
        out_width: int,
        signal_width: int,
        *,
        dropout: float,
        scale_shift: bool,
        resample: Direction | None = None,
        conv_first: bool = False,
    ) -> None:
        super().__init__()
        self.scale_shift = scale_shift
        self.resample = resample
        self.conv_first = conv_first
        self.norm_in = group_norm(width)
        self.conv_in = nn.Conv2d(width, out_width, 3, padding=1)
        self.signal = nn.Linear(signal_width, 2 * out_width if scale_shift else out_width)
        self.norm_out = group_norm(out_width)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = zeroed(nn.Conv2d(out_width, out_width, 3, padding=1))
        self.shortcut = nn.Identity() if width == out_width else nn.Conv2d(width, out_width, 1)

    def forward(self, x: Tensor, signal: Tensor) -> Tensor:
        h = F.silu(self.norm_in(x))
        if self.resample is not None:
            x = resize_by_two(x, self.resample)
            h = self.conv_in(h) if self.conv_first else h
            h = resize_by_two(h, self.resample)
        h = h if self.conv_first else self.conv_in(h)
        told = self.signal(signal)[:, :, None, None]
        if self.scale_shift:
            scale, shift = told.chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm_out(h), 1 + scale)
        else:
            h = self.norm_out(h + told)
        out: Tensor = self.shortcut(x) + self.conv_out(self.dropout(F.silu(h)))
        return out


class SelfAttention(nn.Module):
    """Multi-head attention of all pixels to all pixels, added to the input: (N, width, H, W) -> the same.

    ``order`` says how the 3 * width outputs of the query-key-value layer are read: "heads-first" as (head, q/k/v,
    channel), the older order of guided-diffusion; "qkv-first" as (q/k/v, head, channel), its newer one.
    A trained network is only right under the order that it was trained with.
    """

    def __init__(self, width: int, heads: int, order: AttentionOrder) -> None:
        super().__init__()
        self.heads = heads
        self.order = order
        self.norm = group_norm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.project = zeroed(nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        n, c, height, width = x.shape
        # Tokens (N, H * W, C): in channels_last memory this is a view, and so are the way back and the heads.
        tokens = self.norm(x).permute(0, 2, 3, 1).reshape(n, height * width, c)
        mixed = self.query_key_value(tokens)
        if self.order == "heads-first":
            q, k, v = mixed.view(n, height * width, self.heads, 3, c // self.heads).transpose(1, 2).unbind(3)
        else:
            q, k, v = mixed.view(n, height * width, 3, self.heads, c // self.heads).transpose(1, 3).unbind(2)
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, height * width, c)
        change = self.project(seen).view(n, height, width, c).permute(0, 3, 1, 2)
        out: Tensor = x + change
        return out


class Resampling(nn.Module):
    """Change the resolution by two, width kept, without a residual block.

    With ``conv``: down by a strided 3x3 convolution, up by repetition and a 3x3 convolution.
    Without: 2x2 means or repetition alone. With ``conv_first`` the way up repeats after its convolution, which so runs
    at the lower resolution (Efficient U-Net, 2205.11487).
    """

    def __init__(self, width: int, direction: Direction, *, conv: bool, conv_first: bool = False) -> None:
        super().__init__()
        self.direction: Direction = direction
        self.conv_first = conv_first
        stride = 2 if direction == "down" else 1
        self.conv = nn.Conv2d(width, width, 3, stride=stride, padding=1) if conv else None

    def forward(self, x: Tensor, signal: Tensor) -> Tensor:
        """``signal`` is not used; it is taken so that resampling and residual blocks are called alike."""
        if self.conv is None:
            return resize_by_two(x, self.direction)
        if self.direction == "up" and not self.conv_first:
            x = resize_by_two(x, "up")
        out: Tensor = self.conv(x)
        return resize_by_two(out, "up") if self.conv_first else out


class Unit(nn.Module):
    """One residual block and, where its level attends, one self-attention."""

    def __init__(self, residual: ResidualBlock, attention: SelfAttention | None) -> None:
        super().__init__()
        self.residual = residual
        self.attention = attention

    def forward(self, x: Tensor, signal: Tensor) -> Tensor:
        x = self.residual(x, signal)
        return x if self.attention is None else self.attention(x)


class EncoderLevel(nn.Module):
    """The blocks of one resolution, then the way down. Gives the skips for the decoder, the way down's included."""

    def __init__(self, units: list[Unit], down: nn.Module | None) -> None:
        super().__init__()
        self.units = nn.ModuleList(units)
        self.down = down

    def forward(self, h: Tensor, signal: Tensor) -> list[Tensor]:
        skips = []
        for unit in self.units:
            h = unit(h, signal)
            skips.append(h)
        if self.down is not None:
            skips.append(self.down(h, signal))
        return skips


class DecoderLevel(nn.Module):
    """The blocks of one resolution, each of which also sees an encoder block's output, then the way up."""

    def __init__(self, units: list[Unit], up: nn.Module | None, *, skip_scale: float = 1.0) -> None:
        super().__init__()
        self.skip_scale = skip_scale
        self.units = nn.ModuleList(units)
        self.up = up

    def forward(self, h: Tensor, skips: list[Tensor], signal: Tensor) -> Tensor:
        for unit in self.units:
            skip = skips.pop()
            h = unit(torch.cat([h, skip if self.skip_scale == 1 else self.skip_scale * skip], dim=1), signal)
        return h if self.up is None else self.up(h, signal)


class Middle(nn.Module):
    """Residual block, self-attention, residual block at the lowest resolution."""

    def __init__(self, enter: ResidualBlock, attention: SelfAttention | None, leave: ResidualBlock) -> None:
        super().__init__()
        self.enter = enter
        self.attention = attention
        self.leave = leave

    def forward(self, h: Tensor, signal: Tensor) -> Tensor:
        h = self.enter(h, signal)
        if self.attention is not None:
            h = self.attention(h)
        out: Tensor = self.leave(h, signal)
        return out


class Head(nn.Module):
    """Norm, SiLU and a zero-initialised convolution: a new network answers 0."""

    def __init__(self, width: int, out_channels: int) -> None:
        super().__init__()
        self.norm = group_norm(width)
        self.conv = zeroed(nn.Conv2d(width, out_channels, 3, padding=1))

    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = self.conv(F.silu(self.norm(h)))
        return out
