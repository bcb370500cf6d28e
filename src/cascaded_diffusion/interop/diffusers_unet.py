"""diffusers' ``UNet2DModel`` and our U-Net: the networks that both can be, under both names.

``UNet2DModel`` is the same network as ours where its positional embedding has no frequency shift and cosines first, its
strided convolutions are padded on both sides, every norm has as many groups, and its attention everywhere as many
channels a head. Its query, key and value are three layers where ours are one; its blocks are lists of residual blocks
beside lists of attentions. Nothing here imports diffusers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, ValidationError
from torch import Tensor, nn

from cascaded_diffusion.cascade.stage import StageConfig, build_network
from cascaded_diffusion.config import StrictModel, explain
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.networks.blocks import Resampling, ResidualBlock, SelfAttention, Unit
from cascaded_diffusion.networks.unet import NetworkConfig, UNet

__all__ = ["DiffusersUNetConfig", "export_config", "export_faults", "export_weights", "import_weights", "no_class_row"]

DOWN_BLOCKS = ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D")
UP_BLOCKS = ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D")


_Side = Annotated[int, Field(ge=1, le=4096)]
_Width = Annotated[int, Field(ge=1, le=65_536)]
_Word = Annotated[str, Field(max_length=100)]


class DiffusersUNetConfig(StrictModel):
    """The constructor arguments of ``UNet2DModel``, with its defaults."""

    sample_size: _Side | tuple[_Side, _Side] | None = Field(None, description="pixels a side")
    in_channels: int = Field(3, ge=1, le=64, description="channels of the input")
    out_channels: int = Field(3, ge=1, le=64, description="channels of the output")
    center_input_sample: bool = Field(False, description="input in [0, 1]")
    time_embedding_type: _Word = Field("positional", description="sinusoids, Fourier features or a table")
    time_embedding_dim: _Width | None = Field(
        None, description="width of the embedding, default 4 times the first level"
    )
    freq_shift: float = Field(0, ge=-1000, le=1000, description="shift of the sinusoids' frequencies")
    flip_sin_to_cos: bool = Field(True, description="cosines before sines")
    down_block_types: tuple[_Word, ...] = Field(
        ("DownBlock2D",) + ("AttnDownBlock2D",) * 3, max_length=12, description="encoder levels"
    )
    mid_block_type: _Word | None = Field("UNetMidBlock2D", description="middle")
    up_block_types: tuple[_Word, ...] = Field(
        ("AttnUpBlock2D",) * 3 + ("UpBlock2D",), max_length=12, description="decoder levels"
    )
    block_out_channels: tuple[_Width, ...] = Field(
        (224, 448, 672, 896), min_length=1, max_length=12, description="widths"
    )
    layers_per_block: int = Field(2, ge=1, le=64, description="residual blocks of an encoder level")
    mid_block_scale_factor: float = Field(1, ge=-1000, le=1000, description="divisor of the middle's output")
    downsample_padding: int = Field(1, ge=0, le=16, description="1: both sides; 0: below and right")
    downsample_type: _Word | None = Field("conv", description="way down of the levels with attention")
    upsample_type: _Word | None = Field("conv", description="way up of the levels with attention")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout inside the residual blocks")
    act_fn: _Word = Field("silu", description="activation")
    attention_head_dim: _Width | None = Field(8, description="channels of a head, null for one head")
    norm_num_groups: _Width | None = Field(32, description="groups of the norms")
    attn_norm_num_groups: _Width | None = Field(None, description="groups of the middle attention's norm")
    norm_eps: float = Field(1e-5, ge=0, le=1, description="epsilon of the norms")
    resnet_time_scale_shift: _Word = Field("default", description="how the embedding enters a residual block")
    add_attention: bool = Field(True, description="attention in the middle")
    class_embed_type: _Word | None = Field(None, description="null for a table")
    num_class_embeds: int | None = Field(None, ge=1, le=1_000_001, description="rows of the class table")
    num_train_timesteps: int | None = Field(None, ge=1, le=1_000_000, description="of a learned time embedding")

    @classmethod
    def read(cls, values: Mapping[str, Any], where: str) -> DiffusersUNetConfig:
        """Check the content of a ``config.json``; ``UserError`` naming ``where`` and the key."""
        kind = values.get("_class_name")
        if kind != "UNet2DModel":
            raise UserError(f"{where}: _class_name is {kind!r}; allowed: 'UNet2DModel'")
        try:
            return cls.model_validate({key: value for key, value in values.items() if not key.startswith("_")})
        except ValidationError as error:
            raise UserError(f"{where}: {explain(error)}") from None

    def build(self, where: str, *, low_res_channels: int = 0, classes: int | None = None) -> UNet:
        """Our network of this shape, without weights (on the meta device).

        Raises:
            UserError: naming ``where`` and every key that our network cannot follow.
        """
        faults = list(self._faults())
        if faults:
            raise UserError(f"{where}: this UNet2DModel has no counterpart here: {'; '.join(faults)}")
        assert isinstance(self.sample_size, int)
        try:
            with torch.device("meta"):
                network = UNet(
                    self.network_config(),
                    resolution=self.sample_size,
                    image_channels=self.in_channels - low_res_channels,
                    out_channels=self.out_channels,
                    classes=classes,
                    low_res_channels=low_res_channels,
                )
        except ValueError as error:
            raise UserError(f"{where}: this UNet2DModel has no counterpart here: {error}") from None
        groups = norm_groups(network)
        if groups != {self.norm_num_groups}:
            raise UserError(
                f"{where}: norm_num_groups: {self.norm_num_groups}, where our network of these widths has "
                f"{' and '.join(map(str, sorted(groups)))}"
            )
        return network

    def network_config(self) -> NetworkConfig:
        """The same network's shape in our words; only right where :meth:`build` finds no fault."""
        assert isinstance(self.sample_size, int)
        attends = [kind == "AttnDownBlock2D" for kind in self.down_block_types]
        return NetworkConfig(
            channels=self.block_out_channels[0],
            multipliers=tuple(_multiplier(width, self.block_out_channels[0]) for width in self.block_out_channels),
            blocks=self.layers_per_block,
            attention=tuple(self.sample_size >> level for level, attending in enumerate(attends) if attending),
            middle_attention=self.add_attention,
            heads=1,
            head_channels=self.attention_head_dim,
            attention_order="qkv-first",
            dropout=self.dropout,
            scale_shift=self.resnet_time_scale_shift == "scale_shift",
            resample="block" if self._resampling() == {"resnet"} else "conv",
        )

    def _faults(self) -> Iterator[str]:
        """Every setting that our network does not have."""
        first = self.block_out_channels[0]
        middle_groups = self.norm_num_groups if self.resnet_time_scale_shift == "default" else None
        wanted: tuple[tuple[str, tuple[Any, ...]], ...] = (
            ("center_input_sample", (False,)),
            ("time_embedding_type", ("positional",)),
            ("time_embedding_dim", (None, 4 * first)),
            ("freq_shift", (0,)),
            ("flip_sin_to_cos", (True,)),
            ("mid_block_type", ("UNetMidBlock2D",)),
            ("mid_block_scale_factor", (1,)),
            ("downsample_padding", (1,)),
            ("act_fn", ("silu", "swish")),
            ("norm_eps", (1e-5,)),
            ("resnet_time_scale_shift", ("default", "scale_shift")),
            ("class_embed_type", (None,)),
        )
        for name, allowed in wanted:
            value = getattr(self, name)
            if value not in allowed:
                yield f"{name}: {value!r}; allowed: {', '.join(repr(choice) for choice in allowed)}"
        if not isinstance(self.sample_size, int):
            yield f"sample_size: {self.sample_size!r}; allowed: a number of pixels, for square images"
        if self.add_attention and (self.attn_norm_num_groups or middle_groups) != self.norm_num_groups:
            yield f"attn_norm_num_groups: {self.attn_norm_num_groups!r}; allowed: {self.norm_num_groups}"
        yield from self._level_faults()

    def _level_faults(self) -> Iterator[str]:
        """What is wrong with the kinds of the levels."""
        down, up = self.down_block_types, self.up_block_types
        for name, kinds, allowed in (("down_block_types", down, DOWN_BLOCKS), ("up_block_types", up, UP_BLOCKS)):
            strangers = sorted({kind for kind in kinds if kind not in allowed})
            if strangers:
                yield f"{name}: {', '.join(strangers)}; allowed: {', '.join(allowed)}"
            if len(kinds) != len(self.block_out_channels):
                yield f"{name}: {len(kinds)} levels for {len(self.block_out_channels)} block_out_channels"
        if [kind.startswith("Attn") for kind in down] != [kind.startswith("Attn") for kind in reversed(up)]:
            yield "down_block_types, up_block_types: attention at other levels of the encoder than of the decoder"
        if len(self._resampling()) > 1 or self._resampling() - {"conv", "resnet"}:
            found = ", ".join(sorted(map(str, self._resampling())))
            yield f"down_block_types, up_block_types, downsample_type, upsample_type: resolutions change by {found}"
            yield "allowed: all by conv, or all by resnet"

    def _resampling(self) -> set[str | None]:
        """How the levels change the resolution: by a convolution or by a residual block."""
        down = {"DownBlock2D": "conv", "ResnetDownsampleBlock2D": "resnet", "AttnDownBlock2D": self.downsample_type}
        up = {"UpBlock2D": "conv", "ResnetUpsampleBlock2D": "resnet", "AttnUpBlock2D": self.upsample_type}
        ways = [down.get(kind, "conv") for kind in self.down_block_types[:-1]]
        ways += [up.get(kind, "conv") for kind in self.up_block_types[:-1]]
        return set(ways)


