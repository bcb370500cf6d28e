"""Any network as an extractor: a ``.pt2`` file of ``torch.export``."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cascaded_diffusion.errors import UserError, first_line
from cascaded_diffusion.evaluation.extractors.base import (
    NetworkExtractor,
    NetworkInput,
    plain_arithmetic,
)
from cascaded_diffusion.files import sha256_of
from cascaded_diffusion.reading.archive import check_member, open_zip

__all__ = ["ExportedExtractor"]

_LARGEST_FILE = 8 * 2**30
_FAILURES = (RuntimeError, ValueError, KeyError, TypeError, AttributeError, AssertionError, OSError, zipfile.BadZipFile)


class ExportedExtractor(NetworkExtractor):
    """An exported function of float32 images (N, C, S, S) in [0, 1] that gives features, or features and logits.

    The size S and the channels C are those of the example it was exported with; N must be dynamic. A ``.pt2`` file is a
    program: opening it can run whatever its author put in.
    """

    def __init__(self, path: Path, name: str, *, device: torch.device) -> None:
        """Open the file and try it out.

        Raises:
            UserError: it is no such file or no such function, or an image's features depend on its batch.
        """
        program = _load(path)
        size, channels = _input_shape(path, program)
        self.function: Callable[[Tensor], Any] = _on_device(program, device).module()
        weights = {str(value.dtype).removeprefix("torch.") for value in program.state_dict.values()}
        floats = sorted(kind for kind in weights if "float" in kind)
        super().__init__(
            name,
            weights_hash=sha256_of(path),
            network_input=NetworkInput(size, channels),
            device=device,
            scaling="[0, 1]",
            dtype="fp32" if floats in ([], ["float32"]) else ", ".join(floats),
        )
        self._try(path, size, channels)

    def compute(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """See the base class."""
        output = self.function((pixels / 255).contiguous())
        features, logits = (output, None) if isinstance(output, Tensor) else output
        return features, logits

    def _try(self, path: Path, size: int, channels: int) -> None:
        """Run it on three images and on one of them alone: batch norm or dropout left in training mode shows here."""
        images = torch.linspace(0, 255, 3 * channels * size * size, device=self.device).reshape(3, channels, size, size)
        try:
            with plain_arithmetic(self.device):
                together = self.function(images / 255)
                alone = self.function(images[:1] / 255)
        except _FAILURES as error:
            raise UserError(f"{path}: cannot be run ({first_line(error)})") from None
        outputs = (together,) if isinstance(together, Tensor) else together
        if not (isinstance(outputs, tuple | list) and len(outputs) in (1, 2) and all(map(_is_table, outputs))):
            raise UserError(f"{path}: gives {_describe(together)}; it must give features (N, D), or those and logits")
        first = alone if isinstance(alone, Tensor) else alone[0]
        if not torch.allclose(outputs[0][:1].float(), first.float(), rtol=1e-2, atol=1e-3):
            raise UserError(
                f"{path}: an image's features depend on the other images of its batch; was it exported without .eval()?"
            )


def _load(path: Path) -> torch.export.ExportedProgram:
    if not path.is_file():
        raise UserError(f"features: {path}: no such file")
    if path.stat().st_size > _LARGEST_FILE:
        raise UserError(f"{path}: {path.stat().st_size} bytes; at most {_LARGEST_FILE} are read")
    try:
        with open_zip(path, "not a file of torch.export.save") as archive:
            for member in archive.infolist():
                check_member(path, archive, member)
            sound = archive.testzip() is None and any(n.endswith("/models/model.json") for n in archive.namelist())
        if not sound:
            raise RuntimeError("damaged, or made by something else")
        return torch.export.load(path)
    except UserError:
        raise
    except _FAILURES as error:
        raise UserError(f"{path}: not a file of torch.export.save ({first_line(error)})") from None


def _input_shape(path: Path, program: torch.export.ExportedProgram) -> tuple[int, int]:
    """Size and channels of the one input; ``UserError`` if it is not a batch of square images."""
    inputs = program.graph_signature.user_inputs
    examples = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder" and node.name in inputs]
    shapes = [tuple(value.shape) if isinstance(value, Tensor) else value for value in examples]
    wanted = "one float32 input (N, C, S, S) with C 1 or 3 is needed, and only N dynamic"
    if len(examples) != 1 or not isinstance(examples[0], Tensor) or examples[0].dtype != torch.float32:
        raise UserError(f"{path}: its inputs are {shapes}; {wanted}")
    batch, *image = shapes[0]
    fixed = len(image) == 3 and all(isinstance(side, int) for side in image)
    if isinstance(batch, int) or not fixed or image[0] not in (1, 3) or image[1] != image[2]:
        raise UserError(
            f"{path}: its input is {shapes[0]}; {wanted}: "
            "torch.export.export(..., dynamic_shapes=({0: torch.export.Dim('n')},))"
        )
    return image[1], image[0]


def _on_device(program: torch.export.ExportedProgram, device: torch.device) -> torch.export.ExportedProgram:
    from torch.export.passes import move_to_device_pass

    return move_to_device_pass(program, device)


def _is_table(value: object) -> bool:
    return isinstance(value, Tensor) and value.dim() == 2 and len(value) == 3 and value.is_floating_point()


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} {tuple(value.shape)} for 3 images"
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, tuple | list) else type(value).__name__
