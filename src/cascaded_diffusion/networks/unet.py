"""The U-Net of every stage, built from a configuration.

It expresses the networks of CDM (2106.15282, appendix B) and of guided-diffusion (ADM, 2105.05233).
"""

from __future__ import annotations

from typing import Annotated, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from cascaded_diffusion.config import StrictModel
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.networks.blocks import (
    AttentionOrder,
    DecoderLevel,
    Direction,
    EncoderLevel,
    Head,
    Middle,
    Resampling,
    ResidualBlock,
    SelfAttention,
    Unit,
    recomputed,
    run,
)
from cascaded_diffusion.networks.embeddings import ClassEmbedding, ScalarEmbedding
from cascaded_diffusion.networks.normalisation import GroupNorm
from cascaded_diffusion.networks.winograd import Convolution

__all__ = ["NetworkConfig", "Recompute", "UNet"]

Recompute = Literal["none", "blocks", "levels"]
"""What of the activations is computed again in the backward pass instead of kept: see :meth:`UNet.recompute`."""

_WIDEST = 16_384
_LEVELS = 12  # of two pixels and up
_Blocks = Annotated[int, Field(ge=1, le=64)]
_Share = Annotated[float, Field(ge=0, lt=1)]
_Side = Annotated[int, Field(ge=1, le=4096)]
_Multiplier = Annotated[int, Field(gt=0, le=64)] | Annotated[float, Field(gt=0, le=64)]


