"""3x3 convolutions on a CPU with a quarter of the multiplications: Winograd's F(4x4, 3x3) (Lavin & Gray, 1509.09308).

Each 4x4 tile of the output is a product of transformed tiles of 6x6 numbers: Y = A^T [(G w G^T) * (B^T d B)] A, where
the sum over input channels makes 36 matrix products of what would be a convolution. In float32 its rounding error is
about three times that of the direct sum, 1e-6 of the output's norm.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from cascaded_diffusion.networks.sharing import in_shares
from cascaded_diffusion.networks.small_images import small_convolution, small_fits

__all__ = ["Convolution", "winograd_convolution", "winograd_fits"]

_TILE = 4
_SPAN = _TILE + 2
_POINTS = (0.0, 1.0, -1.0, 2.0, -0.5)
"""Where the polynomials are evaluated; infinity is the sixth. With -1/2 for -2 the error is a third smaller."""
_AT_ONE = _SPAN + 1
"""Position of (1, 1) among the 36 pairs of points; there A is all ones."""
_FEWEST_CHANNELS = 64
"""With fewer, transforming the tiles takes longer than the multiplications that are saved."""
_FEWEST_PIXELS = 16 * 16
"""Smaller images have too few tiles for a matrix product."""
_WORK_SPACE = 600_000
"""Numbers in a buffer of tiles, so that what one step writes is in the processor's cache for the next."""


class _Matrices(NamedTuple):
    """The transforms of two dimensions at once: Kronecker squares, (36, 36), (36, 9) and (16, 36)."""

    tiles: Tensor
    kernel: Tensor
    answer: Tensor


@cache
def _matrices() -> _Matrices:
    """Toom and Cook's matrices for the points above, from Lagrange's basis polynomials."""
    finite = torch.tensor(_POINTS, dtype=torch.float64)
    answer = torch.stack([finite**i for i in range(_TILE)])
    answer = torch.cat([answer, torch.eye(_TILE, dtype=torch.float64)[:, -1:]], dim=1)
    kernel = torch.zeros(_SPAN, 3, dtype=torch.float64)
    tiles = torch.zeros(_SPAN, _SPAN, dtype=torch.float64)
    kernel[-1, -1] = 1
    for i, point in enumerate(_POINTS):
        others = [other for other in _POINTS if other != point]
        scale = 1.0
        for other in others:
            scale *= point - other
        kernel[i] = torch.tensor([point**j for j in range(3)], dtype=torch.float64) / scale
        tiles[i, : len(others) + 1] = _polynomial(others)
    tiles[-1] = _polynomial(list(_POINTS))
    return _Matrices(*(torch.kron(one, one).float().contiguous() for one in (tiles, kernel, answer)))


def _polynomial(roots: list[float]) -> Tensor:
    """Coefficients of the product of (x - root), the constant first."""
    out = torch.ones(1, dtype=torch.float64)
    for root in roots:
        out = F.pad(out, (1, 0)) - root * F.pad(out, (0, 1))
    return out


