"""ImageNet (ILSVRC 2012) as it is handed out: validation images without class folders, splits deep inside.

Its classes are in the folders' names for training, and for validation in a table (``LOC_val_solution.csv``) or in one
annotation file an image. Everything else about it is an ordinary folder of class folders.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from cascaded_diffusion.data.folder import Listing, is_image, list_images, source_of
from cascaded_diffusion.data.sources import Source
from cascaded_diffusion.errors import UserError

__all__ = ["ImageNetLayout", "find_imagenet", "open_imagenet"]

_INSIDE = ("", "CLS-LOC", "Data/CLS-LOC", "ILSVRC/Data/CLS-LOC")  # from a folder that is given to the splits
_TABLE = "LOC_val_solution.csv"
_ANNOTATIONS = "Annotations/CLS-LOC/val"
_SYNSET = re.compile(r"n\d{8}")
_LARGEST_ANNOTATION = 2**20


@dataclass(frozen=True)
class ImageNetLayout:
    """Where the splits are: ``train`` of class folders, ``val`` of such folders or of images side by side."""

    given: Path
    splits: Path

    def beside(self, name: str) -> Path | None:
        """A file or folder of the release that is in the splits' folder or up to three folders above it."""
        places = [self.splits, *self.splits.resolve().parents[:3]]
        return next((place / name for place in places if (place / name).exists()), None)


def find_imagenet(root: Path) -> ImageNetLayout | None:
    """The layout of ``root`` if it is ImageNet's and not an ordinary folder of ``train`` and ``val``."""
    for inside in _INSIDE:
        splits = root / inside
        if not ((splits / "train").is_dir() and (splits / "val").is_dir()):
            continue
        layout = ImageNetLayout(root, splits)
        nested, with_test = splits != root, (splits / "test").is_dir()
        if _holds_synsets(splits / "train") and (nested or with_test or _is_flat(splits / "val")):
            return layout
    return None


def open_imagenet(layout: ImageNetLayout, note: Callable[[str], None]) -> Source:
    """List ImageNet's training and validation images; those of ``test`` have no public classes and are left out.

    Raises:
        UserError: nothing tells the class of a validation image.
    """
    ignored: list[str] = []
    train, val = (list_images(layout.splits, split, ignored) for split in ("train", "val"))
    if (layout.splits / "test").is_dir():
        note(f"{layout.splits / 'test'}: left out, for its classes are not public")
    if val.images and not val.classes():
        val = _labelled(layout, val)
    source = source_of(layout.splits, {"train": train, "val": val}, ignored)
    labels = "".join(f"{item.label}\n" for item in source.items if item.split == "val")
    fingerprint = hashlib.sha256(f"{source.fingerprint}\n{labels}".encode()).hexdigest()
    return replace(source, name=layout.given.resolve().name, fingerprint=fingerprint)


def _holds_synsets(folder: Path) -> bool:
    names = [entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    return bool(names) and all(_SYNSET.fullmatch(name) for name in names)


def _is_flat(folder: Path) -> bool:
    return any(entry.is_file() and is_image(entry.name) for entry in folder.iterdir())


def _labelled(layout: ImageNetLayout, val: Listing) -> Listing:
    """The validation images with their classes."""
    table, annotations = layout.beside(_TABLE), layout.beside(_ANNOTATIONS)
    if table is None and annotations is None:
        wanted = f"{_TABLE} or {_ANNOTATIONS}/ beside it or above"
        raise UserError(f"{layout.splits / 'val'}: nothing tells the classes of its images; put {wanted}")
    classes = _from_table(table) if table is not None else {}
    images: list[tuple[str | None, str]] = []
    for _, path in val.images:
        stem = Path(path).stem
        synset = classes.get(stem)
        if synset is None and table is None and annotations is not None:
            synset = _from_annotation(annotations / f"{stem}.xml")
        if synset is None:
            raise UserError(f"{layout.splits / path}: its class is not in {table or annotations}")
        images.append((synset, path))
    return replace(val, images=images)


def _from_table(path: Path) -> dict[str, str]:
    """Image to class, from rows ``ILSVRC2012_val_00048981,n03995372 85 1 499 272``."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.reader(file) if len(row) == 2]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    return {image: match.group() for image, boxes in rows if (match := _SYNSET.match(boxes))}


def _from_annotation(path: Path) -> str | None:
    """The class in an annotation file: all objects in a validation image are of one."""
    try:
        with path.open(encoding="utf-8") as file:
            match = re.search(r"<name>\s*(n\d{8})\s*</name>", file.read(_LARGEST_ANNOTATION))
    except (OSError, UnicodeDecodeError):
        return None
    return match.group(1) if match else None