class NetworkConfig(StrictModel):
    """The shape of one stage's U-Net. Resolutions are pixels of the first level's grid, the image's over ``patch``."""

    channels: int = Field(64, ge=1, le=8192, description="base width; the embeddings are four times as wide")
    multipliers: tuple[_Multiplier, ...] = Field(
        min_length=1,
        max_length=_LEVELS,
        description="width of each level in units of channels; every level halves the resolution",
    )
    blocks: _Blocks | Annotated[tuple[_Blocks, ...], Field(max_length=_LEVELS)] = Field(
        2, description="residual blocks of a level, one number or one per level (the decoder has one more)"
    )
    attention: tuple[_Side, ...] = Field(
        (), max_length=_LEVELS, description="resolutions in pixels at which self-attention acts"
    )
    middle_attention: bool = Field(True, description="self-attention at the lowest resolution, between two blocks")
    heads: int = Field(4, ge=1, le=1024, description="attention heads")
    decoder_heads: int | None = Field(None, ge=1, le=1024, description="attention heads in the decoder, if not as many")
    head_channels: int | None = Field(
        None,
        ge=1,
        le=8192,
        description="channels of a head; replaces heads and decoder_heads: heads = width / head_channels",
    )
    attention_order: AttentionOrder = Field(
        "qkv-first",
        description="order inside the query-key-value layer: heads-first (guided-diffusion's old) or qkv-first (new)",
    )
    dropout: _Share | Annotated[tuple[_Share, ...], Field(max_length=_LEVELS)] = Field(
        0.0,
        description="dropout inside the residual blocks, one number or one per level: at the lower resolutions only "
        "(simple diffusion, 2301.11093); the middle has the last level's",
    )
    scale_shift: bool = Field(True, description="embeddings scale and shift the second norm, else are added before it")
    resample: Literal["conv", "block", "plain"] = Field(
        "conv", description="strided / nearest + conv; BigGAN's residual block; or mean / nearest without weights"
    )
    scaled_skips: bool = Field(
        False, description="skips enter the decoder times 1/sqrt(2) (Efficient U-Net, Imagen, 2205.11487, appendix B.1)"
    )
    up_after_conv: bool = Field(
        False,
        description="resample: conv, block: on the way up enlarge after the convolution, which so costs a quarter "
        "(Efficient U-Net); on the way down the size changes before or in the convolution anyway",
    )
    patch: int = Field(
        1, ge=1, le=64, description="space-to-depth factor at the input, pixel-shuffle factor at the output"
    )

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of every level, highest resolution first."""
        return tuple(int(multiplier * self.channels) for multiplier in self.multipliers)

    def block_counts(self) -> tuple[int, ...]:
        """Encoder blocks of every level. ``UserError`` if a tuple of another length was given."""
        if isinstance(self.blocks, int):
            return (self.blocks,) * len(self.multipliers)
        if len(self.blocks) != len(self.multipliers):
            raise UserError(
                f"network.blocks: {list(self.blocks)} has {len(self.blocks)} entries; "
                f"one number, or one for each of the {len(self.multipliers)} multipliers, is allowed"
            )
        return self.blocks

    def dropouts(self) -> tuple[float, ...]:
        """Dropout of every level. ``UserError`` if a tuple of another length was given."""
        if isinstance(self.dropout, float):
            return (self.dropout,) * len(self.multipliers)
        if len(self.dropout) != len(self.multipliers):
            raise UserError(
                f"network.dropout: {list(self.dropout)} has {len(self.dropout)} entries; "
                f"one number, or one for each of the {len(self.multipliers)} multipliers, is allowed"
            )
        return self.dropout

    def level_resolutions(self, resolution: int) -> tuple[int, ...]:
        """Resolution of every level for images of ``resolution`` pixels. ``UserError`` if the levels do not divide it,
        or if attention is asked for at a resolution that does not occur."""
        step = self.patch * 2 ** (len(self.multipliers) - 1)
        if resolution < 1 or resolution % step:
            raise UserError(
                f"resolution: {resolution} cannot be halved into {len(self.multipliers)} levels "
                f"(network.multipliers) after network.patch {self.patch}; multiples of {step} are allowed"
            )
        levels = tuple(resolution // self.patch >> level for level in range(len(self.multipliers)))
        for wanted in self.attention:
            if wanted not in levels:
                raise UserError(
                    f"network.attention: {wanted} is not the resolution of a level; {list(levels)} are allowed"
                )
        return levels

    def check(self, resolution: int) -> None:
        """``UserError`` for a shape that no network for images of ``resolution`` pixels can have; nothing is built."""
        levels = self.level_resolutions(resolution)
        self.block_counts()
        self.dropouts()
        if self.up_after_conv and self.resample == "plain":
            raise UserError("network.up_after_conv: true, but resample: plain has no convolution; allowed: false")
        if min(self.widths) < 1:
            raise UserError(
                f"network.multipliers: {list(self.multipliers)} of {self.channels} channels leaves a level without "
                f"channels; at least 1 / {self.channels} is allowed"
            )
        if max(self.widths) > _WIDEST:
            raise UserError(
                f"network.multipliers: {list(self.multipliers)} of {self.channels} channels makes a level of "
                f"{max(self.widths)} channels; at most {_WIDEST} are allowed"
            )
        attending = [width for level, width in zip(levels, self.widths, strict=True) if level in self.attention]
        for width in attending:
            self.heads_at(width)
            self.heads_at(width, decoder=True)
        if self.middle_attention:
            self.heads_at(self.widths[-1])

    def heads_at(self, width: int, *, decoder: bool = False) -> int:
        """Heads of an attention over ``width`` channels. ``UserError`` if they do not divide it."""
        if self.head_channels is not None:
            if width % self.head_channels:
                raise UserError(
                    f"network.head_channels: {self.head_channels} does not divide a level's {width} channels; "
                    f"a divisor of {width} is allowed"
                )
            return width // self.head_channels
        name, heads = "heads", self.heads
        if decoder and self.decoder_heads is not None:
            name, heads = "decoder_heads", self.decoder_heads
        if width % heads:
            raise UserError(
                f"network.{name}: {heads} does not divide a level's {width} channels; a divisor of {width} is allowed"
            )
        return heads


class _Builder:
    """Makes the parts of one configuration's network, so that the levels need not repeat what all blocks share."""

    def __init__(self, config: NetworkConfig, resolution: int) -> None:
        config.check(resolution)
        self.config = config
        self.widths = config.widths
        self.counts = config.block_counts()
        self.dropouts = config.dropouts()
        self.attends = [level in config.attention for level in config.level_resolutions(resolution)]
        self.last = len(self.widths) - 1
        self.signal_width = 4 * config.channels

    def encoder(self) -> nn.ModuleList:
        """Levels from the highest resolution to the lowest; only the lowest has no way down."""
        levels = nn.ModuleList()
        for i, width in enumerate(self.widths):
            inputs = [self.widths[max(i - 1, 0)]] + [width] * (self.counts[i] - 1)
            units = [self._unit(inner, width, i, decoder=False) for inner in inputs]
            levels.append(EncoderLevel(units, self._resampling(width, "down", i) if i < self.last else None))
        return levels

    def middle(self) -> Middle:
        """What stands at the lowest resolution between encoder and decoder."""
        width = self.widths[-1]
        attention = self._attention(width, decoder=False) if self.config.middle_attention else None
        return Middle(self._residual(width, width, self.last), attention, self._residual(width, width, self.last))

    def decoder(self) -> nn.ModuleList:
        """Levels from the lowest resolution to the highest. The last skip of a level is the way down into it."""
        levels = nn.ModuleList()
        for i in range(self.last, -1, -1):
            width = self.widths[i]
            inputs = [self.widths[min(i + 1, self.last)]] + [width] * self.counts[i]
            skips = [width] * self.counts[i] + [self.widths[max(i - 1, 0)]]
            units = [
                self._unit(inner + skip, width, i, decoder=True) for inner, skip in zip(inputs, skips, strict=True)
            ]
            up = self._resampling(width, "up", i) if i > 0 else None
            levels.append(DecoderLevel(units, up, skip_scale=0.5**0.5 if self.config.scaled_skips else 1.0))
        return levels

    def _residual(self, width: int, out_width: int, level: int, resample: Direction | None = None) -> ResidualBlock:
        return ResidualBlock(
            width,
            out_width,
            self.signal_width,
            dropout=self.dropouts[level],
            scale_shift=self.config.scale_shift,
            resample=resample,
            conv_first=self.config.up_after_conv and resample == "up",
        )

    def _attention(self, width: int, *, decoder: bool) -> SelfAttention:
        return SelfAttention(width, self.config.heads_at(width, decoder=decoder), self.config.attention_order)

    def _unit(self, width: int, out_width: int, level: int, *, decoder: bool) -> Unit:
        attention = self._attention(out_width, decoder=decoder) if self.attends[level] else None
        return Unit(self._residual(width, out_width, level), attention)

    def _resampling(self, width: int, direction: Direction, level: int) -> Resampling | ResidualBlock:
        if self.config.resample == "block":
            return self._residual(width, width, level, direction)
        conv_first = self.config.up_after_conv and direction == "up"
        return Resampling(width, direction, conv=self.config.resample == "conv", conv_first=conv_first)


