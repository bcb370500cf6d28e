"""What a stage costs in arithmetic, memory and time, from its configuration alone: nothing is computed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from cascaded_diffusion.cascade.generate import stage_evaluations, stage_passes
from cascaded_diffusion.cascade.sampling import SamplingConfig
from cascaded_diffusion.cascade.stage import Stage, StageConfig, empty_network
from cascaded_diffusion.networks.cost import Cost, cost
from cascaded_diffusion.networks.peak import forward_peak, training_peak

__all__ = ["RESERVE", "Attention", "StageBudget", "attentions", "images_per_second", "too_large_attention"]

_FLOAT32 = 4
RESERVE = 0.1
"""Share of a GPU's memory that an estimate leaves to the driver, the libraries' work space and fragmentation."""
_FEW = 64
"""Images at which activations outweigh the gradients that come later."""


@dataclass(frozen=True)
class Attention:
    """The self-attention layers at one resolution.

    Attributes:
        resolution: side of the level's grid.
        heads: of each layer, the most that one has.
        layers: how many.
        width: channels.
    """

    resolution: int
    heads: int
    layers: int
    width: int

    @property
    def tokens(self) -> int:
        """Positions that look at each other."""
        return self.resolution**2

    def pair_bytes(self, *, size: int = _FLOAT32) -> int:
        """Bytes of the matrices of all pairs, of all heads of one layer, for one image.

        Attention without a fused kernel keeps these tokens^2 numbers of each head and layer until the backward pass,
        and for a moment two copies of one layer's.
        """
        return self.heads * self.tokens**2 * size

    def fused_bytes(self, *, size: int = _FLOAT32) -> int:
        """What a fused kernel (flash, memory-efficient) keeps of one image and layer instead: q, k, v and output."""
        return 4 * self.tokens * self.width * size


def attentions(config: StageConfig) -> list[Attention]:
    """A stage's self-attention by resolution, the largest first, without building it."""
    network = config.network
    levels, widths, counts = network.level_resolutions(config.resolution), network.widths, network.block_counts()
    found = []
    for i, (level, width, count) in enumerate(zip(levels, widths, counts, strict=True)):
        # The decoder has one block more than the encoder.
        layers = 2 * count + 1 if level in network.attention else 0
        layers += network.middle_attention and i == len(levels) - 1
        if layers:
            heads = network.heads_at(width)
            if level in network.attention:  # the middle has the encoder's
                heads = max(heads, network.heads_at(width, decoder=True))
            found.append(Attention(level, heads, int(layers), width))
    return found


def too_large_attention(config: StageConfig, images: int, memory: int) -> str | None:
    """One line about attention whose matrices of all pairs would fill a memory, or ``None``.

    Args:
        config: the stage.
        images: of a forward pass in training.
        memory: bytes of the device.
    """
    size = 2 if config.training.precision == "bf16" else _FLOAT32
    for attention in attentions(config):
        pairs = images * attention.layers * attention.pair_bytes(size=size)
        if pairs > memory:
            fused = images * attention.layers * attention.fused_bytes(size=size)
            return (
                f"{config.name}: attention at {attention.resolution} pixels would not fit: for {images} images the "
                f"matrices of {attention.tokens:,} x {attention.tokens:,} positions take {pairs / 2**30:,.0f} GiB, and "
                f"there are {memory / 2**30:,.0f}. Only fused kernels (flash, memory-efficient), which torch takes "
                f"where it has them, do without: {fused / 2**30:,.1f} GiB. Their time grows as fast; see "
                "network.attention"
            )
    return None


def images_per_second(flops: int, peak: float, utilisation: float) -> float:
    """Images a second of one GPU, at so many operations each and this share of its matrix rate."""
    return peak * utilisation / flops


