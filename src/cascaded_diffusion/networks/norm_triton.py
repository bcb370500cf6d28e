"""The Triton kernels of ``norm_kernels``: images as (N, pixels, C), one program a strip of pixels and channels."""

# No postponed annotations: Triton reads tl.constexpr from them.
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # without it the module can be read, as the documentation does, and none of it called
    triton = tl = SimpleNamespace(constexpr=int, jit=lambda function: function)

__all__ = ["apply", "backward_apply", "backward_sums", "strip_sums"]

_ROWS = 64
_CHANNELS = 64


@triton.jit
def _strip(pixels, channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """Offsets of this program's numbers in the image and in (N, C), and which of them there are."""
    n, strip, block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    row = strip * ROWS + tl.arange(0, ROWS)
    channel = block * CHANNELS + tl.arange(0, CHANNELS)
    at = (n.to(tl.int64) * pixels + row[:, None]) * channels + channel[None, :]
    inside = (row[:, None] < pixels) & (channel[None, :] < channels)
    return at, n * channels + channel, inside, channel < channels


@triton.jit
def _strip_sums(x, mean, squares, pixels, channels, strips, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    at, _told, inside, there = _strip(pixels, channels, ROWS, CHANNELS)
    strip = tl.program_id(1)
    count = tl.minimum(pixels - strip * ROWS, ROWS).to(tl.float32)
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    centre = tl.sum(value, axis=0) / count
    apart = tl.where(inside, value - centre[None, :], 0.0)
    to = (tl.program_id(0) * strips + strip) * channels + tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    tl.store(mean + to, centre, mask=there)
    tl.store(squares + to, tl.sum(apart * apart, axis=0), mask=there)


@triton.jit
def _apply(x, slope, level, out, pixels, channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    at, told, inside, there = _strip(pixels, channels, ROWS, CHANNELS)
    a = tl.load(slope + told, mask=there, other=0.0)
    b = tl.load(level + told, mask=there, other=0.0)
    z = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) * a[None, :] + b[None, :]
    tl.store(out + at, (z * tl.sigmoid(z)).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _inner(grad, value, a, b, at, inside):
    """The gradient before the SiLU."""
    z = value * a[None, :] + b[None, :]
    s = tl.sigmoid(z)
    return tl.load(grad + at, mask=inside, other=0.0).to(tl.float32) * s * (1 + z * (1 - s))


@triton.jit
def _backward_sums(
    grad, x, slope, level, mean, one, other, pixels, channels, strips, ROWS: tl.constexpr, CHANNELS: tl.constexpr
):
    at, told, inside, there = _strip(pixels, channels, ROWS, CHANNELS)
    a = tl.load(slope + told, mask=there, other=0.0)
    b = tl.load(level + told, mask=there, other=0.0)
    centre = tl.load(mean + told, mask=there, other=0.0)
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    inner = _inner(grad, value, a, b, at, inside)
    to = (tl.program_id(0) * strips + tl.program_id(1)) * channels
    to += tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    tl.store(one + to, tl.sum(inner, axis=0), mask=there)
    tl.store(other + to, tl.sum(inner * (value - centre[None, :]), axis=0), mask=there)


@triton.jit
def _backward_apply(
    grad, x, slope, level, tilt, base, out, pixels, channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr
):
    at, told, inside, there = _strip(pixels, channels, ROWS, CHANNELS)
    a = tl.load(slope + told, mask=there, other=0.0)
    b = tl.load(level + told, mask=there, other=0.0)
    t = tl.load(tilt + told, mask=there, other=0.0)
    c = tl.load(base + told, mask=there, other=0.0)
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    answer = _inner(grad, value, a, b, at, inside) * a[None, :] - value * t[None, :] + c[None, :]
    tl.store(out + at, answer.to(out.dtype.element_ty), mask=inside)


def _launch(kernel: Any, x: Tensor, *args: Any) -> None:
    n, pixels, channels = x.shape
    grid = (n, triton.cdiv(pixels, _ROWS), triton.cdiv(channels, _CHANNELS))
    kernel[grid](*args, ROWS=_ROWS, CHANNELS=_CHANNELS, num_warps=4)


def _partial(x: Tensor) -> tuple[Tensor, Tensor]:
    n, pixels, channels = x.shape
    shape = (n, triton.cdiv(pixels, _ROWS), channels)
    return tuple(torch.empty(shape, dtype=torch.float32, device=x.device) for _ in range(2))  # type: ignore[return-value]


def strip_sums(x: Tensor) -> tuple[Tensor, Tensor]:
    """Each strip's mean and squared distances from it, float32 (N, strips, C)."""
    mean, squares = _partial(x)
    _launch(_strip_sums, x, x, mean, squares, *x.shape[1:], mean.shape[1])
    return mean, squares


def apply(x: Tensor, slope: Tensor, level: Tensor, out: Tensor) -> None:
    """Fill ``out`` with SiLU(x * slope + level)."""
    _launch(_apply, x, x, slope.contiguous(), level.contiguous(), out, *x.shape[1:])


def backward_sums(grad: Tensor, x: Tensor, slope: Tensor, level: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Each strip's sums of the gradient before the SiLU, alone and times (x - mean): float32 (N, strips, C)."""
    one, other = _partial(x)
    told = (slope.contiguous(), level.contiguous(), mean.contiguous())
    _launch(_backward_sums, x, grad, x, *told, one, other, *x.shape[1:], one.shape[1])
    return one, other


def backward_apply(
    grad: Tensor, x: Tensor, slope: Tensor, level: Tensor, tilt: Tensor, base: Tensor, out: Tensor
) -> None:
    """Fill ``out`` with (gradient before the SiLU) * slope - x * tilt + base."""
    told = (slope.contiguous(), level.contiguous(), tilt.contiguous(), base.contiguous())
    _launch(_backward_apply, x, grad, x, *told, out, *x.shape[1:])
