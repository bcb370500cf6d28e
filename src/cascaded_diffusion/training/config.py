"""The configuration of a stage's training run.

All lengths are counted in images, so that the batch size shifts no schedule.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from cascaded_diffusion.config import StrictModel
from cascaded_diffusion.networks.compiling import CompileChoice
from cascaded_diffusion.networks.unet import Recompute
from cascaded_diffusion.precision import Precision
from cascaded_diffusion.training.power_ema import WIDEST

__all__ = ["TrainingConfig"]


_Images = Annotated[int, Field(ge=1, le=10**13)]
_Beta = Annotated[float, Field(ge=0, lt=1)]


class TrainingConfig(StrictModel):
    """How a stage is trained."""

    images: _Images = Field(default=10_000_000, description="Length of the run; learning-rate schedules refer to it.")
    batch_size: int = Field(default=128, ge=1, le=1_000_000, description="Global batch size.")
    micro_batch: Annotated[int, Field(ge=1, le=1_000_000)] | Literal["auto"] | None = Field(
        default=None,
        description="Images a forward pass; each process accumulates its share of the global batch from these. "
        "Default: the whole share; auto: the largest half, quarter, ... of it that fits in memory, found by trying.",
    )
    sharding: Literal["none", "full"] = Field(
        default="none",
        description="full: where several processes train, each holds its part of weights, gradients, moments and "
        "averages (FSDP2). Changes memory, and the result by rounding only.",
    )
    optimizer: Literal["adam", "adamw"] = Field(
        default="adam", description="Adam, or AdamW with decoupled weight decay."
    )
    learning_rate: float = Field(default=1e-4, gt=0, le=1, description="Peak learning rate.")
    betas: tuple[_Beta, _Beta] = Field(default=(0.9, 0.999), description="Adam's betas.")
    eps: float = Field(default=1e-8, gt=0, le=1, description="Adam's epsilon.")
    weight_decay: float = Field(default=0.0, ge=0, le=100, description="Weight decay; needs optimizer: adamw.")
    warmup_images: int = Field(default=0, ge=0, le=10**13, description="Linear warm-up of the learning rate.")
    decay: Literal["constant", "linear", "cosine"] = Field(
        default="constant", description="What the learning rate does from decay_start to the end of the run."
    )
    decay_start: float = Field(
        default=0.0, ge=0, lt=1, description="Share of the run after which the rate decays to 0."
    )
    grad_clip: float | None = Field(default=1.0, gt=0, le=1e9, description="Largest gradient norm; null for none.")
    ema_half_lives: tuple[_Images, ...] = Field(
        default=(1_000_000,),
        min_length=1,
        max_length=16,
        description="Half-lives of the weight averages, in images; the first is the default.",
    )
    ema_rampup: float | None = Field(
        default=0.05,
        gt=0,
        le=100,
        description="Half-lives are capped at this share of the images seen so far (EDM); null: no cap.",
    )
    power_ema: tuple[Annotated[float, Field(gt=0, le=WIDEST)], ...] = Field(
        default=(),
        max_length=8,
        description="Relative lengths sigma_rel of power-function averages (EDM2, 2312.02696), such as [0.05, 0.1]; "
        "snapshots of two give any length after training (cdm assemble --ema 0.13).",
    )
    snapshot_every: _Images | None = Field(
        default=None, description="Images between snapshots of power_ema; null: as checkpoint_every."
    )
    max_skipped_steps: int = Field(
        default=10,
        ge=0,
        le=1_000_000,
        description="Steps in a row that are skipped because loss or gradient is not finite; one more ends the run.",
    )
    class_dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of examples without class, for classifier-free guidance (2207.12598).",
    )
    crop: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="SR stages without attention: train on random crops of this side, the low-resolution image cropped "
        "alike (Imagen, 2205.11487); null: whole images.",
    )
    augment: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Probability of each geometric augmentation (scale, rotation, stretch, shift; a flip has half of "
        "it), which the network is told and never sampled with (EDM, 2206.00364, appendix F.2).",
    )
    precision: Precision = Field(
        default="auto", description="auto: bf16 autocast where the hardware computes in it, else fp32."
    )
    fast_path: bool = Field(
        default=True,
        description="Faster convolutions and norms, the same sums in another order; false: torch's own operations.",
    )
    compile: CompileChoice = Field(
        default="auto", description="torch.compile the network; auto: on CUDA, where it pays."
    )
    checkpoint_activations: Recompute = Field(
        default="none",
        description="Compute activations again in the backward pass, of each block or each level: less memory, a third "
        "more arithmetic, the same gradients.",
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="Seed of everything random in the run.")
    log_every: _Images = Field(default=5_000, description="Images between lines of metrics.jsonl.")
    preview_every: _Images | None = Field(default=100_000, description="Images between previews; null for none.")
    preview_count: int = Field(default=16, ge=1, le=256, description="Images in a preview.")
    checkpoint_every: _Images = Field(default=100_000, description="Images between checkpoints.")
    keep_checkpoints: int | None = Field(
        default=3,
        ge=1,
        le=1_000_000,
        description="Newest checkpoints kept; null keeps all, as model selection by score needs.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.weight_decay and self.optimizer != "adamw":
            raise ValueError(f"weight_decay: {self.weight_decay:g} needs optimizer: adamw")
        if isinstance(self.micro_batch, int) and self.batch_size % self.micro_batch:
            raise ValueError(f"micro_batch: {self.micro_batch} does not divide batch_size {self.batch_size}")
        if self.micro_batch == "auto" and self.sharding == "full":
            # Memory may run out on one process alone, while the others wait for its part of the weights.
            raise ValueError("micro_batch: auto does not go with sharding: full; give a number")
        if self.compile == "on" and self.sharding == "full":
            raise ValueError("compile: on does not go with sharding: full, which is not compiled; allowed: auto, off")
        if len(set(self.ema_half_lives)) != len(self.ema_half_lives):
            raise ValueError(f"ema_half_lives: {list(self.ema_half_lives)} names one twice")
        if len({f"{value:g}" for value in self.power_ema}) != len(self.power_ema):
            raise ValueError(f"power_ema: {list(self.power_ema)} names one twice")
        if self.snapshot_every is not None and not self.power_ema:
            raise ValueError(f"snapshot_every: {self.snapshot_every} needs power_ema")
        return self