@dataclass(frozen=True)
class StageBudget:
    """The price of one stage.

    Attributes:
        config: the stage.
        batch: global batch of its training.
        gpus: that share the batch.
    """

    config: StageConfig
    batch: int
    gpus: int = 1

    @cached_property
    def _stage(self) -> Stage:
        return Stage(self.config, empty_network(self.config))

    @property
    def _sampling(self) -> SamplingConfig:
        return self.config.settled(self.config.sampling)

    @cached_property
    def price(self) -> Cost:
        """Parameters, and operations of a forward pass."""
        return cost(self._stage.network)

    @property
    def _area(self) -> float:
        """Share of an image's pixels that training sees: a network without attention, the only kind that trains on
        crops, computes and keeps in proportion to them."""
        return ((self.config.training.crop or self.config.resolution) / self.config.resolution) ** 2

    # -- arithmetic ---------------------------------------------------------------------------------------------------

    @property
    def training_flops(self) -> int:
        """Operations for one image of training: the backward pass counts as two forward passes.

        Checkpointing of activations does the forward pass once more; it is work, but none that training asks for, and
        the utilisation of a GPU is not counted with it.
        """
        return round(self.price.training_flops(1) * self._area)

    @property
    def evaluations(self) -> int:
        """Evaluations of the network for one sample with the default settings, the stage going to its end."""
        return stage_evaluations(self._stage, self._sampling)

    @property
    def passes(self) -> int:
        """Forward passes for one sample: its evaluations, those that are guided twice."""
        return stage_passes(self._stage, self._sampling)

    @property
    def is_guided(self) -> bool:
        """Whether guidance runs the network twice for each."""
        return self._sampling.guidance != 1

    @property
    def sampling_flops(self) -> int:
        """Operations for one sample; an evaluation is two forward passes where it is guided."""
        return self.price.forward_flops * self.passes

    # -- memory -------------------------------------------------------------------------------------------------------

    @property
    def share(self) -> int:
        """Images of one forward pass in training on one GPU."""
        micro = self.config.training.micro_batch
        return min(micro if isinstance(micro, int) else self.batch, -(-self.batch // self.gpus))

    @property
    def state_bytes(self) -> dict[str, int]:
        """What lies in memory as long as training goes on: float32, four bytes for each parameter."""
        parts = self.gpus if self.config.training.sharding == "full" else 1
        weights = _FLOAT32 * -(-self.price.parameters // parts)
        averages = len(self.config.training.ema_half_lives) + len(self.config.training.power_ema)
        return {"weights": weights, "gradients": weights, "adam": 2 * weights, "averages": averages * weights}

    @cached_property
    def activation_bytes(self) -> int:
        """What the forward pass of one image keeps for the backward pass, in float32."""
        again = self.config.training.checkpoint_activations
        if again == "none":
            return round(self.price.activation_bytes * self._area)
        network = empty_network(self.config)
        network.recompute(again)
        few, many = (training_peak(network, count) for count in (_FEW, 2 * _FEW))
        return round((many - few) / _FEW * self._area)

    def training_bytes(self, images: int) -> int:
        """Estimated memory of training with ``images`` a forward pass.

        :attr:`state_bytes` and the activations of these images, in float32. bf16 autocast needs less for the images
        and more for copies of the weights, so this is the safe side of it. Left out are temporaries of the backward
        pass, and what else ``RESERVE`` is for.
        """
        return sum(self.state_bytes.values()) + images * self.activation_bytes

    def largest_micro_batch(self, memory: int) -> int:
        """The most images a forward pass in training that fit into a memory, at most the GPU's share; 0: not one."""
        room = (1 - RESERVE) * memory - sum(self.state_bytes.values())
        return min(max(int(room / self.activation_bytes), 0), -(-self.batch // self.gpus))

    @cached_property
    def sampling_bytes(self) -> int:
        """Estimated memory of a forward pass for one sample, weights left out; guidance runs two."""
        return forward_peak(self._stage.network) * (2 if self.is_guided else 1)

    def largest_sampling_batch(self, memory: int) -> int:
        """The most samples at once that fit into a memory beside this stage's weights; 0: not one."""
        room = (1 - RESERVE) * memory - _FLOAT32 * self.price.parameters
        return max(int(room / self.sampling_bytes), 0)

    # -- time ---------------------------------------------------------------------------------------------------------

    def gpu_seconds(self, peak: float, utilisation: float) -> float:
        """Of the recipe's whole training, at this share of a GPU's matrix rate."""
        return self.config.training.images / images_per_second(self.training_flops, peak, utilisation)
