"""The models that `paper_claims.py` compares: what each is, at each size, and how it is trained.

Every arm differs from its neighbour in the one thing that a claim is about. All super-resolution arms of one resolution
have the same network but for their inputs and see the same images in the same order with the same noise; a single stage
is trained until it has cost as many floating-point operations as the base and one super-resolution stage together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cascaded_diffusion import PreparedData, Recipe, Stage, StageConfig, train
from cascaded_diffusion.cascade.stage import build_network
from cascaded_diffusion.networks.cost import cost
from cascaded_diffusion.recipes.recipe import stage_config
from cascaded_diffusion.training.export import stage_from_run
from cascaded_diffusion.training.loop import Progress

DIFFUSION = {
    "noise_schedule": {"kind": "cosine", "timesteps": None},
    "prediction": "v",
    "noise_embedding": "angle",
}
GAUSSIAN = {"augmentation": "gaussian", "s_max": 0.6, "p_clean": 0.05}
SAMPLER = {"sampler": "dpmpp-2m", "steps": 20}


@dataclass(frozen=True)
class Size:
    """How large the networks are and how long they are trained, in images."""

    networks: dict[str, dict[str, Any]]
    images: dict[str, int]
    batch_size: int
    learning_rate: float
    half_life: int


SIZES = {
    # About a second of one core for 200 images. Patches keep every network on an 8x8 grid, which a CPU can afford.
    "cpu": Size(
        networks={
            "base8": {"channels": 48, "multipliers": [1, 2], "blocks": 1, "attention": [4], "heads": 4},
            "base16": {"channels": 64, "multipliers": [1, 2], "blocks": 2, "patch": 2, "attention": [4], "heads": 4},
            "base32": {"channels": 64, "multipliers": [1, 2], "blocks": 2, "patch": 4, "attention": [4], "heads": 4},
            "sr16": {"channels": 48, "multipliers": [1, 2], "blocks": 1, "patch": 2},
            "sr32": {"channels": 64, "multipliers": [1, 2], "blocks": 1, "patch": 4},
        },
        images={"base8": 100_032, "base16": 150_016, "sr16": 150_016, "sr32": 150_016},
        batch_size=64,
        learning_rate=6e-4,
        half_life=10_000,
    ),
    "gpu": Size(
        networks={
            "base8": {"channels": 96, "multipliers": [1, 2], "blocks": 3, "attention": [8, 4], "heads": 4},
            "base16": {"channels": 128, "multipliers": [1, 2, 2], "blocks": 3, "attention": [8, 4], "heads": 4},
            "base32": {"channels": 128, "multipliers": [1, 2, 2], "blocks": 3, "attention": [8], "heads": 4},
            "sr16": {"channels": 96, "multipliers": [1, 2, 2], "blocks": 2, "attention": [8], "heads": 4},
            "sr32": {"channels": 96, "multipliers": [1, 2, 2], "blocks": 2, "attention": [8], "heads": 4},
        },
        images={"base8": 1_000_448, "base16": 1_500_160, "sr16": 600_064, "sr32": 600_064},
        batch_size=512,
        learning_rate=6e-4,
        half_life=60_000,
    ),
    # Seconds in all: shows that the script runs, and nothing else.
    "tiny": Size(
        networks={
            name: {"channels": 8, "multipliers": [1, 2], "blocks": 1, "heads": 1, "patch": patch}
            for name, patch in {"base8": 2, "base16": 4, "base32": 8, "sr16": 4, "sr32": 8}.items()
        },
        images={"base8": 64, "base16": 64, "sr16": 64, "sr32": 64},
        batch_size=32,
        learning_rate=6e-4,
        half_life=100,
    ),
}


@dataclass(frozen=True)
class Arm:
    """One model. ``below`` is the resolution it enlarges, ``None`` for one that starts from noise."""

    resolution: int
    below: int | None = None
    conditioning: dict[str, Any] | None = None
    class_conditional: bool = True

    @property
    def stage(self) -> str:
        """The stage's name, which is that of its network and of its length of training too."""
        return f"{'base' if self.below is None else 'sr'}{self.resolution}"


