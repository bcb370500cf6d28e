"""What fused attention keeps in memory, for networks on the meta device, which takes attention apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["FusedAttention"]


class _FusedMemory(torch.autograd.Function):
    """Keeps what a fused attention kernel keeps: query, key, value and output, not the matrix of all pairs."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


class FusedAttention(TorchFunctionMode):
    """Stands a fused kernel's memory in for attention, which the meta device takes apart into its matrices."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return _FusedMemory.apply(*args[:3])  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return func(*args, **(kwargs or {}))