def norm_groups(network: nn.Module) -> set[int]:
    """How many groups the network's norms have."""
    return {module.num_groups for module in network.modules() if isinstance(module, nn.GroupNorm)}


def _multiplier(width: int, channels: int) -> int | float:
    if width % channels == 0:
        return width // channels
    share = width / channels
    return share if int(share * channels) == width else math.nextafter(share, math.inf)


def no_class_row(config: StageConfig) -> int | None:
    """The row of the exported class table that stands for "no class", ours of -1: a last row of zeros.

    A stage that was never trained without class has none.
    """
    return config.classes if config.classes is not None and config.training.class_dropout > 0 else None


def export_config(config: StageConfig) -> DiffusersUNetConfig:
    """The ``UNet2DModel`` of a stage; only right where :func:`export_faults` finds none."""
    network = config.network
    with torch.device("meta"):
        built = build_network(config)
    groups = min(norm_groups(built))
    attends = [side in network.attention for side in network.level_resolutions(config.resolution)]
    blocks = network.resample == "block"
    way: Literal["conv", "resnet"] = "resnet" if blocks else "conv"
    down = ["AttnDownBlock2D" if a else "ResnetDownsampleBlock2D" if blocks else "DownBlock2D" for a in attends]
    up = ["AttnUpBlock2D" if a else "ResnetUpsampleBlock2D" if blocks else "UpBlock2D" for a in reversed(attends)]
    head_sizes = {size for _, size in _head_sizes(config)}
    no_class = no_class_row(config)
    return DiffusersUNetConfig(
        sample_size=config.resolution,
        in_channels=built.image_channels + built.low_res_channels,
        out_channels=built.out_channels,
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        block_out_channels=network.widths,
        layers_per_block=network.block_counts()[0],
        downsample_type=way,
        upsample_type=way,
        dropout=network.dropouts()[0],
        attention_head_dim=head_sizes.pop() if len(head_sizes) == 1 else None,
        norm_num_groups=groups,
        attn_norm_num_groups=groups,
        resnet_time_scale_shift="scale_shift" if network.scale_shift else "default",
        add_attention=network.middle_attention,
        num_class_embeds=config.classes if no_class is None else no_class + 1,
    )


