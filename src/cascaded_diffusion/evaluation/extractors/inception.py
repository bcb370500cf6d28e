"""Inception's features by way of torch-fidelity: the only ones in which a Frechet distance is called FID.

Heusel et al. 2017 (arXiv 1706.08500) measure in the 2048 pooled features of the Inception network of 2015-12-05.
torch-fidelity rebuilds the network; the weights are a user's file. Images reach its 299x299 by this package's one
resize rule and not by the original's bilinear one, which aliases (Parmar, Zhang and Zhu 2022, arXiv 2104.11222).
"""

from __future__ import annotations

import io
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cascaded_diffusion.errors import UserError, first_line
from cascaded_diffusion.evaluation.extractors.base import NetworkExtractor, NetworkInput
from cascaded_diffusion.evaluation.resizing import RESIZE_RULE
from cascaded_diffusion.files import sha256_of
from cascaded_diffusion.reading.torch_file import load_foreign_weights

__all__ = ["WEIGHTS_SHA256", "InceptionExtractor", "open_inception"]

# Published as weights-inception-2015-12-05-6726825d.pth and pt_inception-2015-12-05-6726825d.pth.
WEIGHTS_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
_SIZE = 299
_LARGEST_FILE = 512 * 2**20
_UNCHECKED = "?unchecked=1"
_FEATURES, _LOGITS = "2048", "logits_unbiased"


def open_inception(location: str, *, device: torch.device) -> InceptionExtractor:
    """Open what ``inception:LOCATION`` names: a weights file, or with ``?unchecked=1`` behind it any such file.

    Raises:
        UserError: no file, not the published weights, not weights of this network, or torch-fidelity is missing.
    """
    unchecked = location.endswith(_UNCHECKED)
    path = Path(location.removesuffix(_UNCHECKED))
    if not location.removesuffix(_UNCHECKED):
        raise UserError(
            "features: inception needs the weights' path: inception:weights-inception-2015-12-05-6726825d.pth"
        )
    return InceptionExtractor(path, unchecked=unchecked, device=device)


class InceptionExtractor(NetworkExtractor):
    """2048 pooled features and 1008 logits (without bias, as in published Inception scores).

    Named ``inception``, so that its Frechet distance is ``fid``, only if the weights are the published ones.
    """

    def __init__(self, path: Path, *, unchecked: bool, device: torch.device) -> None:
        """Open the weights at ``path``; ``unchecked`` ones make an extractor named ``inception-unchecked``.

        Raises:
            UserError: see :func:`open_inception`.
        """
        if not path.is_file():
            remedy = "docs/evaluation.md tells where Inception's weights are from"
            raise UserError(f"features: {path}: no such file; {remedy}")
        if path.stat().st_size > _LARGEST_FILE:
            raise UserError(f"{path}: {path.stat().st_size} bytes; at most {_LARGEST_FILE} are read")
        digest = sha256_of(path)
        if digest != WEIGHTS_SHA256 and not unchecked:
            raise UserError(
                f"{path}: SHA-256 {digest} is not that of the published Inception weights ({WEIGHTS_SHA256[:8]}...), "
                f"so its scores would not be FID; {_UNCHECKED} behind the path takes it, as inception-unchecked"
            )
        self.network = _build(path).to(device)
        super().__init__(
            "inception-unchecked" if unchecked else "inception",
            weights_hash=digest,
            network_input=NetworkInput(_SIZE, 3),
            device=device,
            scaling="uint8, by torch-fidelity",
            resize=f"{_SIZE}x{_SIZE}, {RESIZE_RULE}, rounded to uint8",
        )

    def compute(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """See the base class."""
        # torch-fidelity's network takes nothing but uint8, and resizes nothing that has its size.
        features, logits = self.network(pixels.round().to(torch.uint8))
        return features, logits


def _build(path: Path) -> Any:
    """torch-fidelity's network with these weights, in eval mode."""
    weights = load_foreign_weights(path, _LARGEST_FILE)
    try:
        make = import_module("torch_fidelity").FeatureExtractorInceptionV3
    except (ImportError, RuntimeError) as error:  # torchvision built for another torch fails with a RuntimeError
        raise UserError(
            f"features: inception needs torch-fidelity ({error}); docs/evaluation.md tells how to set it up apart"
        ) from None
    # It reads its file with a pickle that may run code: it is handed back the tensors alone, in memory.
    tensors = io.BytesIO()
    torch.save(weights, tensors)
    tensors.seek(0)
    try:
        network = make("inception-v3-compat", [_FEATURES, _LOGITS], feature_extractor_weights_path=tensors)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not the weights of Inception ({first_line(error)})") from None
    return network.eval().requires_grad_(False)
