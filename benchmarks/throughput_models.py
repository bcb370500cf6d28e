"""The shapes that ``throughput.py`` measures, as networks of this package and of diffusers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from cascaded_diffusion.networks.cost import cost
from cascaded_diffusion.networks.unet import NetworkConfig, UNet


@dataclass(frozen=True)
class Shape:
    """One network shape: what both kinds are built from.

    Attributes:
        low_res: channels of the low-resolution image behind the noisy one.
        attention: levels that attend, from 0 at full resolution.
        batch: images a training step; ``denoise_batch`` of a denoising step.
        patch: pixels a side that are folded into one position first. diffusers' network gets them folded.
    """

    name: str
    side: int
    width: int
    multipliers: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    head_channels: int
    batch: int
    denoise_batch: int
    channels: int = 3
    out_channels: int = 3
    low_res: int = 0
    classes: int = 0
    resample: str = "conv"
    dropout: float = 0.0
    patch: int = 1
    s: bool = False

    def tiny(self) -> Shape:
        """The same with eight channels, two images and as few pixels as the levels need."""
        side = self.patch * 2 ** (len(self.multipliers) + 1)
        return replace(self, side=side, width=8, head_channels=4, batch=2, denoise_batch=2)


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("cpu64", 32, 64, (1, 2, 2), 2, (2,), 32, 128, 128),
        Shape(
            "base64", 64, 192, (1, 2, 3, 4), 3, (1, 2, 3), 64, 128, 64,
            out_channels=6, classes=1000, resample="block", dropout=0.1,
        ),
        Shape(
            "sr256", 256, 192, (1, 1, 2, 2, 4, 4), 2, (3, 4, 5), 64, 16, 16,
            out_channels=6, low_res=3, classes=1000, resample="block",
        ),
        # The two stages of the packaged cascade.
        Shape(
            "base16", 16, 64, (1, 2), 2, (0,), 16, 128, 128, channels=1, out_channels=1, classes=10, patch=2
        ),
        Shape(
            "sr32", 32, 64, (1, 2), 1, (), 16, 128, 128,
            channels=1, out_channels=1, low_res=1, classes=10, patch=2, s=True,
        ),
    )
}  # fmt: skip


def build_ours(shape: Shape) -> UNet:
    """The network of this package."""
    config = NetworkConfig(
        channels=shape.width,
        multipliers=shape.multipliers,
        blocks=shape.blocks,
        attention=tuple(shape.side // shape.patch >> level for level in shape.attention),
        head_channels=shape.head_channels,
        resample=shape.resample,
        dropout=shape.dropout,
        patch=shape.patch,
    )
    return UNet(
        config,
        resolution=shape.side,
        image_channels=shape.channels,
        out_channels=shape.out_channels,
        classes=shape.classes or None,
        low_res_channels=shape.low_res,
        s_embedding=shape.s,
    )


def build_theirs(shape: Shape) -> nn.Module:
    """diffusers' UNet2DModel of the same shape."""
    import diffusers

    levels = range(len(shape.multipliers))
    return diffusers.UNet2DModel(
        sample_size=shape.side // shape.patch,
        in_channels=(shape.channels + shape.low_res) * shape.patch**2,
        out_channels=shape.out_channels * shape.patch**2,
        block_out_channels=tuple(shape.width * multiplier for multiplier in shape.multipliers),
        layers_per_block=shape.blocks,
        down_block_types=tuple("AttnDownBlock2D" if i in shape.attention else "DownBlock2D" for i in levels),
        up_block_types=tuple("AttnUpBlock2D" if i in shape.attention else "UpBlock2D" for i in reversed(levels)),
        attention_head_dim=shape.head_channels,
        norm_num_groups=min(32, shape.width),
        norm_eps=1e-5,
        resnet_time_scale_shift="scale_shift",
        downsample_type="resnet" if shape.resample == "block" else "conv",
        upsample_type="resnet" if shape.resample == "block" else "conv",
        num_class_embeds=shape.classes or None,
        dropout=shape.dropout,
    )


class _Traffic(TorchDispatchMode):
    """Adds up the bytes of every operation's tensors, read or written, views left out: what no fusion would move."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            seen = (*args, *(out if isinstance(out, tuple) else (out,)))
            flat = [each for part in seen for each in (part if isinstance(part, list | tuple) else (part,))]
            self.bytes += sum(each.numel() * 4 for each in flat if isinstance(each, torch.Tensor))
        return out


def forward_flops(shape: Shape) -> tuple[int, int]:
    """FLOPs and unfused float32 traffic of one image's forward pass, found on the meta device."""
    network = build_ours(shape)
    found = cost(network)
    one = torch.ones(1, device="meta")
    twin = network.to("meta").requires_grad_(False)
    x = torch.empty(1, network.image_channels, network.resolution, network.resolution, device="meta")
    low = torch.empty(1, network.low_res_channels, *x.shape[2:], device="meta") if network.low_res_channels else None
    labels = one.long() if network.classes else None
    with _Traffic() as traffic:
        twin(x, one, labels=labels, low_res=low, s=one if network.has_s else None)
    weights = sum(parameter.numel() for parameter in network.parameters()) * 4
    return found.forward_flops, traffic.bytes - weights
