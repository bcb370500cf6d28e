"""The arms of `modern_ablation.py`: what each changes of the paper-style cascade, and at which sizes it is trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cascaded_diffusion import Recipe

Settings = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """How large the images and networks are, how long training is (images a stage), and how many samples are scored."""

    low: int
    high: int
    base: Settings
    sr: Settings
    images: int
    batch_size: int
    learning_rate: float
    num: int


SIZES = {
    # Ten minutes an arm on one core: short enough for every option, too short for pictures to be proud of.
    "cpu": Size(
        low=8,
        high=16,
        base={"channels": 48, "multipliers": [1, 2], "blocks": 1, "attention": [4], "heads": 4},
        sr={"channels": 32, "multipliers": [1, 2], "blocks": 1, "middle_attention": False},
        images=40_000,
        batch_size=32,
        learning_rate=6e-4,
        num=1_000,
    ),
    "gpu": Size(
        low=16,
        high=32,
        base={"channels": 96, "multipliers": [1, 2, 2], "blocks": 2, "attention": [8, 4], "heads": 4},
        sr={"channels": 64, "multipliers": [1, 2, 2], "blocks": 2, "middle_attention": False},
        images=400_384,
        batch_size=512,
        learning_rate=6e-4,
        num=20_000,
    ),
    # Seconds in all: shows that the script runs, and nothing else.
    "tiny": Size(
        low=8,
        high=16,
        base={"channels": 8, "multipliers": [1, 2], "blocks": 1, "heads": 1, "patch": 2, "middle_attention": False},
        sr={"channels": 8, "multipliers": [1, 2], "blocks": 1, "heads": 1, "patch": 2, "middle_attention": False},
        images=64,
        batch_size=8,
        learning_rate=6e-4,
        num=20,
    ),
}

_RMS = {8: 0.80, 16: 0.84, 32: 0.87}
"""Root mean square of Fashion-MNIST's training images in [-1, 1], by resolution."""

_CONTINUOUS = {"noise_schedule": {"kind": "cosine", "timesteps": None}}


@dataclass(frozen=True)
class Arm:
    """Changes to `paper`, as groups of a stage's keys.

    Attributes:
        what: in words.
        both, base, sr: changes to both stages, and to one of them.
        same_training_as: the arm whose runs this one samples, if it trains nothing of its own.
        shared: stages that are trained as in `paper`.
        ema: which average of the weights, as in `cdm assemble --ema`.
        guide_share: share of the training after which the base's guide is taken; 0 for no guide.
        guided: sampling settings of a base with a guide.
    """

    what: str
    both: Settings = field(default_factory=dict)
    base: Settings = field(default_factory=dict)
    sr: Settings = field(default_factory=dict)
    same_training_as: str | None = None
    shared: tuple[str, ...] = ()
    ema: str | None = None
    guide_share: float = 0.0
    guided: Settings = field(default_factory=dict)

    def trained_as(self, stage: str) -> str:
        """The arm whose run of a stage this one takes."""
        kind = "base" if stage.startswith("base") else "sr"
        own = next(name for name, arm in ARMS.items() if arm is self)
        return "paper" if kind in self.shared else self.same_training_as or own


_FEW = {"sampling": {"sampler": "dpmpp-2m"}}
_EDM = {"diffusion": {**_CONTINUOUS, "prediction": "edm", "log_normal": {}}}
_EDM_RMS = {"diffusion": {**_EDM["diffusion"], "sigma_data": "rms"}}
_EDM_FEW = {"sampling": {"sampler": "heun", "grid": "edm"}}
_SLIM = {"scaled_skips": True, "up_after_conv": True, "blocks": "low"}
_SIXTEEN_AND_EIGHT = {
    "base": {"sampling": {"steps": 16, "guidance": 1.5, "guidance_interval": [0.3, 5.0]}},
    "sr": {"sampling": {"steps": 8}},
}
_ON_EDMS_GRID = {"sampling": {"sampler": "dpmpp-2m", "grid": "edm"}}
_STEPS = {"base": {"sampling": {"steps": 10}}, "sr": {"sampling": {"steps": 5}}}