def _head_sizes(config: StageConfig) -> Iterator[tuple[int, int]]:
    """Width of every attention, and channels of its heads."""
    network = config.network
    for width, side in zip(network.widths, network.level_resolutions(config.resolution), strict=True):
        if side in network.attention:
            yield width, width // network.heads_at(width)
            yield width, width // network.heads_at(width, decoder=True)
    if network.middle_attention:
        yield network.widths[-1], network.widths[-1] // network.heads_at(network.widths[-1])


def export_faults(config: StageConfig) -> Iterator[str]:
    """Every setting of a stage's network that ``UNet2DModel`` cannot express, and what it could."""
    network = config.network
    if config.conditioning is not None and config.conditioning.augmentation == "gaussian":
        yield "conditioning.augmentation: gaussian, for the network has an s embedding; allowed: blur, none"
    if network.scaled_skips:
        yield "network.scaled_skips: true; allowed: false"
    if network.up_after_conv:
        yield "network.up_after_conv: true; allowed: false"
    if len(set(network.dropouts())) > 1:
        yield f"network.dropout: {list(network.dropouts())} differ by level; allowed: one number"
    if network.patch != 1:
        yield f"network.patch: {network.patch}; allowed: 1"
    if len(set(network.block_counts())) > 1:
        yield f"network.blocks: {list(network.block_counts())} differ by level; allowed: one number"
    if network.widths[0] != network.channels:
        first = network.multipliers[0]
        yield f"network.multipliers: begin with {first:g}, but the time embedding goes by the first level; allowed: 1"
    if network.resample == "plain":
        yield "network.resample: plain; allowed: conv, block"
    heads = list(_head_sizes(config))
    sizes = {size for _, size in heads}
    if len(sizes) > 1 and any(width != size for width, size in heads):
        found = ", ".join(map(str, sorted(sizes)))
        yield f"network.heads: heads of {found} channels; allowed: all of one size (network.head_channels), or 1 head"
    with torch.device("meta"):
        groups = norm_groups(build_network(config))
    if len(groups) > 1:
        found = " and ".join(map(str, sorted(groups)))
        yield f"network.channels, network.multipliers: norms of {found} groups; allowed: multiples of 32"


