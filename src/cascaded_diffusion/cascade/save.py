"""Writing a cascade's folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from cascaded_diffusion.cascade.manifest import MANIFEST_FILE, CascadeManifest, StageEntry, stage_hashes
from cascaded_diffusion.cascade.sampling import SamplingConfig
from cascaded_diffusion.cascade.stage import Stage
from cascaded_diffusion.files import new_folder, write_json
from cascaded_diffusion.version import VERSION

__all__ = ["write_cascade"]


def write_cascade(
    path: Path,
    parts: Sequence[tuple[Stage, SamplingConfig, bool, Mapping[str, Any]]],
    *,
    dtype: torch.dtype = torch.float32,
) -> CascadeManifest:
    """Write ``cascade.json`` and the stage folders; the cascade appears when it is whole.

    Args:
        path: a folder that does not exist or is empty.
        parts: for each stage in order: the stage, its default sampling settings, whether the stage below can be stopped
            at s for it, and its provenance.
        dtype: of the weights on disk.
    """
    with new_folder(path) as folder:
        entries = []
        for stage, sampling, truncated, provenance in parts:
            stage.save(folder / stage.name, dtype=dtype)
            entries.append(
                StageEntry(
                    name=stage.name,
                    folder=stage.name,
                    sha256=stage_hashes(folder / stage.name, guided=stage.guide is not None),
                    sampling=sampling,
                    truncated=truncated,
                    provenance=dict(provenance),
                )
            )
        base = parts[0][0].config
        manifest = CascadeManifest(
            stages=tuple(entries),
            classes=base.classes,
            class_names=base.class_names,
            provenance={"cascaded_diffusion": VERSION, "torch": torch.__version__},
        )
        write_json(folder / MANIFEST_FILE, manifest.model_dump(mode="json"))
    return manifest
