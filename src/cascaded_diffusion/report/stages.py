"""What a stage is, in words: its network, its diffusion process, its training and its sampling."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch

from cascaded_diffusion.cascade.sampling import SamplingConfig
from cascaded_diffusion.cascade.stage import StageConfig, build_network
from cascaded_diffusion.report.markup import Html, folded, tag

__all__ = ["conditioning_words", "count_parameters", "provenance_facts", "sampling_words", "settings", "stage_facts"]


def count_parameters(config: StageConfig) -> int:
    """Trained numbers of a stage's network, found without making it."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_network(config).parameters())


def conditioning_words(config: StageConfig) -> str:
    """How the low-resolution image enters, such as ``from 16x16, gaussian, s up to 1``."""
    conditioning = config.conditioning
    if conditioning is None:
        return "from noise"
    words = [f"from {conditioning.low_resolution}x{conditioning.low_resolution}"]
    if conditioning.augmentation == "gaussian":
        words.append(f"gaussian augmentation, s up to {conditioning.s_max:g}")
        if conditioning.p_clean:
            words.append(f"{conditioning.p_clean:.0%} clean")
    elif conditioning.augmentation == "blur":
        low, high = conditioning.blur_sigma
        words.append(f"blurred, sigma {low:g} to {high:g}")
    else:
        words.append("no augmentation")
    return ", ".join(words)


def sampling_words(sampling: SamplingConfig) -> str:
    """Sampling settings, such as ``ddim, 20 steps, guidance 1.5``."""
    words = [sampling.sampler, f"{sampling.steps} steps"]
    if sampling.endpoints is not None:
        words.append("schedule {:g} to {:g}".format(*sampling.endpoints))
    if sampling.augmentation != "none":
        words.append(f"{sampling.augmentation} s = {sampling.s:g}")
    words += sampling.words()
    return ", ".join(words)


def _classes(config: StageConfig) -> str:
    if config.classes is None:
        return "none"
    return str(config.classes) if config.training.class_dropout == 0 else f"{config.classes}, and without class"


def stage_facts(config: StageConfig) -> dict[str, object]:
    """Names and values that say what a stage is and how its recipe trains it."""
    network, diffusion, training = config.network, config.diffusion, config.training
    widths = ", ".join(map(str, network.widths))
    colour = {1: "grey", 3: "RGB"}.get(config.channels, f"{config.channels} channels")
    variance = "" if diffusion.variance == "posterior" else f", variance {diffusion.variance}"
    half_lives = ", ".join(f"{half_life:,}" for half_life in training.ema_half_lives)
    return {
        "Makes": f"{config.resolution}x{config.resolution} {colour} images, {conditioning_words(config)}",
        "Parameters": f"{count_parameters(config):,}",
        "Channels by level": widths,
        "Classes": _classes(config),
        "Noise schedule": diffusion.noise_schedule.describe(),
        "Predicts": f"{diffusion.prediction}{variance}",
        "Recipe's length": f"{training.images:,} images in batches of {training.batch_size:,}",
        "Learning rate": f"{training.learning_rate:g}, {training.optimizer}, {training.decay}",
        "Averages (half-life)": f"{half_lives} images",
        "Sampled by default": sampling_words(config.sampling),
    }


def settings(title: str, value: Any) -> Html:
    """Everything that was recorded, folded away."""
    return folded(title, tag("pre", json.dumps(value, indent=2, ensure_ascii=False)))


def provenance_facts(provenance: Mapping[str, Any]) -> dict[str, object]:
    """A provenance record as names and values; nested records are joined into one line."""
    return {str(key).replace("_", " "): _in_words(value) for key, value in provenance.items()}


def _in_words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_in_words(inner)}" for key, inner in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(_in_words, value)) or "none"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    is_hash = len(text) == 64 and all(letter in "0123456789abcdef" for letter in text)
    return f"{text[:12]}…" if is_hash else text
