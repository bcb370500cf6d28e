"""Making what a search found best the defaults of a cascade."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from cascaded_diffusion.cascade.manifest import MANIFEST_FILE, CascadeManifest, StageEntry, verify_stage
from cascaded_diffusion.cascade.sampling import SamplingConfig
from cascaded_diffusion.cascade.search_store import SearchRecord, StageResult
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.files import new_folder, write_json

__all__ = ["write_best", "write_best_copy"]


def write_best(folder: Path, record: SearchRecord) -> None:
    """Write the best settings of each searched stage, and where they come from, into a cascade's ``cascade.json``.

    No other file is touched, and a manifest that says so already is left alone.

    Raises:
        UserError: the folder holds other weights than those that were searched.
    """
    manifest = CascadeManifest.read(folder)
    changed = _with_best(folder, manifest, record)
    if changed != manifest:
        write_json(folder / MANIFEST_FILE, changed.model_dump(mode="json"))


def write_best_copy(folder: Path, copy: Path, record: SearchRecord) -> None:
    """As :func:`write_best`, for a cascade that must stay as it is: to a copy of it, made if it is not there yet.

    Raises:
        UserError: the copy is there, and holds other weights.
    """
    if (copy / MANIFEST_FILE).exists():
        write_best(copy, record)
        return
    manifest = CascadeManifest.read(folder)
    changed = _with_best(folder, manifest, record)
    with new_folder(copy) as made:
        for entry in manifest.stages:
            verify_stage(folder / entry.folder, entry)
            for name in entry.sha256:
                (made / entry.folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / entry.folder / name, made / entry.folder / name)
        write_json(made / MANIFEST_FILE, changed.model_dump(mode="json"))


def _with_best(folder: Path, manifest: CascadeManifest, record: SearchRecord) -> CascadeManifest:
    for name, hashes in record.request.weights.items():
        if hashes not in [entry.sha256 for entry in manifest.stages if entry.name == name]:
            raise UserError(f"{folder}: its {name} is not the one that was searched")
    found = {result.stage: result for result in record.searched}
    entries = tuple(
        _entry_with_best(entry, found[entry.name], record) if entry.name in found else entry
        for entry in manifest.stages
    )
    return manifest.model_copy(update={"stages": entries})


def _entry_with_best(entry: StageEntry, result: StageResult, record: SearchRecord) -> StageEntry:
    best = result.winner
    if best is None:
        raise ValueError(f"{result.stage}: its search is not finished")
    # What the search could not take from the defaults, such as truncated where that is not to be had, goes along.
    settings = best.settings[result.stage]
    tied = [name for name in ("augmentation", "s") if getattr(settings, name) != getattr(entry.sampling, name)]
    chosen = {name: getattr(settings, name) for name in (*result.swept, *tied)}
    request = record.request
    search: dict[str, Any] = {
        "chosen": best.label,
        "of": len(result.points),
        "score": record.score,
        "value": best.value,
        "standard_error": best.standard_error,
        "n": best.n,
        "seed": request.seed,
        "split": request.split,
        "features": request.features,
        "features_hash": request.features_hash,
        "reference_hash": request.references[result.stage],
    }
    return entry.model_copy(
        update={
            "sampling": SamplingConfig.model_validate(entry.sampling.model_dump() | chosen),
            "provenance": {**entry.provenance, "search": search},
        }
    )
