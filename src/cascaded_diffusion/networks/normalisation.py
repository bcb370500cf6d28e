"""Group normalisation, what the embeddings do to it, and the SiLU behind it: plainly, and in one go.

In one go means that only the input is kept for the backward pass, and that no number goes to memory and back between
norm, scale, shift and activation. The plain path is the reference; both agree to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from cascaded_diffusion.networks.sharing import in_shares

__all__ = ["GroupNorm", "group_norm", "of_groups"]

_GROUPS = 32

_TOO_LARGE = 64 * 65_536
"""Pixels from which the CUDA kernels' strips of 64 are more than a grid's second side may have."""
_LARGE = 64 * 64
"""Pixels from which GroupNorm takes its own sums on a CPU."""

_STRIP = 2**17
"""Numbers that it works on at once; they stay in the processor's cache."""

_SLOW = 32 * 32
"""Pixels from which torch's own backward pass is the slower one on a CPU in float32. Its forward pass is not.

In bf16 its backward pass is slower at any size, by two to three times, and its forward pass below these many pixels.
"""


class GroupNorm(nn.GroupNorm):
    """Group normalisation that is as exact on large images as on small ones.

    On a CPU, torch adds up float32 images in channels_last one pixel after the other: outputs are off by about 4e-5 at
    256x256 pixels and 2e-4 at 512x512. Here rows are added up first, then their means.

    Attributes:
        fast: whether :meth:`activated` may do all in one go; a network's fast path switches it.
    """

    fast = True

    def forward(self, x: Tensor) -> Tensor:
        height, columns = x.shape[2:]
        if x.device.type != "cpu" or x.dtype != torch.float32 or height * columns < _LARGE or len(x) == 0:
            return super().forward(x)
        pixels = x.permute(0, 2, 3, 1)
        mean = of_groups(pixels.mean(2).mean(1), self.num_groups)
        strips = pixels.split(max(_STRIP // (len(x) * columns * x.shape[1]), 1), dim=1)
        squares = [(strip - mean[:, None, None]).square_().mean(2) for strip in strips]
        variance = of_groups(torch.cat(squares, dim=1).mean(1), self.num_groups)
        scale = (variance + self.eps).rsqrt() * self.weight
        shift = self.bias - mean * scale
        return torch.addcmul(shift[:, :, None, None], x, scale[:, :, None, None])

    def activated(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """SiLU(GN(x) * (1 + scale) + shift): (N, C, H, W) and twice (N, C), or neither, -> (N, C, H, W)."""
        if not (self.fast and self._fits(x)):
            h = self(x)
            if scale is not None and shift is not None:
                h = torch.addcmul(shift[:, :, None, None], h, 1 + scale[:, :, None, None])
            return F.silu(h)
        gain, offset = self.weight.float()[None], self.bias.float()[None]
        if scale is not None and shift is not None:
            stretch = 1 + scale.float()
            gain, offset = gain * stretch, torch.addcmul(shift.float(), offset, stretch)
        gain, offset = gain.expand(len(x), -1), offset.expand(len(x), -1)
        if x.device.type == "cuda":
            from cascaded_diffusion.networks.norm_kernels import norm_silu

            activated: Tensor = norm_silu(x, gain, offset, self.num_groups, self.eps)[0]
            return activated
        out: Tensor = _NormSilu.apply(x, gain, offset, self.num_groups, self.eps)  # type: ignore[no-untyped-call]
        return out

    def _fits(self, x: Tensor) -> bool:
        if torch.compiler.is_compiling() or not x.is_contiguous(memory_format=torch.channels_last):
            return False  # a compiler joins the plain path's operations itself, and with what stands around them
        if x.device.type == "cuda":
            from cascaded_diffusion.networks.norm_kernels import has_kernels

            launches = x.shape[2] * x.shape[3] < _TOO_LARGE
            return has_kernels() and launches and x.dtype in (torch.float32, torch.bfloat16, torch.float16)
        if x.device.type != "cpu":
            return False
        if len(x) == 0:
            return False
        learns, large = torch.is_grad_enabled(), x.shape[2] * x.shape[3] >= _SLOW
        if x.dtype == torch.bfloat16:
            return learns or not large
        return x.dtype == torch.float32 and learns and large and not torch.is_autocast_enabled("cpu")


def of_groups(values: Tensor, groups: int) -> Tensor:
    """The mean over each channel's group in the place of the channel's own: (..., C) -> (..., C)."""
    c = values.shape[-1]
    means = values.reshape(*values.shape[:-1], groups, c // groups).mean(-1, keepdim=True)
    return means.expand(*means.shape[:-1], c // groups).flatten(-2)


def group_norm(width: int) -> GroupNorm:
    """Group normalisation with 32 groups, or as many as both 32 and ``width`` are multiples of."""
    return GroupNorm(math.gcd(_GROUPS, width), width)


class _NormSilu(torch.autograd.Function):
    """SiLU((x - mean) / std * gain + offset) on a CPU, for images in channels_last; bf16 ones in float32 inside.

    The gradient of the variance is that of the group's mean of (x - mean) times what comes back.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, offset: Tensor, groups: int, eps: float) -> Tensor:
        pixels = _pixels(x)
        mean, rstd = torch.empty_like(gain), torch.empty_like(gain)
        out = torch.empty_like(pixels)
        in_shares(lambda own: _forward(pixels, gain, offset, groups, eps, mean, rstd, out, own), len(x))
        ctx.save_for_backward(x, gain, offset, mean, rstd)
        ctx.groups = groups
        return _images(out, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, gain, offset, mean, rstd = ctx.saved_tensors
        pixels, wanted = _pixels(x), _pixels(grad.contiguous(memory_format=torch.channels_last))
        out, grad_gain, grad_offset = torch.empty_like(pixels), torch.empty_like(gain), torch.empty_like(gain)

        def work(own: range) -> None:
            for part in _parts(own, pixels):
                told = (gain[part], offset[part], mean[part], rstd[part])
                grad_gain[part], grad_offset[part] = _backward(
                    pixels[part], wanted[part], *told, ctx.groups, out=out[part]
                )

        in_shares(work, len(x))
        return _images(out, x), grad_gain, grad_offset, None, None


def _pixels(x: Tensor) -> Tensor:
    """(N, C, H, W) in channels_last as (N, H * W, C), a view."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _images(pixels: Tensor, like: Tensor) -> Tensor:
    n, c, height, width = like.shape
    return pixels.view(n, height, width, c).permute(0, 3, 1, 2)


def _parts(own: range, pixels: Tensor) -> Iterator[slice]:
    """As many images at a time as stay in the cache."""
    step = max(_STRIP // pixels[0].numel(), 1)
    for start in range(own.start, own.stop, step):
        yield slice(start, min(start + step, own.stop))


def _forward(
    pixels: Tensor,
    gain: Tensor,
    offset: Tensor,
    groups: int,
    eps: float,
    mean: Tensor,
    rstd: Tensor,
    out: Tensor,
    own: range,
) -> None:
    """Fill ``mean`` and ``rstd`` (N, C), every channel with its group's, and ``out``, for the images of one share."""
    for part in _parts(own, pixels):
        x = pixels[part].float()
        centre = of_groups(x.mean(1), groups)
        mean[part] = centre
        work = torch.sub(x, centre[:, None], out=_room(out[part]))
        variance = of_groups(work.square_().mean(1), groups)
        rstd[part] = (variance + eps).rsqrt_()
        slope = rstd[part] * gain[part]
        torch.addcmul((offset[part] - centre * slope)[:, None], x, slope[:, None], out=work)
        F.silu(work, inplace=True)
        if out.dtype != torch.float32:
            out[part] = work


def _backward(
    x: Tensor,
    grad: Tensor,
    gain: Tensor,
    offset: Tensor,
    mean: Tensor,
    rstd: Tensor,
    groups: int,
    *,
    out: Tensor,
) -> tuple[Tensor, Tensor]:
    """Fill ``out`` with the gradient of ``x`` (n, P, C); returns those of gain and offset, (n, C)."""
    x, work = x.float(), _room(out)
    slope = rstd * gain
    before = torch.addcmul((offset - mean * slope)[:, None], x, slope[:, None])
    torch.ops.aten.silu_backward.grad_input(grad.float(), before, grad_input=work)
    torch.sub(x, mean[:, None], out=before)
    pixels = x.shape[1]
    grad_offset = work.sum(1)
    grad_gain = before.mul_(work).sum(1).mul_(rstd)
    # dx = rstd (g gain - <g gain> - xhat <g gain xhat>), the means taken over the group's channels and pixels.
    level = of_groups(grad_offset * gain, groups) / pixels
    tilt = of_groups(grad_gain * gain, groups) / pixels * rstd * rstd
    work.mul_(slope[:, None]).addcmul_(x, -tilt[:, None]).add_((mean * tilt - rstd * level)[:, None])
    if out.dtype != torch.float32:
        out.copy_(work)
    return grad_gain, grad_offset


def _room(out: Tensor) -> Tensor:
    """Where to compute what goes to ``out``: there, or in float32 beside it."""
    return out if out.dtype == torch.float32 else torch.empty_like(out, dtype=torch.float32)