class _Bands:
    """Cuts images (N, H, W, C) into parts whose tiles fit the work space, and moves them to and from tiles."""

    def __init__(self, shape: torch.Size, widest: int) -> None:
        n, self.height, self.width, _ = shape
        self.columns = self.width // _TILE
        row = _SPAN * _SPAN * self.columns * widest
        rows = self.height // _TILE
        fits = max(_WORK_SPACE // row, 1)
        self.rows = min(fits, rows)
        self.images = min(max(fits // rows, 1), n)
        self._n = n
        self.largest = self.images * self.rows * row

    def __iter__(self) -> Iterator[tuple[slice, int, int]]:
        """Parts as (images, first row of pixels, row behind the last)."""
        step = self.rows * _TILE
        for first in range(0, self._n, self.images):
            for top in range(0, self.height, step):
                yield slice(first, min(first + self.images, self._n)), top, min(top + step, self.height)

    def halo(self, x: Tensor) -> Tensor:
        """A buffer for one part with a border of one pixel, zero."""
        return x.new_zeros(self.images, self.rows * _TILE + 2, self.width + 2, x.shape[3])

    def overlapping(self, x: Tensor, part: tuple[slice, int, int], halo: Tensor, out: Tensor) -> Tensor:
        """The tiles of 6x6 pixels that overlap by two, one behind the other in ``out``: (36, tiles * C)."""
        images, top, bottom = part
        source = x[images]
        n, c, rows = len(source), x.shape[3], (bottom - top) // _TILE
        first, last = max(top - 1, 0), min(bottom + 1, self.height)
        halo[:n, first - top + 1 : last - top + 1, 1:-1].copy_(source[:, first:last])
        # What lies above the first or below the last row of the image is zero, whatever the part before left there.
        if top == 0:
            halo[:n, 0].zero_()
        if bottom == self.height:
            halo[:n, bottom - top + 1].zero_()
        image, row, column, _ = halo.stride()
        view = halo.as_strided(
            (_SPAN, _SPAN, n, rows, self.columns, c), (row, column, image, _TILE * row, _TILE * column, 1)
        )
        tiles = out[: view.numel()]
        tiles.view(view.shape).copy_(view)
        return tiles.view(_SPAN * _SPAN, -1)

    def apart(self, x: Tensor, part: tuple[slice, int, int]) -> Tensor:
        """A view of the part's tiles of 4x4 pixels, (4, 4, n, rows, columns, C)."""
        images, top, bottom = part
        band = x[images, top:bottom]
        n, rows = len(band), (bottom - top) // _TILE
        return band.view(n, rows, _TILE, self.columns, _TILE, -1).permute(2, 4, 0, 1, 3, 5)

    def add_up(self, tiles: Tensor, halo: Tensor, x: Tensor, part: tuple[slice, int, int]) -> None:
        """Add overlapping tiles (36, tiles * C) into the images ``x``, the way back of :meth:`overlapping`."""
        images, top, bottom = part
        n, c, rows = len(x[images]), x.shape[3], (bottom - top) // _TILE
        grid = tiles.view(_SPAN, _SPAN, n, rows, self.columns, c)
        halo.zero_()
        image, row, column, _ = halo.stride()
        strides = (row, column, image, _TILE * row, _TILE * column, 1)
        # Each of these four blocks of a tile overlaps no other tile's.
        for down in (slice(0, _TILE), slice(_TILE, _SPAN)):
            for across in (slice(0, _TILE), slice(_TILE, _SPAN)):
                block = grid[down, across]
                offset = down.start * row + across.start * column
                halo.as_strided(block.shape, strides, offset).add_(block)
        first, last = max(top - 1, 0), min(bottom + 1, self.height)
        x[images, first:last].add_(halo[:n, first - top + 1 : last - top + 1, 1:-1])


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    n, height, width, _ = x.shape
    kernel = _kernel(weight)
    out = x.new_empty(n, height, width, weight.shape[0])
    in_shares(lambda own: _forward_share(x[_slice(own)], kernel, bias, out[_slice(own)]), n)
    return out


def _slice(share: range) -> slice:
    return slice(share.start, share.stop)


def _forward_share(x: Tensor, kernel: Tensor, bias: Tensor | None, out: Tensor) -> None:
    to_tiles, _, to_answer = _matrices()
    _, c, k = kernel.shape
    bands = _Bands(x.shape, max(c, k))
    halo, one, other = bands.halo(x), x.new_empty(bands.largest), x.new_empty(bands.largest)
    for part in bands:
        tiles = bands.overlapping(x, part, halo, one)
        seen = other[: tiles.numel()].view(tiles.shape)
        torch.mm(to_tiles, tiles, out=seen)
        answer = bands.apart(out, part)
        count = answer[0, 0, ..., 0].numel()
        product = one[: _SPAN * _SPAN * count * k].view(-1, count, k)
        torch.bmm(seen.view(-1, count, c), kernel, out=product)
        if bias is not None:
            product[_AT_ONE].add_(bias)  # A carries it to every pixel of the tile
        pixels = other[: _TILE * _TILE * count * k].view(_TILE * _TILE, -1)
        torch.mm(to_answer, product.view(_SPAN * _SPAN, -1), out=pixels)
        answer.copy_(pixels.view(answer.shape))


def _kernel(weight: Tensor) -> Tensor:
    """(K, C, 3, 3) -> (36, C, K)."""
    k, c = weight.shape[:2]
    return (_matrices().kernel @ weight.permute(2, 3, 1, 0).reshape(9, c * k)).view(-1, c, k)


def _backward(x: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of image, weight and bias, all by the transposes of the forward pass's matrices."""
    k, c = weight.shape[:2]
    kernel = _kernel(weight).transpose(1, 2)
    grad_x = torch.zeros_like(x)
    sums: dict[int, tuple[Tensor, Tensor]] = {}

    def work(own: range) -> None:
        sums[own.start] = _backward_share(x[_slice(own)], kernel, grad[_slice(own)], grad_x[_slice(own)])

    in_shares(work, len(x))
    # In the order of the images, whichever thread was first.
    kernels, biases = zip(*(sums[start] for start in sorted(sums)), strict=True)
    grad_weight = (_matrices().kernel.t() @ sum(kernels[1:], kernels[0]).view(_SPAN * _SPAN, -1)).view(3, 3, c, k)
    grad_weight = grad_weight.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)
    return grad_x, grad_weight, sum(biases[1:], biases[0])


def _backward_share(x: Tensor, kernel: Tensor, grad: Tensor, grad_x: Tensor) -> tuple[Tensor, Tensor]:
    """Adds to ``grad_x``; returns the gradients of the transformed kernel (36, C, K) and of the bias (K,)."""
    to_tiles, _, to_answer = _matrices()
    _, k, c = kernel.shape
    bands = _Bands(x.shape, max(c, k))
    halo, one, other, third = bands.halo(x), *(x.new_empty(bands.largest) for _ in range(3))
    grad_kernel = x.new_zeros(_SPAN * _SPAN, c, k)
    grad_bias = x.new_zeros(k)
    for part in bands:
        wanted = bands.apart(grad, part)
        pixels = one[: wanted.numel()]
        pixels.view(wanted.shape).copy_(wanted)
        count = wanted[0, 0, ..., 0].numel()
        product = other[: _SPAN * _SPAN * count * k].view(_SPAN * _SPAN, -1)
        torch.mm(to_answer.t(), pixels.view(_TILE * _TILE, -1), out=product)
        product = product.view(-1, count, k)
        grad_bias += product[_AT_ONE].sum(0)
        tiles = bands.overlapping(x, part, halo, one)
        seen = third[: tiles.numel()].view(tiles.shape)
        torch.mm(to_tiles, tiles, out=seen)
        grad_kernel.baddbmm_(seen.view(-1, count, c).transpose(1, 2), product)
        torch.bmm(product, kernel, out=seen.view(-1, count, c))
        torch.mm(to_tiles.t(), seen, out=tiles)
        bands.add_up(tiles, halo, grad_x, part)
        # The border is zero again for the next part's tiles; what was added up there is in grad_x.
        halo.zero_()
    return grad_kernel, grad_bias


class _Winograd(torch.autograd.Function):
    """Images as (N, H, W, C); keeps the images for the backward pass and makes their tiles anew there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return _forward(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        x, weight = ctx.saved_tensors
        grad_x, grad_weight, grad_bias = _backward(x, weight, grad.contiguous())
        return grad_x, grad_weight, grad_bias if ctx.has_bias else None


def winograd_convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 3x3 convolution with stride 1 and a border of one zero: (N, C, H, W) -> (N, K, H, W) in channels_last.

    float32 on a CPU; height and width multiples of 4.
    """
    out: Tensor = _Winograd.apply(x.permute(0, 2, 3, 1).contiguous(), weight, bias)  # type: ignore[no-untyped-call]
    return out.permute(0, 3, 1, 2)


def winograd_fits(x: Tensor, weight: Tensor) -> bool:
    """Whether Winograd's way is possible for an image (N, C, H, W), and faster than the direct one."""
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and min(weight.shape[:2]) >= _FEWEST_CHANNELS
        and x.shape[2] * x.shape[3] >= _FEWEST_PIXELS
        and x.shape[2] % _TILE == x.shape[3] % _TILE == 0
        and len(x) > 0
    )


class Convolution(nn.Conv2d):
    """A 3x3 convolution with stride 1: on a CPU by Winograd's way, or with a faster gradient, where those pay.

    Attributes:
        fast: whether it may; a network's fast path switches it.
    """

    fast = True

    def __init__(self, width: int, out_width: int) -> None:
        super().__init__(width, out_width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if self.fast and not torch.compiler.is_compiling():
            if winograd_fits(x, self.weight):
                return winograd_convolution(x, self.weight, self.bias)
            if small_fits(x, self.weight):
                return small_convolution(x, self.weight, self.bias)
        return super().forward(x)
