"""Classifiers: a small residual network below 64 pixels, ResNet-50 from there up, and their folder on disk.

They serve twice: trained once on real images as a feature extractor, and trained from scratch on samples for the
classification accuracy score.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import Field, ValidationError, model_validator
from torch import Tensor, nn

from cascaded_diffusion.config import ClassNames, Facts, StrictModel, explain
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.files import new_folder, read_json, sha256_of, write_json
from cascaded_diffusion.reading.plain import refuse_outside
from cascaded_diffusion.reading.tensors import read_tensors, without_memory
from cascaded_diffusion.writing import write_tensors

__all__ = [
    "Classifier",
    "ClassifierConfig",
    "classifier_hash",
    "default_architecture",
    "load_classifier",
    "save_classifier",
]

_CONFIG, _WEIGHTS = "config.json", "model.safetensors"
_LARGEST_FILE = 2**30


def default_architecture(resolution: int) -> Literal["small", "resnet50"]:
    """The paper's ResNet-50 from 64 pixels up; below, where it would have nothing left to pool, a small network."""
    return "resnet50" if resolution >= 64 else "small"


class ClassifierConfig(StrictModel):
    """What a classifier takes and gives."""

    format_version: Literal[1] = Field(default=1, description="Version of this file's layout.")
    architecture: Literal["small", "resnet50"] = Field(description="The network.")
    resolution: int = Field(ge=4, le=4096, description="Side of its square input in pixels.")
    channels: int = Field(ge=1, le=4, description="Input channels: 1 grey, 3 colour.")
    classes: int = Field(ge=2, le=1_000_000, description="Number of classes.")
    class_names: ClassNames | None = Field(default=None, description="Their names, if the data has them.")
    mean: float = Field(default=0.5, ge=0, le=1, description="Subtracted from pixels scaled to [0, 1].")
    std: float = Field(default=0.25, gt=0, le=1, description="They are then divided by this.")
    provenance: Facts = Field(default_factory=dict, description="What it was trained on, and how well it does.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.class_names is not None and len(self.class_names) != self.classes:
            raise ValueError(f"class_names: {len(self.class_names)} names for {self.classes} classes")
        return self


def _convolution(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, *, active: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, nn.ReLU(inplace=True)) if active else nn.Sequential(*layers)


class _Residual(nn.Module):
    """x + two convolutions of x."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_convolution(channels, channels), _convolution(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.body(x)
        return x + change


def _small(resolution: int, channels: int) -> tuple[nn.Sequential, int]:
    """Nine layers that pool down to 4x4, where features keep their place: small pictures are mostly centred."""

    def pool(down_to: int) -> nn.Module:
        return nn.MaxPool2d(2) if resolution > down_to else nn.Identity()

    layers = [
        _convolution(channels, 32),
        pool(16),
        _convolution(32, 64),
        pool(8),
        _Residual(64),
        _convolution(64, 128),
        pool(4),
        _Residual(128),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(128 * 16, 128),
        nn.ReLU(),
    ]
    return nn.Sequential(*layers), 128


class _Bottleneck(nn.Module):
    """He et al. (1512.03385), figure 5, with the stride in the 3x3 convolution."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        last = _convolution(width, 4 * width, 1, active=False)
        self.body = nn.Sequential(_convolution(inputs, width, 1), _convolution(width, width, 3, stride), last)
        norm = last[1]
        assert isinstance(norm, nn.BatchNorm2d)
        # Every block starts as its shortcut (Goyal et al., 1706.02677, section 5.1).
        nn.init.zeros_(norm.weight)
        plain = stride == 1 and inputs == 4 * width
        self.shortcut = nn.Identity() if plain else _convolution(inputs, 4 * width, 1, stride, active=False)

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.body(x)
        return torch.relu(change + self.shortcut(x))


def _resnet50(channels: int) -> tuple[nn.Sequential, int]:
    layers: list[nn.Module] = [_convolution(channels, 64, 7, 2), nn.MaxPool2d(3, 2, padding=1)]
    inputs = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width = 64 * 2**stage
        for block in range(blocks):
            layers.append(_Bottleneck(inputs, width, 2 if stage and not block else 1))
            inputs = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), inputs


class Classifier(nn.Module):
    """A classifier that also gives the features before its last layer.

    Attributes:
        config: what it takes and gives.
        dimensions: length of a feature vector.
    """

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        if config.architecture == "small":
            self.body, self.dimensions = _small(config.resolution, config.channels)
        else:
            self.body, self.dimensions = _resnet50(config.channels)
        self.head = nn.Linear(self.dimensions, config.classes)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs

    def normalise(self, images: Tensor) -> Tensor:
        """(N, C, R, R) in [0, 1] to what the network takes."""
        return ((images - self.config.mean) / self.config.std).contiguous(memory_format=torch.channels_last)

    def features(self, x: Tensor) -> Tensor:
        """(N, C, R, R) normalised images to (N, D) features."""
        features: Tensor = self.body(x)
        return features

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, R, R) normalised images to (N, K) logits."""
        logits: Tensor = self.head(self.features(x))
        return logits


def save_classifier(classifier: Classifier, folder: Path, *, half: bool = False) -> None:
    """Write ``config.json`` and ``model.safetensors`` to a new folder; ``half`` stores 16-bit weights."""

    def stored(value: Tensor) -> Tensor:
        return (value.half() if half and value.is_floating_point() else value).cpu()

    with new_folder(folder) as place:
        write_tensors({key: stored(value) for key, value in classifier.state_dict().items()}, place / _WEIGHTS)
        write_json(place / _CONFIG, classifier.config.model_dump(mode="json"))


def load_classifier(folder: Path) -> Classifier:
    """Open a classifier in eval mode; ``UserError`` names the file that is missing, damaged or does not fit."""
    refuse_outside(folder, folder / _CONFIG, folder / _WEIGHTS)
    for name in (_CONFIG, _WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(f"{folder}: not a classifier (no {name}); make one with cdm train-classifier")
    try:
        config = ClassifierConfig.model_validate(read_json(folder / _CONFIG))
    except ValidationError as error:
        raise UserError(f"{folder / _CONFIG}: {explain(error)}") from None
    path = folder / _WEIGHTS
    if path.stat().st_size > _LARGEST_FILE:
        raise UserError(f"{path}: {path.stat().st_size} bytes; at most {_LARGEST_FILE} are read")
    with without_memory():  # no memory is taken before the file is known to hold what fills it
        classifier = Classifier(config)
    own = classifier.state_dict()
    weights = {key: value.to(own[key].dtype) for key, value in read_tensors(path, own).items()}
    classifier.load_state_dict(weights, assign=True)
    classifier.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return classifier.eval().requires_grad_(False)


def classifier_hash(folder: Path) -> str:
    """SHA-256 over both files: whatever changes the features changes it."""
    return hashlib.sha256("".join(sha256_of(folder / name) for name in (_CONFIG, _WEIGHTS)).encode()).hexdigest()