ARMS: dict[str, Arm] = {
    "paper": Arm("eps, cosine T = 1000, ancestral sampling in 100 + 50 steps"),
    "v": Arm("v-prediction (2202.00512)", both={"diffusion": {"prediction": "v"}}),
    "min-snr": Arm("loss weight min(SNR, 5) (2303.09556)", both={"diffusion": {"min_snr_gamma": 5.0}}),
    "sigmoid": Arm(
        "v in continuous time, sigmoid loss weight, bias 0 (2410.19324)",
        both={"diffusion": {**_CONTINUOUS, "prediction": "v", "sigmoid_bias": 0.0}},
    ),
    "edm": Arm("EDM preconditioning, log-normal levels (2206.00364)", both=_EDM),
    "edm-rms": Arm("EDM with sigma_data that of the images, P_mean moved by as much", both=_EDM_RMS),
    "shift": Arm("log SNR shifted by 2 log(64/R) (2301.11093)", both={"diffusion": {"noise_schedule": "shifted"}}),
    "few-steps": Arm("DPM-Solver++(2M) in 10 + 5 steps (2211.01095)", both=_FEW, **_STEPS, same_training_as="paper"),
    "edm-heun": Arm(
        "EDM's Heun sampler on its grid, 9 + 5 steps, 26 evaluations",
        both=_EDM | _EDM_FEW,
        base={"sampling": {"steps": 9}},
        sr={"sampling": {"steps": 5}},
        same_training_as="edm",
    ),
    "guidance": Arm(
        "classifier-free guidance 1.5 at the base (2207.12598)",
        base={"sampling": {"guidance": 1.5}},
        same_training_as="paper",
    ),
    "interval": Arm(
        "guidance 2 at the base where 0.3 < sigma <= 5 (2404.07724)",
        base={"sampling": {"guidance": 2.0, "guidance_interval": [0.3, 5.0]}},
        same_training_as="paper",
    ),
    "autoguidance": Arm(
        "the base led away from itself after a quarter of the training, weight 2 (2406.02507)",
        same_training_as="paper",
        guide_share=0.25,
        guided={"guide": 2.0},
    ),
    "power-ema": Arm("power-function average, sigma_rel 0.1 (2312.02696)", same_training_as="paper", ema="0.1"),
    "power-ema-15": Arm("the same, sigma_rel 0.15 reconstructed after training", same_training_as="paper", ema="0.15"),
    "efficient": Arm("Efficient U-Net: blocks, skips and way up (2205.11487)", both={"network": _SLIM}),
    "low-dropout": Arm("dropout 0.1 at the lower level alone (2301.11093)", both={"network": {"dropout": "low"}}),
    "augment": Arm("non-leaky augmentation, probability 0.12 (2206.00364)", both={"training": {"augment": 0.12}}),
    "crop": Arm("super-resolution trained on half-size crops (2205.11487)", sr={"training": "crop"}, shared=("base",)),
    "relay": Arm(
        "super-resolution starts at time 0.7 from its enlarged input (2309.03350)",
        sr={"sampling": {"start": 0.7}},
        same_training_as="paper",
    ),
    "all": Arm(
        "EDM, Efficient U-Net, dropout low, augmentation, interval, relay start, DPM-Solver++(2M) in 10 + 5 steps",
        both={**_EDM, "network": {**_SLIM, "dropout": "low"}, "training": {"augment": 0.12}},
        base={
            "sampling": {
                "sampler": "dpmpp-2m",
                "steps": 10,
                "grid": "edm",
                "guidance": 2.0,
                "guidance_interval": [0.3, 5.0],
            }
        },
        sr={"sampling": {"sampler": "dpmpp-2m", "steps": 5, "start": 0.7}},
    ),
    # What pays at so short a training, for a fifth of the forward passes of `paper`.
    "winners": Arm(
        "EDM, guidance 1.5 at the base where 0.3 < sigma <= 5, DPM-Solver++(2M) on EDM's grid in 16 + 8 steps",
        both=_EDM | _ON_EDMS_GRID,
        **_SIXTEEN_AND_EIGHT,
        same_training_as="edm",
    ),
    "winners-rms": Arm(
        "the same with sigma_data that of the images",
        both=_EDM_RMS | _ON_EDMS_GRID,
        **_SIXTEEN_AND_EIGHT,
        same_training_as="edm-rms",
    ),
}


