"""What a network costs in parameters, arithmetic and memory, found without computing anything (meta device)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from cascaded_diffusion.networks.fused_attention import FusedAttention
from cascaded_diffusion.networks.unet import UNet

__all__ = ["Cost", "cost"]

_FLOAT32 = 4


@dataclass(frozen=True)
class Cost:
    """The price of one network.

    Attributes:
        parameters: trained numbers.
        forward_flops: floating-point operations of one image's forward pass; a multiply-add counts as two. Only
            convolutions and matrix products are counted.
        activation_bytes: what the forward pass of one image keeps for the backward pass, in float32.
    """

    parameters: int
    forward_flops: int
    activation_bytes: int

    def training_flops(self, images: int) -> int:
        """Operations to train on ``images`` images: the backward pass counts as two forward passes."""
        return 3 * self.forward_flops * images


def cost(network: UNet) -> Cost:
    """Price of ``network``, wherever it lives; it is neither run nor changed, a twin on the meta device is."""
    with torch.device("meta"):
        twin = UNet(
            network.config,
            resolution=network.resolution,
            image_channels=network.image_channels,
            out_channels=network.out_channels,
            classes=network.classes,
            low_res_channels=network.low_res_channels,
            s_embedding=network.has_s,
            upsample=network.upsample,
            augment_features=network.augment_features,
        )
    return Cost(
        parameters=sum(parameter.numel() for parameter in twin.parameters()),
        forward_flops=_forward_flops(twin),
        activation_bytes=_activation_bytes(twin),
    )


def _run(network: UNet) -> Tensor:
    """One image through a network on the meta device."""
    side = network.resolution
    ones = torch.ones(1, device="meta")
    low_res = torch.empty(1, network.low_res_channels, side, side, device="meta") if network.low_res_channels else None
    x = torch.empty(1, network.image_channels, side, side, device="meta").to(memory_format=torch.channels_last)
    labels = None if network.classes is None else ones.long()
    out: Tensor = network(x, ones, labels=labels, low_res=low_res, s=ones if network.has_s else None)
    return out


def _forward_flops(network: UNet) -> int:
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        _run(network)
    return int(counter.get_total_flops())


def _activation_bytes(network: UNet) -> int:
    """Bytes of all distinct storages that autograd keeps, the parameters' own left out."""
    known = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    # The tensors are held until all are seen, so that no storage's address is used twice.
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in known:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor), FusedAttention():
        _run(network)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
