"""3x3 convolutions of small bf16 images on a CPU, with the weights' gradient as one matrix product.

oneDNN's own kernel for that gradient takes several times as long as its forward pass where images are of 8x8 pixels and
fewer (``benchmarks/bf16_cpu.py``). Every pixel's 3x3 neighbourhood beside the others makes a matrix, and the gradient
its product with that of the outputs: the same sums, in another order.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["small_convolution", "small_fits"]

_TINY_PIXELS, _SMALL_PIXELS = 4 * 4, 8 * 8
_FEWEST_CHANNELS = 96
"""With fewer, at more than 4x4 pixels, laying out the neighbourhoods takes longer than the product saves."""


def small_fits(x: Tensor, weight: Tensor) -> bool:
    """Whether this way is possible for images (N, C, H, W), and faster than torch's own."""
    pixels = x.shape[2] * x.shape[3]
    return (
        x.device.type == weight.device.type == "cpu"
        and {x.dtype, weight.dtype} <= {torch.float32, torch.bfloat16}  # autocast leaves double precision alone
        and torch.is_grad_enabled()
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
        and pixels <= (_SMALL_PIXELS if min(weight.shape[:2]) >= _FEWEST_CHANNELS else _TINY_PIXELS)
        and len(x) > 0
    )


def small_convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 3x3 convolution with stride 1 and a border of one zero: (N, C, H, W) -> (N, K, H, W), computed in bf16.

    What autocast would do, weights rounded to bf16 and the output in it.
    """
    weight = weight.to(torch.bfloat16, memory_format=torch.channels_last)
    bias = None if bias is None else bias.to(torch.bfloat16)
    x = x.to(torch.bfloat16, memory_format=torch.channels_last)
    out: Tensor = _SmallConvolution.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return out


class _SmallConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return F.conv2d(x, weight, bias, padding=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
        x, weight = ctx.saved_tensors
        k, c = weight.shape[:2]
        grad = grad.contiguous(memory_format=torch.channels_last)
        grad_x: Tensor | None = None
        if ctx.needs_input_grad[0]:
            one = [1, 1]
            grad_x = torch.ops.aten.convolution_backward(
                grad, x, weight, None, one, one, one, False, [0, 0], 1, [True, False, False]
            )[0]
        answers = grad.permute(0, 2, 3, 1).reshape(-1, k)
        grad_weight = (answers.t() @ _neighbourhoods(x)).view(k, 3, 3, c).permute(0, 3, 1, 2)
        grad_bias = answers.sum(0, dtype=torch.float32).to(grad.dtype) if ctx.has_bias else None
        return grad_x, grad_weight, grad_bias


def _neighbourhoods(x: Tensor) -> Tensor:
    """The 3x3 pixels around every pixel of (N, C, H, W) in channels_last: (N * H * W, 9 * C)."""
    n, c, height, width = x.shape
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    image, row, column, _ = padded.stride()
    windows = padded.as_strided((n, height, width, 3, 3, c), (image, row, column, row, column, 1))
    return windows.reshape(n * height * width, 9 * c)
