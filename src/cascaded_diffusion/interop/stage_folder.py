"""Writing an imported stage as the folder that ``cdm assemble`` takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from cascaded_diffusion.cascade.stage import ORIGIN_FILE, Stage
from cascaded_diffusion.files import new_folder, write_json

__all__ = ["ImportedStage", "write_stage_folder"]


class ImportedStage(NamedTuple):
    """A stage made from somebody else's files, where it comes from, and what means nothing to a stage."""

    stage: Stage
    provenance: dict[str, Any]
    left_out: tuple[str, ...] = ()


def write_stage_folder(imported: ImportedStage, out: Path) -> None:
    """Write ``config.json``, ``model.safetensors`` and ``origin.json``, which ``cdm assemble`` copies into the cascade.

    The folder appears when it is whole. ``UserError`` if ``out`` is there already and not an empty folder.
    """
    with new_folder(out) as folder:
        imported.stage.save(folder)
        write_json(folder / ORIGIN_FILE, imported.provenance)
