"""A stage from a checkpoint of guided-diffusion or improved-diffusion and the flags that it was made with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from cascaded_diffusion.cascade.generate import stage_grids
from cascaded_diffusion.cascade.stage import Stage, StageConfig
from cascaded_diffusion.config import explain
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.files import sha256_of
from cascaded_diffusion.interop.foreign import load_foreign_checkpoint
from cascaded_diffusion.interop.guided_diffusion import GuidedDiffusionArguments, load_guided_diffusion
from cascaded_diffusion.interop.script_flags import ReadFlags, read_flags
from cascaded_diffusion.interop.stage_folder import ImportedStage

__all__ = ["import_guided_diffusion"]

_STEM = "input_blocks.0.0.weight"
_CLASSES = "label_emb.weight"


def import_guided_diffusion(
    checkpoint: str | Path, flags: str = "", *, family: str = "guided-diffusion"
) -> ImportedStage:
    """Read a checkpoint of guided-diffusion's or improved-diffusion's scripts as a stage.

    Args:
        checkpoint: the ``.pt`` file (weights or an average of them), or the same tensors as ``.safetensors``.
        flags: ``--name value ...`` as the scripts take them; what is left out has their defaults.
        family: whose scripts the flags are for, ``guided-diffusion`` or ``improved-diffusion``.

    The checkpoint's first layer tells base models and up-samplers apart, and its class embedding the number of classes
    (the scripts fix it at 1000 in their source). ``--timestep_respacing`` and ``--use_ddim`` become the stage's default
    sampling settings; like the scripts, it uses every step and ancestral sampling without them.

    Raises:
        UserError: a file, a flag or a tensor that does not fit, each named.
    """
    path, read = Path(checkpoint), read_flags(flags, family)
    tensors = load_foreign_checkpoint(path)
    upsampler = _is_upsampler(tensors, read)
    read.check_kind(upsampler=upsampler)
    embedding = tensors.get(_CLASSES)
    classes = int(embedding.shape[0]) if embedding is not None and embedding.ndim == 2 else 1000
    arguments = read.constructor_arguments(upsampler=upsampler, classes=classes)
    try:
        network = load_guided_diffusion(tensors, **arguments).network
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    stage = Stage(_stage_config(read, arguments, upsampler=upsampler), network)
    stage_grids(stage, stage.config.sampling)  # refuses steps that the process does not have
    provenance = {"from": family, "file": path.name, "sha256": sha256_of(path), "flags": " ".join(flags.split())}
    return ImportedStage(stage, provenance, read.ignored)


def _is_upsampler(tensors: Mapping[str, Tensor], read: ReadFlags) -> bool:
    stem = tensors.get(_STEM)
    if stem is None or stem.ndim != 4 or stem.shape[1] not in (3, 6):
        return read.names_upsampler  # the tensor is then named among those that do not fit
    return int(stem.shape[1]) == 6


def _stage_config(read: ReadFlags, arguments: Mapping[str, Any], *, upsampler: bool) -> StageConfig:
    flags, size = read.values, read.size(upsampler=upsampler)
    fixed = "posterior" if flags.sigma_small else "beta"
    try:
        return StageConfig.model_validate(
            {
                "name": f"{'sr' if upsampler else 'base'}{size}",
                "resolution": size,
                "network": GuidedDiffusionArguments(**arguments).network_config(),
                "diffusion": {
                    "noise_schedule": {"kind": flags.noise_schedule, "timesteps": flags.diffusion_steps},
                    "prediction": "x0" if flags.predict_xstart else "eps",
                    "variance": "learned" if flags.learn_sigma else fixed,
                    "rescale_steps": flags.rescale_timesteps,
                },
                "conditioning": {"augmentation": "none", "low_resolution": flags.small_size} if upsampler else None,
                "sampling": {
                    "sampler": "ddim" if flags.use_ddim else "ancestral",
                    "steps": flags.timestep_respacing or flags.diffusion_steps,
                    "clip": flags.clip_denoised,
                },
                "channels": arguments["in_channels"],
                "classes": arguments["num_classes"],
            }
        )
    except ValidationError as error:
        raise UserError(f"--flags: {explain(error)}") from None
