"""The finished batches of a sampling that is not through: what an interrupted command need not do again.

They lie in a hidden folder beside the result, with what was asked for. The folder goes when the result is there. An
image is a function of what was asked and its batch, so a command that was interrupted ends with the very same images.
The processes of one launch share the folder; rank 0 makes and removes it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from cascaded_diffusion.cascade.stage import Stage
from cascaded_diffusion.cascade.walk import Plan
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.files import atomic_write, read_json, try_lock, write_json
from cascaded_diffusion.ranks import from_main
from cascaded_diffusion.samples import to_rgb
from cascaded_diffusion.version import VERSION

__all__ = ["BatchStore", "KeptImages", "batch_store", "sampling_request", "store_folder", "weights_hash"]

_REQUEST = "request.json"


def store_folder(out: Path) -> Path:
    """Where the batches of an unfinished ``out`` are kept."""
    out = out.absolute()  # "." has no name
    return out.with_name(f".{out.name}.sampling")


def sampling_request(
    plan: Plan,
    labels: np.ndarray,
    low_res: np.ndarray | None,
    *,
    device: torch.device,
    **choices: Any,
) -> dict[str, Any]:
    """All that an image's bits depend on, as JSON: batches are used again only where all of it is equal.

    Args:
        plan: stages and settings.
        labels: int64 (N,).
        low_res: uint8 (N, r, r, C), the images that the first stage enlarges.
        device: where the networks are.
        choices: seed, batch size, precision.
    """
    return {
        "format_version": 1,
        "cascaded_diffusion": VERSION,
        "torch": torch.__version__,
        "device": device.type,
        "stages": {stage.name: plan.settings[stage.name].identity() for stage in plan.stages},
        "configs": {name: _config_hash(stage) for name, stage in _with_guides(plan)},
        "weights": {name: weights_hash(stage.network) for name, stage in _with_guides(plan)},
        "labels": [len(labels), hashlib.sha256(labels.tobytes()).hexdigest()],
        "low_res": None if low_res is None else [*low_res.shape, hashlib.sha256(low_res.tobytes()).hexdigest()],
        **choices,
    }


def _with_guides(plan: Plan) -> Iterator[tuple[str, Stage]]:
    for stage in plan.stages:
        yield stage.name, stage
        if stage.guide is not None:
            yield f"{stage.name}/guide", stage.guide


def _config_hash(stage: Stage) -> str:
    """SHA-256 of what a stage is; how it is sampled by default is told by the plan's settings."""
    said = stage.config.model_dump(mode="json", exclude={"sampling"})
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def weights_hash(network: nn.Module) -> str:
    """SHA-256 of a network's weights, wherever they come from."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


class BatchStore:
    """The batches finished so far.

    Attributes:
        resumed: whether an earlier process began this very sampling.
        saved: images that this process has kept.
    """

    def __init__(self, folder: Path, stages: Sequence[str], *, resumed: bool) -> None:
        self._folder, self._stages = folder, set(stages)
        self.resumed = resumed
        self.saved = 0

    def _path(self, start: int, stop: int) -> Path:
        return self._folder / f"{start:09d}-{stop:09d}.npz"

    def ranges(self) -> list[tuple[int, int]]:
        """Which images are kept, as (start, stop) in order."""
        words = [path.stem.split("-") for path in self._folder.glob("[0-9]*.npz")]
        return sorted((int(start), int(stop)) for start, stop in words)

    @property
    def images(self) -> int:
        """How many images are kept, each counted once."""
        count, end = 0, 0
        for start, stop in self.ranges():
            count += max(stop - max(start, end), 0)
            end = max(end, stop)
        return count

    def stage(self, name: str, *, rgb: bool = False) -> KeptImages:
        """All images of a stage that are kept; with ``rgb`` grey ones in three equal channels."""
        return KeptImages(self, name, rgb=rgb)

    def lacking(self, batches: Sequence[range]) -> list[range]:
        """Those of the ``batches`` that are not kept, neither as they are nor in batches of other sizes."""
        kept = self.ranges()
        return [batch for batch in batches if _pieces(kept, batch)[1] < batch.stop]

    def load(self, start: int, stop: int) -> dict[str, np.ndarray] | None:
        """Images ``start`` to ``stop`` - 1 of every stage, uint8 (n, R, R, C), or ``None`` if they are to be made.

        They may have been kept in batches of other sizes.
        """
        if self._path(start, stop).exists():
            return self.read(start, stop)
        pieces, end = _pieces(self.ranges(), range(start, stop))
        if end < stop:
            return None
        parts: list[dict[str, np.ndarray]] = []
        for first, last, had in pieces:
            found = self.read(first, last)
            if found is None:
                return None
            parts.append({name: images[had : stop - first] for name, images in found.items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in self._stages}

    def read(self, start: int, stop: int) -> dict[str, np.ndarray] | None:
        """One batch as it was kept; ``None``, and away with it, if it is damaged."""
        path = self._path(start, stop)
        try:
            # np.load by a path leaves a damaged file open.
            with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                found = {name: np.asarray(file[name]) for name in file.files}
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
            path.unlink()  # damaged: to be made again
            return None
        whole = set(found) == self._stages and all(
            images.dtype == np.uint8 and len(images) == stop - start for images in found.values()
        )
        if not whole:
            path.unlink()
            return None
        return found

    def save(self, start: int, stop: int, images: Mapping[str, np.ndarray]) -> None:
        """Keep a batch."""
        with atomic_write(self._path(start, stop)) as file:
            np.savez(file, **cast("dict[str, Any]", images))  # newer numpys have a keyword besides
        self.saved += stop - start


def _pieces(kept: Sequence[tuple[int, int]], wanted: range) -> tuple[list[tuple[int, int, int]], int]:
    """The kept ranges, which are in order, that make up ``wanted``, and how far they reach without a gap.

    Each as (start, stop, images at its start that are not wanted or that an earlier one had).
    """
    here, found = wanted.start, []
    for start, stop in kept:
        if start <= here < min(stop, wanted.stop):
            found.append((start, stop, here - start))
            here = stop
    return found, here


class KeptImages:
    """The images of one stage in a store, read batch after batch: however many there are, memory holds few.

    Attributes:
        shape: (N, R, R, C), as an array's.
    """

    def __init__(self, store: BatchStore, stage: str, *, rgb: bool = False) -> None:
        self._store, self._stage, self._rgb = store, stage, rgb
        first = self._read(*store.ranges()[0])
        self.shape = (max(stop for _, stop in store.ranges()), *first.shape[1:])

    def _read(self, start: int, stop: int) -> np.ndarray:
        found = self._store.read(start, stop)
        if found is None:
            raise RuntimeError(
                f"images {start} to {stop - 1} can no longer be read from where they were kept; the same command makes "
                "them again"
            )
        return to_rgb(found[self._stage]) if self._rgb else found[self._stage]

    def _parts(self) -> list[tuple[int, int, int]]:
        """Kept ranges that make up the whole, as (start, stop, images at its start that an earlier one had)."""
        pieces, end = _pieces(self._store.ranges(), range(len(self)))
        if end != len(self):
            raise RuntimeError(f"image {end} is not among those that are kept; the same command makes it again")
        return pieces

    def __len__(self) -> int:
        return int(self.shape[0])

    def __iter__(self) -> Iterator[np.ndarray]:
        """Every image, uint8 (R, R, C), in order."""
        for start, stop, had in self._parts():
            yield from self._read(start, stop)[had:]

    def rows(self, where: np.ndarray) -> np.ndarray:
        """The images at ascending places: uint8 (n, R, R, C)."""
        parts = []
        for start, stop, had in self._parts():
            here = where[(where >= start + had) & (where < stop)]
            if len(here):
                parts.append(self._read(start, stop)[here - start])
        return np.concatenate(parts)


@contextlib.contextmanager
def batch_store(out: Path, request: Mapping[str, Any]) -> Iterator[BatchStore]:
    """The store of ``out`` for the length of the block, which every process of a launch must enter.

    The folder is removed at the end of the block; if the block raises, or the process dies, it stays, unless there is
    no batch in it.

    Raises:
        UserError: another process is making ``out`` at this moment, or the folder has batches of another request.
    """
    with contextlib.ExitStack() as stack:
        store = from_main(lambda: stack.enter_context(_own_store(out, request)))
        yield store


@contextlib.contextmanager
def _own_store(out: Path, request: Mapping[str, Any]) -> Iterator[BatchStore]:
    folder = store_folder(out)
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if not try_lock(lock):
            raise UserError(f"{out}: another process is sampling to it at this moment")
        asked = _asked(folder)
        store = BatchStore(folder, list(request["stages"]), resumed=asked == request)
        if not store.resumed:
            if store.images:
                raise UserError(_another(out, folder, asked, request))
            _empty(folder)
            write_json(folder / _REQUEST, dict(request))
        try:
            yield store
        except BaseException:
            if not store.images:
                _remove(folder)
            raise
        _remove(folder)
    finally:
        os.close(lock)


def _asked(folder: Path) -> dict[str, Any]:
    try:
        found = read_json(folder / _REQUEST)
    except UserError:  # none, or not one of ours
        return {}
    return found if isinstance(found, dict) else {}


def _another(out: Path, folder: Path, asked: Mapping[str, Any], request: Mapping[str, Any]) -> str:
    keys = [key for key in dict.fromkeys((*asked, *request)) if asked.get(key) != request.get(key)]
    return (
        f"{out}: an interrupted sampling to it had other settings ({', '.join(keys)}); give the same command again to "
        f"finish it, choose another name, or remove the folder {folder}"
    )


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name != _REQUEST and path.suffix != ".partial":
            raise UserError(f"{path}: not left by an interrupted sampling; remove the folder {folder} by hand")
    for path in folder.iterdir():
        path.unlink()


def _remove(folder: Path) -> None:
    """The request last: as long as it is there, the same command knows its own results."""
    for path in folder.iterdir():
        if path.name != _REQUEST:
            path.unlink()
    shutil.rmtree(folder)