class UNet(nn.Module):
    """A U-Net over noisy images, told the time and, if built so, the class, a low-resolution image and its noise level.

    Args:
        config: shape of the network.
        resolution: R, pixels a side of the images.
        image_channels: channels of the noisy image x.
        out_channels: channels of the output (twice ``image_channels`` where the variance is learned).
        classes: number of classes, or None for a network without.
        low_res_channels: channels of the low-resolution image, 0 for a network without (CDM section 3).
        s_embedding: whether the network is told s, the noise level of its low-resolution image (CDM section 4.2).
        upsample: how the low-resolution image is enlarged: half-pixel centres, no antialiasing.
        crop: side of the crops that it is trained on beside whole images, for a network without attention.
        augment_features: numbers that tell of a training image's geometric augmentation, 0 for a network without.

    Raises ``UserError`` if the levels do not divide the resolution, or heads a width.
    Time, class and s are embedded, summed and told to every residual block; the new network outputs exactly 0.
    """

    def __init__(
        self,
        config: NetworkConfig,
        *,
        resolution: int,
        image_channels: int,
        out_channels: int,
        classes: int | None = None,
        low_res_channels: int = 0,
        s_embedding: bool = False,
        upsample: Literal["bilinear", "bicubic"] = "bilinear",
        crop: int | None = None,
        augment_features: int = 0,
    ) -> None:
        super().__init__()
        self.config = config
        self.resolution = resolution
        self.image_channels = image_channels
        self.out_channels = out_channels
        self.classes = classes
        self.low_res_channels = low_res_channels
        self.has_s = s_embedding
        self.upsample = upsample
        self.crop = crop
        self.augment_features = augment_features

        self.recompute("none")

        builder = _Builder(config, resolution)
        width, signal_width, pixels = builder.widths[0], builder.signal_width, config.patch**2
        self.time_embedding = ScalarEmbedding(config.channels, signal_width)
        self.class_embedding = None if classes is None else ClassEmbedding(classes, signal_width)
        self.s_embedding = ScalarEmbedding(config.channels, signal_width, scale=1000.0) if s_embedding else None
        # Without a bias: what is not augmented, such as every sample, is told nothing (EDM, 2206.00364, appendix F.2).
        self.augment_embedding = nn.Linear(augment_features, signal_width, bias=False) if augment_features else None
        self.stem = nn.Conv2d((image_channels + low_res_channels) * pixels, width, 3, padding=1)
        self.encoder = builder.encoder()
        self.middle = builder.middle()
        self.decoder = builder.decoder()
        self.head = Head(width, out_channels * pixels)

    def use_fast_path(self, on: bool) -> None:
        """Allow or forbid the faster ways to the same output; without them every layer is torch's own operations.

        They are another order of the same sums: outputs and gradients agree to rounding, in bf16 to bf16's.
        """
        for module in self.modules():
            if isinstance(module, GroupNorm | Convolution):
                module.fast = on

    def recompute(self, parts: Recompute) -> None:
        """Trade arithmetic for memory in training: the gradients are the same.

        With ``blocks``, only what goes from block to block is kept and each block runs again in the backward pass,
        which adds a third to the arithmetic; with ``levels``, only what goes from level to level.
        """
        self._recompute: Recompute = parts

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        *,
        labels: Tensor | None = None,
        low_res: Tensor | None = None,
        s: Tensor | None = None,
        augment: Tensor | None = None,
    ) -> Tensor:
        """Answer for noisy images.

        Args:
            x: noisy images (N, image_channels, R, R).
            time: what the sinusoids see (N,), on the scale of guided-diffusion's timesteps (about 0 to 1000 or 4000).
            labels: classes (N,) int64 below ``classes``; -1 is "no class" (2207.12598) and embedded as zeros.
            low_res: low-resolution images (N, low_res_channels, r, r), r <= R, enlarged and put behind x.
            s: noise level of ``low_res`` (N,) in [0, 1].
            augment: what was done to the images (N, augment_features), zeros and ``None`` for nothing.

        Returns (N, out_channels, R, R). Raises ``ValueError`` on a missing, unwanted or misshaped input.
        """
        self._check(x, time, labels, low_res, s)
        h = self._input(x, low_res)
        signal = self._signal(time, labels, s, augment)
        h = self.stem(h)
        parts = self._recompute if torch.is_grad_enabled() else "none"
        outer = recomputed if parts == "levels" else run
        inner = recomputed if parts == "blocks" else run
        skips = [h]
        for level in self.encoder:
            skips += outer(level, skips[-1], signal, inner)
        h = outer(self.middle, skips[-1], signal, inner)
        for level in self.decoder:
            start = len(skips) - cast(DecoderLevel, level).count
            h = outer(level, h, skips[start:], signal, inner)
            del skips[start:]
        h = self.head(h)
        return h if self.config.patch == 1 else F.pixel_shuffle(h, self.config.patch)

    def _input(self, x: Tensor, low_res: Tensor | None) -> Tensor:
        """The noisy image, the enlarged low-resolution image behind it, folded into patches, in channels_last."""
        if low_res is not None:
            large = F.interpolate(low_res, x.shape[2:], mode=self.upsample, align_corners=False, antialias=False)
            x = torch.cat([x, large.to(x.dtype)], dim=1)
        if self.config.patch > 1:
            x = F.pixel_unshuffle(x, self.config.patch)
        # One image in another layout would turn every layer's; here the conversion is cheap, and mostly none.
        return x.contiguous(memory_format=torch.channels_last)

    def _signal(self, time: Tensor, labels: Tensor | None, s: Tensor | None, augment: Tensor | None) -> Tensor:
        """The sum of all embeddings (N, 4 * channels), through the SiLU with which every block would begin."""
        total: Tensor = self.time_embedding(time)
        if self.class_embedding is not None:
            total = total + self.class_embedding(labels)
        if self.s_embedding is not None:
            total = total + self.s_embedding(s)
        if self.augment_embedding is not None and augment is not None:
            total = total + self.augment_embedding(augment.to(self.augment_embedding.weight.dtype))
        return F.silu(total)

    def _check(self, x: Tensor, time: Tensor, labels: Tensor | None, low_res: Tensor | None, s: Tensor | None) -> None:
        n, side = x.shape[0], self.resolution
        if self.crop is not None and x.shape[-1] == self.crop:
            side = self.crop
        wanted: tuple[tuple[str, Tensor | None, bool, str], ...] = (
            ("labels", labels, self.classes is not None, "(-1 means no class)"),
            ("low_res", low_res, self.low_res_channels > 0, "(the low-resolution images)"),
            ("s", s, self.has_s, "(the noise level of low_res, 0 for clean)"),
        )
        for name, value, needed, meaning in wanted:
            if needed and value is None:
                raise ValueError(f"{name} is missing: this network needs it {meaning}")
            if not needed and value is not None:
                raise ValueError(f"{name} was given, but this network was built without it")
        if tuple(x.shape[1:]) != (self.image_channels, side, side):
            raise ValueError(f"x has shape {tuple(x.shape)}, expected (N, {self.image_channels}, {side}, {side})")
        if labels is not None and labels.dtype != torch.int64:
            raise ValueError(f"labels are {labels.dtype}, expected torch.int64")
        for name, value in (("time", time), ("labels", labels), ("s", s)):
            if value is not None and tuple(value.shape) != (n,):
                raise ValueError(f"{name} has shape {tuple(value.shape)}, expected ({n},): one for each image")
        if low_res is not None:
            shape = tuple(low_res.shape)
            fits = len(shape) == 4 and shape[:2] == (n, self.low_res_channels) and shape[2] == shape[3] <= side
            if not fits:
                raise ValueError(
                    f"low_res has shape {shape}, expected ({n}, {self.low_res_channels}, r, r) with r <= {side}"
                )
