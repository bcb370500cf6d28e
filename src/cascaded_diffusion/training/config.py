"""The configuration of a stage's training run.

All lengths are counted in images, so that the batch size shifts no schedule.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from cascaded_diffusion.config import StrictModel

__all__ = ["TrainingConfig"]


_Images = Annotated[int, Field(ge=1, le=10**13)]
_Beta = Annotated[float, Field(ge=0, lt=1)]


class TrainingConfig(StrictModel):
    """How a stage is trained."""

    images: _Images = Field(default=10_000_000, description="Length of the run; learning-rate schedules refer to it.")
    batch_size: int = Field(default=128, ge=1, le=1_000_000, description="Global batch size.")
    micro_batch: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="Images a forward pass; the global batch is accumulated from these. Default: all.",
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
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="auto: bf16 autocast where the hardware computes in it, else fp32."
    )
    fast_path: bool = Field(
        default=True,
        description="Faster convolutions and norms, the same sums in another order; false: torch's own layers alone.",
    )
    compile: Literal["auto", "on", "off"] = Field(
        default="auto", description="torch.compile the network; auto: on CUDA, where it pays."
    )
    checkpoint_activations: Literal["none", "blocks", "levels"] = Field(
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
        if self.micro_batch is not None and self.batch_size % self.micro_batch:
            raise ValueError(f"micro_batch: {self.micro_batch} does not divide batch_size {self.batch_size}")
        if len(set(self.ema_half_lives)) != len(self.ema_half_lives):
            raise ValueError(f"ema_half_lives: {list(self.ema_half_lives)} names one twice")
        return self
