"""The memory of a forward pass without gradients, found without computing anything (meta device)."""

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

__all__ = ["LiveBytes", "forward_peak"]


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


class _FusedAttention(TorchFunctionMode):
    """Stands a fused kernel's memory in for attention, which the meta device takes apart into its matrices."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))


def forward_peak(network: UNet) -> int:
    """Bytes that one image's forward pass without gradients holds at once at most, in float32, weights left out.

    Skips and the widest block's temporaries: what is alive when most is. The network is neither run nor changed. Left
    out are work space of the libraries, fragmentation, and the matrix of all pairs where attention is not fused.
    """
    with torch.device("meta"):
        ones = torch.ones(1)
        side = network.resolution
        x = torch.empty(1, network.image_channels, side, side)
        low_res = torch.empty(1, network.low_res_channels, side, side) if network.low_res_channels else None
    weights = {
        name: value.detach().to("meta") for name, value in [*network.named_parameters(), *network.named_buffers()]
    }
    conditions = {
        "labels": None if network.classes is None else ones.long(),
        "low_res": low_res,
        "s": ones if network.has_s else None,
    }
    with torch.no_grad(), _FusedAttention(), LiveBytes(list(weights.values())) as live:
        functional_call(network, weights, (x, ones), conditions)
    return int(live.peak)
