"""Features of a classifier trained on the data themselves: of the packaged one, or of your own."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from cascaded_diffusion.evaluation.classifier import classifier_hash, load_classifier
from cascaded_diffusion.evaluation.extractors.base import NetworkExtractor, NetworkInput

__all__ = ["ClassifierExtractor"]


class ClassifierExtractor(NetworkExtractor):
    """The features before the last layer, and the logits, of a folder that ``cdm train-classifier`` wrote."""

    def __init__(self, folder: Path, name: str, *, device: torch.device) -> None:
        """Open a classifier.

        Raises:
            UserError: the folder does not hold one.
        """
        self.classifier = load_classifier(folder).to(device)
        config = self.classifier.config
        super().__init__(
            name,
            weights_hash=classifier_hash(folder),
            network_input=NetworkInput(config.resolution, config.channels, at_once=256),
            device=device,
            scaling="[0, 1], then as in config.json",
            class_names=config.class_names,
        )

    def compute(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """See the base class."""
        features = self.classifier.features(self.classifier.normalise(pixels / 255))
        return features, self.classifier.head(features)
