"""The memory of a forward pass, and of one with its backward pass, found without computing anything (meta device)."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cascaded_diffusion.networks.unet import UNet

__all__ = ["LiveBytes", "forward_peak", "training_peak"]


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that operations make inside the block, for as long as each lives.

    Attributes:
        now: bytes alive.
        peak: the most that were alive at once.
    """

    def __init__(self, known: Sequence[Tensor] = ()) -> None:
        """``known`` are tensors from before, which views of them must not count."""
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.now = self.peak = 0
        self._known = list(known)  # held, so that no new storage takes an old one's address
        self._seen = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, Tensor):
                self._count(value)
        self.peak = max(self.peak, self.now)
        return out

    def _count(self, value: Tensor) -> None:
        storage = value.untyped_storage()
        key = storage._cdata
        if key not in self._seen:
            self._seen.add(key)
            self.now += storage.nbytes()
            weakref.finalize(storage, self._gone, key, storage.nbytes())

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


class _FusedMemory(torch.autograd.Function):
    """Keeps what a fused attention kernel keeps: query, key, value and answer, not the matrix of all pairs."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


class _FusedAttention(TorchFunctionMode):
    """Stands a fused kernel's memory in for attention, which the meta device takes apart into its matrices."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return _FusedMemory.apply(*args[:3])  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return func(*args, **(kwargs or {}))


def _on_meta(network: UNet, count: int, *, gradients: bool) -> int:
    """The most bytes alive at once while ``count`` images go through a twin of the network without numbers."""
    with torch.device("meta"):
        ones = torch.ones(count)
        side = network.resolution
        x = torch.empty(count, network.image_channels, side, side)
        low_res = torch.empty(count, network.low_res_channels, side, side) if network.low_res_channels else None
    own = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    weights = {
        name: value.detach().to("meta").requires_grad_(gradients and value.is_floating_point())
        for name, value in own.items()
    }
    conditions = {
        "labels": None if network.classes is None else ones.long(),
        "low_res": low_res,
        "s": ones if network.has_s else None,
    }
    with torch.set_grad_enabled(gradients), _FusedAttention(), LiveBytes(list(weights.values())) as live:
        answer: Tensor = functional_call(network, weights, (x, ones), conditions)
        if gradients:
            answer.sum().backward()
    return int(live.peak)


def forward_peak(network: UNet) -> int:
    """Bytes that one image's forward pass without gradients holds at once at most, in float32, weights left out.

    Skips and the widest block's temporaries: what is alive when most is. The network is neither run nor changed. Left
    out are work space of the libraries, fragmentation, and the matrix of all pairs where attention is not fused.
    """
    return _on_meta(network, 1, gradients=False)


def training_peak(network: UNet, count: int) -> int:
    """Bytes that ``count`` images' forward and backward pass hold at once at most, gradients included, weights not.

    In float32, of a network in training as it is, checkpointing of activations included; under the reservations of
    :func:`forward_peak`.
    """
    was_training = network.training
    try:
        return _on_meta(network.train(), count, gradients=True)
    finally:
        network.train(was_training)
