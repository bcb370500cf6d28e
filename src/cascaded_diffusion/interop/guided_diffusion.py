"""Weights of guided-diffusion (ADM, 2105.05233) in our U-Net, tensor by tensor.

Its ``UNetModel`` and ``SuperResModel`` are the same network as ours under other names: ``input_blocks`` is a flat list
of the stem, the units and the ways down; ``output_blocks`` one of the units, where the way up is the last member of a
level's last unit; attention has 1-d convolutions of kernel 1 where ours has linear layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, ValidationError
from torch import Tensor, nn

from cascaded_diffusion.config import StrictModel, explain
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.networks.blocks import Resampling, ResidualBlock, SelfAttention, Unit
from cascaded_diffusion.networks.unet import NetworkConfig, UNet

__all__ = ["GuidedDiffusionArguments", "GuidedDiffusionNetwork", "load_guided_diffusion", "translate_keys"]


class GuidedDiffusionArguments(StrictModel):
    """The constructor arguments of guided-diffusion's ``UNetModel`` and ``SuperResModel``, with its defaults.

    ``in_channels`` are the image's, also for super-resolution, where the network itself sees twice as many.
    """

    image_size: int = Field(ge=1, le=4096, description="pixels a side of the output")
    in_channels: int = Field(ge=1, le=16, description="channels of the image")
    model_channels: int = Field(ge=1, le=8192, description="base width")
    out_channels: int = Field(ge=1, le=32, description="channels of the output")
    num_res_blocks: int = Field(ge=1, le=64, description="residual blocks of an encoder level")
    attention_resolutions: tuple[Annotated[int, Field(ge=0, le=4096)], ...] = Field(
        max_length=32, description="down-sampling factors at which attention acts"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout inside the residual blocks")
    channel_mult: tuple[Annotated[int, Field(gt=0, le=64)] | Annotated[float, Field(gt=0, le=64)], ...] = Field(
        (1, 2, 4, 8), min_length=1, max_length=12, description="width of the levels"
    )
    conv_resample: bool = Field(True, description="convolutions where the resolution changes")
    dims: Literal[2] = Field(2, description="signal dimensions; images only")
    num_classes: int | None = Field(None, ge=1, le=1_000_000, description="number of classes, or none")
    use_checkpoint: bool = Field(False, description="ignored: saves memory, changes no number")
    use_fp16: bool = Field(False, description="ignored: the network is built in float32")
    num_heads: int = Field(1, ge=1, le=1024, description="attention heads")
    num_head_channels: int = Field(-1, ge=-1, le=8192, description="channels of a head, -1 to go by num_heads")
    num_heads_upsample: int = Field(-1, ge=-1, le=1024, description="attention heads of the decoder, -1 for num_heads")
    use_scale_shift_norm: bool = Field(False, description="embeddings scale and shift the second norm")
    resblock_updown: bool = Field(False, description="residual blocks where the resolution changes")
    use_new_attention_order: bool = Field(False, description="split query, key and value before the heads")
    super_res: bool = Field(False, description="SuperResModel; also found out from the stem's shape")

    def network_config(self) -> NetworkConfig:
        """The same network's shape in our words. Attention at a factor that no level has is dropped, as theirs is."""
        factors = [2**level for level in range(len(self.channel_mult))]
        resample: Literal["conv", "plain"] = "conv" if self.conv_resample else "plain"
        return NetworkConfig(
            channels=self.model_channels,
            multipliers=self.channel_mult,
            blocks=self.num_res_blocks,
            attention=tuple(self.image_size // factor for factor in factors if factor in self.attention_resolutions),
            heads=self.num_heads,
            decoder_heads=self.num_heads_upsample if self.num_heads_upsample > 0 else None,
            head_channels=self.num_head_channels if self.num_head_channels > 0 else None,
            attention_order="qkv-first" if self.use_new_attention_order else "heads-first",
            dropout=self.dropout,
            scale_shift=self.use_scale_shift_norm,
            resample="block" if self.resblock_updown else resample,
        )

    def build(self) -> UNet:
        """Our network of this shape, with new weights."""
        return UNet(
            self.network_config(),
            resolution=self.image_size,
            image_channels=self.in_channels,
            out_channels=self.out_channels,
            classes=self.num_classes,
            low_res_channels=self.in_channels if self.super_res else 0,
        )


class GuidedDiffusionNetwork(nn.Module):
    """Our U-Net (``.network``) behind guided-diffusion's call: ``net(x, t, y=None, low_res=None)``."""

    def __init__(self, network: UNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None, low_res: Tensor | None = None) -> Tensor:
        """x (N, C, R, R), t (N,) their timesteps, y (N,) classes, low_res (N, C, r, r) -> (N, out_channels, R, R)."""
        out: Tensor = self.network(x, t.float(), labels=y, low_res=low_res)
        return out


def load_guided_diffusion(state_dict: Mapping[str, Tensor], **constructor_arguments: Any) -> GuidedDiffusionNetwork:
    """Build the network of guided-diffusion's constructor arguments and fill it from its state dict.

    ``constructor_arguments`` are those of ``GuidedDiffusionArguments``. The network is in eval mode, float32.
    Raises ``UserError`` naming every argument that is wrong, or every tensor that is missing, extra or misshaped.
    """
    arguments = _arguments(constructor_arguments)
    stem = state_dict.get("input_blocks.0.0.weight")
    if stem is not None and stem.ndim == 4 and stem.shape[1] == 2 * arguments.in_channels:
        arguments = arguments.model_copy(update={"super_res": True})
    with torch.device("meta"):
        network = arguments.build()
    network.load_state_dict(_translate(state_dict, network), assign=True)
    return GuidedDiffusionNetwork(network).eval()


def _arguments(given: Mapping[str, Any]) -> GuidedDiffusionArguments:
    try:
        return GuidedDiffusionArguments(**given)
    except ValidationError as error:
        missing = [str(fault["loc"][0]) for fault in error.errors() if fault["type"] == "missing"]
        faults = f"missing: {', '.join(missing)}" if missing else explain(error)
        raise UserError(f"guided-diffusion constructor arguments: {faults}") from None


def _translate(theirs: Mapping[str, Tensor], network: UNet) -> dict[str, Tensor]:
    """Their state dict under our names. ``UserError`` listing all tensors that do not fit one to one."""
    names = translate_keys(network)
    ours = network.state_dict()
    faults = [f"{name} is missing" for name in names if name not in theirs]
    faults += [f"{name} is not part of this network" for name in theirs if name not in names]
    translated = {}
    for name, our_name in names.items():
        if name not in theirs:
            continue
        value, wanted = theirs[name], ours[our_name].shape
        flat = value.squeeze(-1) if value.ndim == 3 and value.shape[-1] == 1 else value
        if flat.shape != wanted:
            faults.append(f"{name} has shape {list(value.shape)}, expected {list(wanted)}")
        # A copy: the network must not share memory with the caller's tensors.
        translated[our_name] = flat.to(dtype=torch.float32, copy=True)
    if faults:
        raise UserError(f"guided-diffusion state dict does not fit the constructor arguments: {'; '.join(faults)}")
    return translated


_RESIDUAL = {
    "in_layers.0": "norm_in",
    "in_layers.2": "conv_in",
    "emb_layers.1": "signal",
    "out_layers.0": "norm_out",
    "out_layers.3": "conv_out",
}
_ATTENTION = {"norm": "norm", "qkv": "query_key_value", "proj_out": "project"}


def _layers(module: nn.Module) -> dict[str, str]:
    """Names of the layers inside one of our blocks, by their names inside guided-diffusion's."""
    if isinstance(module, ResidualBlock):
        shortcut = {"skip_connection": "shortcut"} if isinstance(module.shortcut, nn.Conv2d) else {}
        return _RESIDUAL | shortcut
    if isinstance(module, SelfAttention):
        return _ATTENTION
    if isinstance(module, Resampling):
        return {} if module.conv is None else {"op" if module.direction == "down" else "conv": "conv"}
    raise TypeError(f"no counterpart of {type(module).__name__} in guided-diffusion")


def _places(network: UNet) -> list[tuple[str, str]]:
    """Every block as (place in guided-diffusion, place in our network)."""
    places: list[tuple[str, str]] = []

    def place_unit(theirs: str, ours: str) -> int:
        unit = network.get_submodule(ours)
        assert isinstance(unit, Unit)
        places.append((f"{theirs}.0", f"{ours}.residual"))
        if unit.attention is not None:
            places.append((f"{theirs}.1", f"{ours}.attention"))
        return 1 if unit.attention is None else 2

    at = 1
    for i, level in enumerate(network.encoder):
        for j, _ in enumerate(network.get_submodule(f"encoder.{i}.units").children()):
            place_unit(f"input_blocks.{at}", f"encoder.{i}.units.{j}")
            at += 1
        if level.down is not None:
            places.append((f"input_blocks.{at}.0", f"encoder.{i}.down"))
            at += 1
    places += [(f"middle_block.{i}", f"middle.{part}") for i, part in enumerate(("enter", "attention", "leave"))]
    at = 0
    for i, level in enumerate(network.decoder):
        members = 0
        for j, _ in enumerate(network.get_submodule(f"decoder.{i}.units").children()):
            members = place_unit(f"output_blocks.{at}", f"decoder.{i}.units.{j}")
            at += 1
        if level.up is not None:
            places.append((f"output_blocks.{at - 1}.{members}", f"decoder.{i}.up"))
    return places


def translate_keys(network: UNet) -> dict[str, str]:
    """Names of guided-diffusion's tensors and, for each, the name of ours.

    Raises ``UserError`` if the network has a part that guided-diffusion's lacks.
    """
    if network.has_s or network.config.patch != 1 or not network.config.middle_attention:
        raise UserError("guided-diffusion has no network with an s embedding, patch above 1 or no middle attention")
    layers = {
        "time_embed.0": "time_embedding.expand",
        "time_embed.2": "time_embedding.mix",
        "input_blocks.0.0": "stem",
        "out.0": "head.norm",
        "out.2": "head.conv",
    }
    for theirs, ours in _places(network):
        inside = _layers(network.get_submodule(ours))
        layers |= {f"{theirs}.{their_part}": f"{ours}.{our_part}" for their_part, our_part in inside.items()}
    names = {f"{theirs}.{kind}": f"{ours}.{kind}" for theirs, ours in layers.items() for kind in ("weight", "bias")}
    if network.class_embedding is not None:
        names["label_emb.weight"] = "class_embedding.table.weight"
    return names
