"""The parts of the U-Net: residual block, self-attention, resampling, and the levels that hold them.

Shapes: images are (N, C, H, W), best in ``torch.channels_last`` memory format, which every part keeps;
``signal`` is the activated sum of all embeddings, (N, E).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cascaded_diffusion.networks.normalisation import GroupNorm, group_norm
from cascaded_diffusion.networks.winograd import Convolution

__all__ = [
    "AttentionOrder",
    "Call",
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
    "attend",
    "group_norm",
    "recomputed",
    "resize_by_two",
    "run",
    "zeroed",
]

AttentionOrder = Literal["heads-first", "qkv-first"]
Direction = Literal["down", "up"]

Call = Callable[..., Any]
"""Calls its first argument with the others: :func:`run`, or :func:`recomputed`."""


def run(part: Callable[..., Any], *args: Any) -> Any:
    """Call a part of the network, which keeps what its backward pass needs."""
    return part(*args)


def recomputed(part: Callable[..., Any], *args: Any) -> Any:
    """Call a part of the network so that only its arguments are kept; the backward pass runs it again.

    Dropout draws the same again.
    """
    return checkpoint(part, *args, use_reentrant=False, preserve_rng_state=True)


def _joined(unit: nn.Module, h: Tensor, skip: Tensor, signal: Tensor) -> Tensor:
    out: Tensor = unit(torch.cat([h, skip], dim=1), signal)
    return out


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
        self.conv_in = Convolution(width, out_width)
        self.signal = nn.Linear(signal_width, 2 * out_width if scale_shift else out_width)
        self.norm_out = group_norm(out_width)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = zeroed(Convolution(out_width, out_width))
        self.shortcut = nn.Identity() if width == out_width else nn.Conv2d(width, out_width, 1)

    def forward(self, x: Tensor, signal: Tensor) -> Tensor:
        h = self.norm_in.activated(x)
        if self.resample is not None:
            x = resize_by_two(x, self.resample)
            h = self.conv_in(h) if self.conv_first else h
            h = resize_by_two(h, self.resample)
        h = h if self.conv_first else self.conv_in(h)
        told = self.signal(signal)
        if self.scale_shift:
            h = self.norm_out.activated(h, *told.chunk(2, dim=1))
        else:
            h = self.norm_out.activated(h + told[:, :, None, None])
        out: Tensor = self.shortcut(x) + self.conv_out(self.dropout(h))
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
        seen = attend(q, k, v).transpose(1, 2).reshape(n, height * width, c)
        change = self.project(seen).view(n, height, width, c).permute(0, 3, 1, 2)
        out: Tensor = x + change
        return out


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of (N, heads, tokens, channels).

    torch's bf16 kernel for a CPU is slow in the backward pass: on one with AMX it takes up to ten times as long, most
    for few tokens, as the one in float32 that is taken here (``benchmarks/bf16_cpu.py``).
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and torch.is_grad_enabled():
        with torch.autocast("cpu", enabled=False):
            return F.scaled_dot_product_attention(q.float(), k.float(), v.float()).to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v)


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
        self.conv: nn.Conv2d | None = None
        if conv:
            self.conv = nn.Conv2d(width, width, 3, 2, padding=1) if direction == "down" else Convolution(width, width)

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

    def forward(self, h: Tensor, signal: Tensor, call: Call = run) -> list[Tensor]:
        skips = []
        for unit in self.units:
            h = call(unit, h, signal)
            skips.append(h)
        if self.down is not None:
            skips.append(call(self.down, h, signal))
        return skips


class DecoderLevel(nn.Module):
    """The blocks of one resolution, each of which also sees an encoder block's output, then the way up.

    Attributes:
        count: how many of the encoder's outputs it takes.
    """

    def __init__(self, units: list[Unit], up: nn.Module | None, *, skip_scale: float = 1.0) -> None:
        super().__init__()
        self.skip_scale = skip_scale
        self.units = nn.ModuleList(units)
        self.count = len(units)
        self.up = up

    def forward(self, h: Tensor, skips: Sequence[Tensor], signal: Tensor, call: Call = run) -> Tensor:
        """``skips`` are the encoder's, one for each unit; the last of them goes to the first unit."""
        for unit, skip in zip(self.units, reversed(skips), strict=True):
            h = call(_joined, unit, h, skip if self.skip_scale == 1 else self.skip_scale * skip, signal)
        return h if self.up is None else call(self.up, h, signal)


class Middle(nn.Module):
    """Residual block, self-attention, residual block at the lowest resolution."""

    def __init__(self, enter: ResidualBlock, attention: SelfAttention | None, leave: ResidualBlock) -> None:
        super().__init__()
        self.enter = enter
        self.attention = attention
        self.leave = leave

    def forward(self, h: Tensor, signal: Tensor, call: Call = run) -> Tensor:
        h = call(self.enter, h, signal)
        if self.attention is not None:
            h = call(self.attention, h)
        out: Tensor = call(self.leave, h, signal)
        return out


class Head(nn.Module):
    """Norm, SiLU and a zero-initialised convolution: a new network outputs 0."""

    def __init__(self, width: int, out_channels: int) -> None:
        super().__init__()
        self.norm = group_norm(width)
        self.conv = zeroed(Convolution(width, out_channels))

    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = self.conv(self.norm.activated(h))
        return out