def _merged(target: Settings, changes: Mapping[str, Any]) -> Settings:
    merged = dict(target)
    for key, value in changes.items():
        own = merged.get(key)
        merged[key] = _merged(own, value) if isinstance(value, Mapping) and isinstance(own, dict) else value
    return merged


def _stage(name: str, resolution: int, network: Settings, size: Size, seed: int) -> Settings:
    training = {
        "images": size.images,
        "batch_size": size.batch_size,
        "learning_rate": size.learning_rate,
        "warmup_images": size.images // 20,
        "decay": "cosine",
        "decay_start": 0.25,
        "ema_half_lives": [max(size.images // 20, 1)],
        "power_ema": [0.05, 0.1],
        "class_dropout": 0.1,
        "seed": seed,
        "log_every": max(size.images // 20, 1),
        "preview_every": None,
        "checkpoint_every": max(size.images // 16, size.batch_size),
        "keep_checkpoints": None,  # a guide is one of them
    }
    return {
        "name": name,
        "resolution": resolution,
        "network": network,
        "diffusion": {"noise_schedule": {"kind": "cosine", "timesteps": 1000}, "prediction": "eps"},
        "training": training,
        "sampling": {"sampler": "ancestral"},
    }


def recipe_of(arm: Arm, size: Size, low: int, high: int, seed: int, precision: str = "auto") -> Recipe:
    """An arm's cascade low -> high."""
    base = _stage(f"base{low}", low, size.base, size, seed)
    sr = _stage(f"sr{high}", high, size.sr, size, seed)
    sr["conditioning"] = {"augmentation": "gaussian", "s_max": 0.6, "p_clean": 0.05}
    base["sampling"]["steps"] = 100
    sr["sampling"] |= {"steps": 50, "augmentation": "nontruncated", "s": 0.1}
    stages = []
    for stage, own in ((base, arm.base), (sr, arm.sr)):
        changed = _merged(_merged(stage, arm.both), own)
        changed["network"] = dict(changed["network"])
        if changed["diffusion"]["noise_schedule"] == "shifted":
            shift = 2 * math.log(64 / changed["resolution"])
            changed["diffusion"]["noise_schedule"] = {"kind": "cosine", "timesteps": 1000, "log_snr_shift": shift}
        if changed["diffusion"].get("sigma_data") == "rms":
            rms = _RMS[changed["resolution"]]
            moved = {"p_mean": -1.2 + math.log(rms / 0.5)}  # EDM's is for 0.5
            changed["diffusion"] = changed["diffusion"] | {"sigma_data": rms, "log_normal": moved}
        if changed["training"] == "crop":
            changed["training"] = {**stage["training"], "crop": high // 2}
        changed["training"] = changed["training"] | {"precision": precision}
        network, levels = changed["network"], len(changed["network"]["multipliers"])
        if network["blocks"] == "low":  # one at the highest resolution, one more than usual below
            network["blocks"] = [1] + [stage["network"]["blocks"] + 1] * (levels - 1)
        if network.get("dropout") == "low":
            network["dropout"] = [0.0] * (levels - 1) + [0.1]
        stages.append(changed)
    return Recipe.model_validate({"name": "modern-ablation", "flip": False, "stages": stages})
