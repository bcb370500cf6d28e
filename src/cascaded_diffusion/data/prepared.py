"""Reading prepared data: checked when opened, mapped into memory when used."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cascaded_diffusion.data.manifest import Counts, Manifest, Request, labels_file
from cascaded_diffusion.data.packed import ImageRows, PackedImages
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.files import sha256_of
from cascaded_diffusion.reading.npy import map_npy
from cascaded_diffusion.reading.plain import refuse_outside

__all__ = ["Counts", "Manifest", "PreparedData", "Request", "Split"]


@dataclass(frozen=True)
class PreparedData:
    """A folder of prepared data, opened with :meth:`open`."""

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: Path | str) -> PreparedData:
        """Read the manifest and check that every array exists with the right type and shape, without reading pixels.

        Raises:
            UserError: naming the file that is missing, cut short, of a wrong type or shape, or no prepared data at all.
        """
        path = Path(folder)
        if not path.is_dir():
            raise UserError(f"{path}: no such folder; make prepared data with cdm prepare")
        if not (path / "manifest.json").is_file():
            raise UserError(f"{path}: not prepared data (no manifest.json); make some with cdm prepare")
        refuse_outside(path, path / "manifest.json")
        data = cls(path, Manifest.read(path))
        refuse_outside(path, *(path / name for name in data.manifest.files))
        for name in data.splits:
            split = data.split(name)
            split.labels  # noqa: B018 - reading checks them
            for resolution in data.resolutions:
                split.images(resolution)
        return data

    @property
    def channels(self) -> int:
        """Channels of every image: 1 or 3."""
        return self.manifest.channels

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes in the order of their labels, or None without classes."""
        return self.manifest.class_names

    @property
    def classes(self) -> int | None:
        """Number of classes, or None without classes."""
        return None if self.class_names is None else len(self.class_names)

    @property
    def resolutions(self) -> list[int]:
        """Sides in pixels at which the images are there, ascending."""
        return self.manifest.resolutions

    @property
    def splits(self) -> list[str]:
        """Names of the splits that hold images: ``train``, and ``val`` if there is one."""
        return self.manifest.splits()

    def split(self, name: str) -> Split:
        """The split ``name``; one that is not there is a ``UserError`` naming those that are."""
        if name not in self.splits:
            raise UserError(f"{self.folder}: no split {name!r}; it has {', '.join(self.splits)}")
        return self._splits[name]

    @cached_property
    def _splits(self) -> dict[str, Split]:
        return {name: Split(self, name, getattr(self.manifest.counts, name)) for name in self.splits}

    def verify(self, names: Iterable[str] | None = None) -> None:
        """Read files and compare their SHA-256 with the manifest; a ``UserError`` names the first that differs.

        Args:
            names: which of the manifest's files; all of them by default.
        """
        for name in self.manifest.files if names is None else names:
            if sha256_of(self.folder / name) != self.manifest.files[name]:
                raise UserError(f"{self.folder / name}: not as it was prepared (its SHA-256 is not the manifest's)")


@dataclass(frozen=True)
class Split:
    """The images and labels of one split."""

    data: PreparedData
    name: str
    count: int

    def __len__(self) -> int:
        return self.count

    def images(self, resolution: int) -> ImageRows:
        """Images at one resolution, uint8 (N, R, R, C), read-only; a missing resolution is a ``UserError``.

        An array that is mapped into memory, or :class:`PackedImages` where they are compressed.
        """
        if resolution not in self.data.resolutions:
            have = ", ".join(map(str, self.data.resolutions))
            raise UserError(f"{self.data.folder}: no images of resolution {resolution}; it has {have}")
        shape = (self.count, resolution, resolution, self.data.channels)
        path = self.data.folder / self.data.manifest.images_file(self.name, resolution)
        if resolution in self.data.manifest.compressed:
            return PackedImages(path, shape)
        return _mapped(path, np.uint8, shape)

    @cached_property
    def labels(self) -> npt.NDArray[np.int64]:
        """Class of every image, int64 (N,), read-only; -1 without classes. Read once and kept."""
        path = self.data.folder / labels_file(self.name)
        labels = np.array(_mapped(path, np.int64, (self.count,)))
        low, high = (-1, -1) if self.data.classes is None else (0, self.data.classes - 1)
        if labels.min() < low or labels.max() > high:
            found = f"labels from {labels.min()} to {labels.max()}"
            raise UserError(f"{path}: {found}; the manifest allows {low} to {high}")
        labels.setflags(write=False)
        return labels


def _mapped(path: Path, dtype: type[np.generic], shape: tuple[int, ...]) -> np.memmap:
    """Map a ``.npy`` file and check what is in it."""
    if not path.is_file():
        raise UserError(f"{path}: missing from the prepared data")
    return map_npy(path, dtype, shape)