_RESIDUAL = {
    "norm1": "norm_in",
    "conv1": "conv_in",
    "time_emb_proj": "signal",
    "norm2": "norm_out",
    "conv2": "conv_out",
    "conv_shortcut": "shortcut",
}


def _places(network: UNet) -> Iterator[tuple[str, str]]:
    """Every block as (place in UNet2DModel, place in our network)."""

    def units(theirs: str, ours: str) -> Iterator[tuple[str, str]]:
        for j, unit in enumerate(network.get_submodule(ours).children()):
            assert isinstance(unit, Unit)
            yield f"{theirs}.resnets.{j}", f"{ours}.{j}.residual"
            if unit.attention is not None:
                yield f"{theirs}.attentions.{j}", f"{ours}.{j}.attention"

    for i, level in enumerate(network.encoder):
        yield from units(f"down_blocks.{i}", f"encoder.{i}.units")
        if level.down is not None:
            yield f"down_blocks.{i}.downsamplers.0", f"encoder.{i}.down"
    yield "mid_block.resnets.0", "middle.enter"
    if network.middle.attention is not None:
        yield "mid_block.attentions.0", "middle.attention"
    yield "mid_block.resnets.1", "middle.leave"
    for i, level in enumerate(network.decoder):
        yield from units(f"up_blocks.{i}", f"decoder.{i}.units")
        if level.up is not None:
            yield f"up_blocks.{i}.upsamplers.0", f"decoder.{i}.up"


_ENDS = {
    "conv_in": "stem",
    "time_embedding.linear_1": "time_embedding.expand",
    "time_embedding.linear_2": "time_embedding.mix",
    "conv_norm_out": "head.norm",
    "conv_out": "head.conv",
}
_CLASSES = ("class_embedding.weight", "class_embedding.table.weight")
_PARTS = ("to_q", "to_k", "to_v")


def _layers(network: UNet) -> tuple[dict[str, str], dict[str, str]]:
    """Names of the layers that both have, and of the attentions (whose query, key and value differ): theirs to ours."""
    layers, attentions = dict(_ENDS), {}
    for theirs, ours in _places(network):
        block = network.get_submodule(ours)
        inside: Mapping[str, str]
        if isinstance(block, ResidualBlock):
            whole = isinstance(block.shortcut, nn.Identity)
            inside = {key: name for key, name in _RESIDUAL.items() if name != "shortcut" or not whole}
        elif isinstance(block, SelfAttention):
            inside = {"group_norm": "norm", "to_out.0": "project"}
            attentions[theirs] = ours
        else:
            assert isinstance(block, Resampling)
            inside = {"conv": "conv"}
        layers |= {f"{theirs}.{their_part}": f"{ours}.{our_part}" for their_part, our_part in inside.items()}
    return layers, attentions


