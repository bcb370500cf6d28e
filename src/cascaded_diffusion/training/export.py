"""From a run's checkpoint to a stage that can be sampled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cascaded_diffusion.cascade.manifest import MANIFEST_FILE, CascadeManifest, load_entry
from cascaded_diffusion.cascade.sampling import SamplingConfig
from cascaded_diffusion.cascade.stage import (
    CONFIG_FILE,
    ORIGIN_FILE,
    WEIGHTS_FILE,
    Stage,
    StageConfig,
    empty_network,
    fill_network,
)
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.reading.json_text import read_json
from cascaded_diffusion.reading.plain import refuse_outside
from cascaded_diffusion.training.checkpoint import averaged_weights, find_checkpoint

__all__ = ["is_run", "load_part", "stage_from_run"]


def stage_from_run(run: Path, *, images: int | None = None, ema: str | None = None) -> tuple[Stage, dict[str, Any]]:
    """A stage from a run's newest checkpoint, or the one at ``images``, and where its weights come from.

    Args:
        run: the run folder.
        images: which checkpoint.
        ema: half-life of the average in images, relative length of a power-function average such as ``0.05``, or
            ``raw``; default the first of training.ema_half_lives.

    Raises:
        UserError: not a run, no such checkpoint or average, or only one from before the first step.
    """
    refuse_outside(run, run / CONFIG_FILE)
    config = StageConfig.load(run / CONFIG_FILE)
    folder = find_checkpoint(run, images)
    if int(folder.name) == 0:
        raise UserError(f"{folder}: a checkpoint from before the first step; train the stage first")
    weights, choice = averaged_weights(folder, ema)
    network = empty_network(config)
    fill_network(network, weights, folder)
    return Stage(config, network), {"images": int(folder.name), "ema": choice}


def load_part(
    path: Path, *, images: int | None = None, ema: str | None = None
) -> tuple[Stage, SamplingConfig, dict[str, Any]]:
    """A stage, its default sampling settings and its provenance.

    Args:
        path: a run folder, a stage folder or a cascade's sub-folder. Settings that a search has stored in a cascade
            travel with the sub-folder.
        images: of a run, which checkpoint.
        ema: of a run, which average.
    """
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; give run folders or stage folders")
    if (path / MANIFEST_FILE).is_file():
        raise UserError(f"{path}: a whole cascade; name its stage folders, such as {path / 'base32'}")
    if not (path / CONFIG_FILE).is_file():
        raise UserError(f"{path}: neither a run folder nor a stage folder (no {CONFIG_FILE})")
    if not (path / WEIGHTS_FILE).is_file():
        stage, provenance = stage_from_run(path, images=images, ema=ema)
        return stage, stage.config.sampling, provenance
    folder = path.resolve()
    entries = CascadeManifest.read(folder.parent).stages if (folder.parent / MANIFEST_FILE).is_file() else ()
    for entry in entries:
        if entry.folder == folder.name:
            return load_entry(path, entry), entry.sampling, entry.provenance
    stage = Stage.load(path)
    return stage, stage.config.sampling, _origin(path / ORIGIN_FILE)


def _origin(path: Path) -> dict[str, Any]:
    """What an import noted of where the weights come from; nothing in other stage folders."""
    if not path.is_file():
        return {}
    origin = read_json(path)
    if not isinstance(origin, dict):
        raise UserError(f"{path}: not a JSON object; delete it to go without the note of where the weights come from")
    return origin


def is_run(path: Path) -> bool:
    """Whether a folder is a run, from which a checkpoint can be chosen."""
    return (path / "checkpoints").is_dir()
