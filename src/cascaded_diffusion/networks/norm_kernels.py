"""Group norm, gain, offset and SiLU as one operation of torch, with Triton kernels for CUDA.

The image is read twice and written once, and in the backward pass read twice (with the incoming gradient) and written
once; it is the only large tensor that is kept. Sums are float32 whatever the image's type: each strip of pixels gives
its mean and its squared distances from that mean, which are joined as in Chan, Golub & LeVeque (1983).
"""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cascaded_diffusion.networks.normalisation import of_groups

__all__ = ["has_kernels", "norm_silu", "norm_silu_backward"]

_ROWS = 64


@cache
def has_kernels() -> bool:
    """Whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


@torch.library.custom_op("cascaded_diffusion::norm_silu", mutates_args=())
def norm_silu(x: Tensor, gain: Tensor, offset: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """SiLU((x - mean) / std * gain + offset), with the mean and 1 / std of each channel's group, (N, C) float32.

    Args:
        x: (N, C, H, W) in channels_last.
        gain, offset: float32 (N, C).
        groups: number of groups of neighbouring channels.
        eps: added to the variance.
    """
    mean, squares = _strip_sums(x)
    mean, rstd = _joined(mean, squares, x.shape[2] * x.shape[3], groups, eps)
    slope = rstd * gain
    return _apply(x, slope, offset - mean * slope), mean, rstd


@torch.library.custom_op("cascaded_diffusion::norm_silu_backward", mutates_args=())
def norm_silu_backward(
    grad: Tensor, x: Tensor, gain: Tensor, offset: Tensor, mean: Tensor, rstd: Tensor, groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, gain and offset."""
    pixels = x.shape[2] * x.shape[3]
    slope = rstd * gain
    level = offset - mean * slope
    grad_offset, grad_gain = _backward_sums(grad, x, slope, level, mean)
    grad_gain = grad_gain * rstd
    shared = of_groups(torch.stack([grad_offset * gain, grad_gain * gain]), groups) / pixels
    tilt = shared[1] * rstd * rstd
    out = _backward_apply(grad, x, slope, level, tilt, mean * tilt - rstd * shared[0])
    return out, grad_gain, grad_offset


def _counts(pixels: int, device: torch.device) -> Tensor:
    """Pixels of every strip, float32 (strips, 1)."""
    starts = torch.arange(0, pixels, _ROWS, device=device)
    return (pixels - starts).clamp(max=_ROWS).float()[:, None]


def _joined(means: Tensor, squares: Tensor, pixels: int, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """Strips' means and squares (N, strips, C) to the groups' mean and 1 / std (N, C)."""
    counts = _counts(pixels, means.device)
    mean = of_groups((means * counts).sum(1) / pixels, groups)
    squares = (squares + counts * (means - mean[:, None]).square_()).sum(1)
    return mean, (of_groups(squares / pixels, groups) + eps).rsqrt()


def _pixels(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _strips(x: Tensor) -> Tensor:
    """float32 (N, strips, rows, C), filled up with zeros."""
    rows = _pixels(x).float()
    filled = F.pad(rows, (0, 0, 0, -rows.shape[1] % _ROWS))
    return filled.view(len(x), -1, _ROWS, x.shape[1])


def _on_device(x: Tensor) -> bool:
    return x.device.type == "cuda"


def _strip_sums(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and squared distances from it of every strip and channel, float32 (N, strips, C)."""
    if _on_device(x):
        mean, squares = _kernels().strip_sums(_pixels(x))
        return mean, squares
    strips = _strips(x)
    counts = _counts(x.shape[2] * x.shape[3], x.device)
    mean = strips.sum(2) / counts
    inside = torch.arange(_ROWS, device=x.device) < counts
    return mean, ((strips - mean[:, :, None]).square() * inside[..., None]).sum(2)


def _apply(x: Tensor, slope: Tensor, level: Tensor) -> Tensor:
    if _on_device(x):
        out = torch.empty_like(x)
        _kernels().apply(_pixels(x), slope, level, _pixels(out))
        return out
    return F.silu(_affine(x, slope, level)).to(x.dtype)


def _affine(x: Tensor, slope: Tensor, level: Tensor) -> Tensor:
    return torch.addcmul(level[:, :, None, None], x.float(), slope[:, :, None, None])


def _backward_sums(grad: Tensor, x: Tensor, slope: Tensor, level: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over the pixels of the gradient before the SiLU, alone and times (x - mean): float32 (N, C)."""
    if _on_device(x):
        one, other = _kernels().backward_sums(_pixels(grad), _pixels(x), slope, level, mean)
        return one.sum(1), other.sum(1)
    inner = torch.ops.aten.silu_backward(grad.float(), _affine(x, slope, level))
    return inner.sum((2, 3)), (inner * (x.float() - mean[:, :, None, None])).sum((2, 3))


def _backward_apply(grad: Tensor, x: Tensor, slope: Tensor, level: Tensor, tilt: Tensor, base: Tensor) -> Tensor:
    if _on_device(x):
        out = torch.empty_like(x)
        _kernels().backward_apply(_pixels(grad), _pixels(x), slope, level, tilt, base, _pixels(out))
        return out
    inner = torch.ops.aten.silu_backward(grad.float(), _affine(x, slope, level))
    answer: Tensor = inner * slope[:, :, None, None] - x.float() * tilt[:, :, None, None] + base[:, :, None, None]
    return answer.to(x.dtype)


def _kernels() -> Any:
    from cascaded_diffusion.networks import norm_triton

    return norm_triton


@norm_silu.register_fake
def _(x: Tensor, gain: Tensor, offset: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(gain), torch.empty_like(gain)


@norm_silu_backward.register_fake
def _(
    grad: Tensor, x: Tensor, gain: Tensor, offset: Tensor, mean: Tensor, rstd: Tensor, groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(mean), torch.empty_like(mean)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, gain, offset, groups, _ = inputs
    ctx.save_for_backward(x, gain, offset, output[1], output[2])
    ctx.groups = groups


def _back(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
    grad = grad.contiguous(memory_format=torch.channels_last)
    grad_x, grad_gain, grad_offset = norm_silu_backward(grad, *ctx.saved_tensors, ctx.groups)
    return grad_x, grad_gain, grad_offset, None, None


norm_silu.register_autograd(_back, setup_context=_keep)