ARMS = {
    "base8": Arm(8),
    "sr16-noise": Arm(16, 8, GAUSSIAN),
    "sr16-none": Arm(16, 8, {"augmentation": "none"}),
    "sr16-blur": Arm(16, 8, {"augmentation": "blur"}),
    "sr16-no-class": Arm(16, 8, GAUSSIAN, class_conditional=False),
    "single16": Arm(16),
    "base16": Arm(16),
    "sr32-noise": Arm(32, 16, GAUSSIAN),
    "sr32-none": Arm(32, 16, {"augmentation": "none"}),
    "sr32-blur": Arm(32, 16, {"augmentation": "blur"}),
    "sr32-no-class": Arm(32, 16, GAUSSIAN, class_conditional=False),
    "single32": Arm(32),
}


def _recipe(name: str, size: Size, seed: int, images: int) -> Recipe:
    arm = ARMS[name]
    stage: dict[str, Any] = {
        "name": arm.stage,
        "resolution": arm.resolution,
        "network": size.networks[arm.stage],
        "diffusion": DIFFUSION,
        "conditioning": arm.conditioning,
        "training": {
            "images": images,
            "batch_size": size.batch_size,
            "learning_rate": size.learning_rate,
            "warmup_images": images // 20,
            "decay": "cosine",
            "decay_start": 0.25,
            "ema_half_lives": [size.half_life],
            "seed": seed,
            "log_every": size.batch_size * 50,
            "preview_every": max(images // 2, 1),
            "checkpoint_every": max(images // 8, 1),
        },
        "sampling": SAMPLER,
    }
    stages = [stage]
    if arm.below is not None:
        below = {"name": f"base{arm.below}", "resolution": arm.below, "network": {}, "diffusion": DIFFUSION}
        stages = [below | {"network": size.networks[f"base{arm.below}"]}, stage]
    return Recipe.model_validate(
        {"name": name, "channels": 1, "classes": "from-data" if arm.class_conditional else None, "stages": stages}
    )


def _config(name: str, data: PreparedData, size: Size, seed: int, images: int) -> StageConfig:
    arm = ARMS[name]
    return stage_config(
        _recipe(name, size, seed, images),
        arm.stage,
        channels=data.channels,
        classes=data.classes if arm.class_conditional else None,
        class_names=data.class_names if arm.class_conditional else None,
    )


def image_flops(config: StageConfig) -> int:
    """Floating-point operations of one forward pass of one image."""
    with torch.device("meta"):
        return cost(build_network(config)).forward_flops


def training_images(name: str, data: PreparedData, size: Size) -> int:
    """The length of an arm's training; a single stage's is as costly as that of base and SR stage together."""
    arm = ARMS[name]
    if not name.startswith("single"):
        return size.images[arm.stage]
    rivals = (f"base{arm.resolution // 2}", f"sr{arm.resolution}-noise")
    flops = {other: image_flops(_config(other, data, size, 0, 1)) for other in (*rivals, name)}
    spent = sum(flops[other] * size.images[ARMS[other].stage] for other in rivals)
    return math.ceil(spent / flops[name] / size.batch_size) * size.batch_size


def arm_config(name: str, data: PreparedData, size: Size, seed: int) -> StageConfig:
    """An arm's full configuration."""
    return _config(name, data, size, seed, training_images(name, data, size))


def run_folder(out: Path, name: str, seed: int) -> Path:
    """Where an arm is trained."""
    return out / "runs" / f"{name}-seed{seed}"


def train_arm(
    name: str,
    data: PreparedData,
    out: Path,
    *,
    size: Size,
    seed: int,
    device: torch.device,
    watch: Callable[[Progress], None] | None = None,
) -> bool:
    """Train an arm, or go on where it was stopped; whether it is finished."""
    config = arm_config(name, data, size, seed)
    result = train(config, data, run_folder(out, name, seed), device=device, watch=watch)
    return result.images >= config.training.images


def load_arm(name: str, out: Path, seed: int, device: torch.device) -> Stage:
    """A trained arm's stage, with its averaged weights."""
    stage, _ = stage_from_run(run_folder(out, name, seed))
    stage.network.to(device)
    return stage