def _split(mixed: Tensor, attention: SelfAttention) -> Tensor:
    """The outputs of a query-key-value layer (3 C, ...) as (3, C, ...)."""
    heads, rest = attention.heads, mixed.shape[1:]
    size = mixed.shape[0] // (3 * heads)
    if attention.order == "heads-first":
        mixed = mixed.reshape(heads, 3, size, *rest).transpose(0, 1)
    return mixed.reshape(3, heads * size, *rest)


def export_weights(network: UNet, *, no_class: bool) -> dict[str, Tensor]:
    """Our network's tensors under ``UNet2DModel``'s names; with ``no_class``, a last class of zeros for our -1."""
    ours = {name: value.detach() for name, value in network.state_dict().items()}
    layers, attentions = _layers(network)
    theirs = {f"{key}.{end}": ours[f"{name}.{end}"] for key, name in layers.items() for end in ("weight", "bias")}
    for key, name in attentions.items():
        attention = network.get_submodule(name)
        assert isinstance(attention, SelfAttention)
        for end in ("weight", "bias"):
            parts = _split(ours[f"{name}.query_key_value.{end}"], attention)
            theirs |= {f"{key}.{part}.{end}": value for part, value in zip(_PARTS, parts, strict=True)}
    if network.class_embedding is not None:
        table = ours[_CLASSES[1]]
        theirs[_CLASSES[0]] = torch.cat([table, torch.zeros_like(table[:1])]) if no_class else table
    return {key: value.clone(memory_format=torch.contiguous_format) for key, value in theirs.items()}


_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def _modern(name: str) -> str:
    """The name that a layer of an attention saved by an old diffusers has today."""
    place, _, end = name.rpartition(".")
    head, _, layer = place.rpartition(".")
    return f"{head}.{_OLD_ATTENTION[layer]}.{end}" if ".attentions." in name and layer in _OLD_ATTENTION else name


def import_weights(network: UNet, given: Mapping[str, Tensor], where: str) -> None:
    """Fill our network, built on the meta device, from ``UNet2DModel``'s tensors; it is float32 afterwards.

    Raises:
        UserError: naming ``where`` and every tensor that is missing, extra or misshaped.
    """
    theirs = {_modern(name): value for name, value in given.items()}
    layers, attentions = _layers(network)
    shapes = network.state_dict()
    single = {f"{key}.{end}": f"{name}.{end}" for key, name in layers.items() for end in ("weight", "bias")}
    if network.class_embedding is not None:
        single[_CLASSES[0]] = _CLASSES[1]
    wanted = {key: list(shapes[name].shape) for key, name in single.items()}
    parts = {
        f"{name}.query_key_value.{end}": [f"{key}.{part}.{end}" for part in _PARTS]
        for key, name in attentions.items()
        for end in ("weight", "bias")
    }
    for name, keys in parts.items():
        wanted |= {key: [shapes[name].shape[0] // 3, *shapes[name].shape[1:]] for key in keys}
    faults = [f"{key} is missing" for key in wanted if key not in theirs]
    faults += [f"{key} is not part of this network" for key in theirs if key not in wanted]
    faults += [
        f"{key} has shape {list(value.shape)}, expected {wanted[key]}"
        for key, value in theirs.items()
        if key in wanted and list(value.shape) != wanted[key]
    ]
    if faults:
        raise UserError(f"{where}: tensors do not fit the config.json: {'; '.join(faults)}")
    ours = {name: theirs[key].to(torch.float32, copy=True) for key, name in single.items()}
    ours |= {name: torch.cat([theirs[key].to(torch.float32) for key in keys]) for name, keys in parts.items()}
    network.load_state_dict(ours, assign=True)
