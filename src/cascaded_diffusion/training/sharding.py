"""Weights, gradients, moments and averages divided over the processes of one launch: FSDP2 (``fully_shard``).

Every tensor is cut along its first dimension. Before a block runs, its weights are gathered; after it, they are let go.
Elsewhere a sharded tensor is a ``DTensor``, which takes part in arithmetic as a whole one does, on its own part alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from cascaded_diffusion.networks.unet import UNet
from cascaded_diffusion.ranks import current_ranks, together

__all__ = ["is_sharded", "laid_out_as", "shard", "whole"]


def _parts(network: UNet) -> Iterator[nn.Module]:
    """What is gathered at a time: every residual block with its attention, every change of resolution, the middle."""
    for level in (*network.encoder, *network.decoder):
        yield from level.units.children()
        yield from (part for name, part in level.named_children() if name in ("down", "up"))
    yield network.middle


def shard(network: UNet, device: torch.device, *, bf16: bool) -> None:
    """Divide a network's parameters over the processes of this launch, in place; nothing in a single process.

    Args:
        network: on its device, the same on every process.
        device: where that is.
        bf16: gather the blocks' weights in bf16, in which autocast would use them anyway. Embeddings, first and last
            layer are gathered, and all gradients summed, in float32.
    """
    world = current_ranks().world
    if world == 1:
        return
    # Half of torch's distributed parts: only who shards waits for their import.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # FSDP2 takes no other
    mesh = init_device_mesh(device.type, (world,))
    # Inputs stay as they are: diffusion times and s need more digits than bf16 has, and autocast casts the rest.
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if bf16 else None, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    with together():
        for part in _parts(network):
            if list(part.parameters()):
                fully_shard(part, mesh=mesh, mp_policy=policy)
        exact = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
        fully_shard(network, mesh=mesh, mp_policy=exact)
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # a plain sum; scaled ones are NCCL's alone


def _is_shard(tensor: Any) -> bool:
    # Asked for by what it can do: its class is in a module that takes long to import.
    return hasattr(tensor, "full_tensor")


def is_sharded(network: nn.Module) -> bool:
    """Whether a network's parameters are divided over the processes."""
    return any(_is_shard(parameter) for parameter in network.parameters())


def whole(tensor: Tensor) -> Tensor:
    """The whole of a sharded tensor, on every process; every process must ask for it. Others are returned as is."""
    if not _is_shard(tensor):
        return tensor
    with together():
        full: Tensor = tensor.full_tensor()  # type: ignore[attr-defined]
    return full


def laid_out_as(value: Tensor, target: Tensor) -> Tensor:
    """A whole tensor as ``target`` is: this process's part where that is sharded, else in its order in memory.

    Optimizers that fuse their arithmetic go through parameters and moments as they lie in memory.
    """
    if value.shape != target.shape:
        return value  # a count of steps
    if _is_shard(target):
        from torch.distributed.tensor import distribute_tensor

        mesh, placements = target.device_mesh, target.placements  # type: ignore[attr-defined]
        # Each process has read the whole; none needs to be sent any. FSDP2's parts are contiguous.
        return distribute_tensor(value.to(target.device).contiguous(), mesh, placements, src_data_rank=None)
    return value if value.stride() == target.stride() else torch.empty_like(target, dtype=value.dtype).copy_(value)
