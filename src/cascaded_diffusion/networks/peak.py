"""The memory of a forward pass, and of one with its backward pass, found without computing anything (meta device)."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cascaded_diffusion.networks.fused_attention import FusedAttention
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


def _inputs(network: UNet, count: int) -> tuple[Tensor, Tensor, dict[str, Tensor | None]]:
    """What a network takes for ``count`` images, on the meta device."""
    with torch.device("meta"):
        ones, side = torch.ones(count), network.resolution
        x = torch.empty(count, network.image_channels, side, side)
        low_res = torch.empty(count, network.low_res_channels, side, side) if network.low_res_channels else None
    labels = None if network.classes is None else ones.long()
    return x, ones, {"labels": labels, "low_res": low_res, "s": ones if network.has_s else None}


def forward_peak(network: UNet) -> int:
    """Bytes that one image's forward pass without gradients holds at once at most, in float32, weights left out.

    Skips and the widest block's temporaries: what is alive when most is. The network is neither run nor changed. Left
    out are work space of the libraries, fragmentation, and the matrix of all pairs where attention is not fused.
    """
    weights = {
        name: value.detach().to("meta", torch.float32 if value.is_floating_point() else value.dtype)
        for name, value in [*network.named_parameters(), *network.named_buffers()]
    }
    x, time, conditions = _inputs(network, 1)
    with torch.no_grad(), FusedAttention(), LiveBytes(list(weights.values())) as live:
        functional_call(network, weights, (x, time), conditions)
    return int(live.peak)


def training_peak(network: UNet, count: int) -> int:
    """Bytes that ``count`` images' forward and backward pass hold at once at most, gradients included, weights not.

    In float32, without activations that are recomputed; under the reservations of :func:`forward_peak`.

    Args:
        network: on the meta device; its gradients are cleared.
        count: images.

    Raises:
        ValueError: the network is elsewhere.
    """
    tensors = [*network.parameters(), *network.buffers()]
    if any(not tensor.is_meta for tensor in tensors):
        raise ValueError("the network has numbers; its twin on the meta device is wanted")
    x, time, conditions = _inputs(network, count)
    was_training, was_learning = network.training, [parameter.requires_grad for parameter in network.parameters()]
    network.train().requires_grad_(True)
    try:
        with torch.enable_grad(), FusedAttention(), LiveBytes(tensors) as live:
            network(x, time, **conditions).sum().backward()
        return int(live.peak)
    finally:
        network.train(was_training).zero_grad(set_to_none=True)
        for parameter, learns in zip(network.parameters(), was_learning, strict=True):
            parameter.requires_grad_(learns)
