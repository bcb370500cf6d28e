"""Folders of image files as a source: classes from folder names, splits from ``train/`` and ``val/``.

Links to files and folders are followed, so that a subset can be made of links; one that leads back to a folder it lies
in is an error. Hidden files and what file managers leave (Thumbs.db and the like) are passed over. Every file whose
name ends like an image's must be one; other files (read-me, licence, JSON, ...) are ignored and counted.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cascaded_diffusion.data.decoding import decode, image_suffixes, look
from cascaded_diffusion.data.pixels import Pixels
from cascaded_diffusion.data.sources import Bad, Facts, Item, Key, Source
from cascaded_diffusion.errors import UserError

__all__ = ["FolderReader", "Listing", "is_image", "list_images", "open_folder", "source_of"]

_LITTER = {"Thumbs.db", "desktop.ini", "Icon\r", "__MACOSX"}
_SPLIT_LIKE = {"train", "val", "valid", "validation", "test"}


@dataclass(frozen=True)
class FolderReader:
    """Image files below one folder; keys are paths relative to it, with forward slashes."""

    root: Path
    chunk = 16

    def name(self, key: Key) -> str:
        """The path of the file, printable even where its name is not valid text."""
        return _printable(f"{self.root}/{key}")

    def look(self, keys: Sequence[Key], *, with_digest: bool) -> list[Facts | Bad]:
        """Facts from the files' headers; their digests are those of their bytes."""
        return [look(self.root / str(key), with_digest) for key in keys]

    def read(self, keys: Sequence[Key], channels: int) -> Iterator[Pixels | Bad]:
        """The images one by one, since each has its own size."""
        for key in keys:
            pixels = decode(self.root / str(key), channels)
            yield pixels if isinstance(pixels, Bad) else pixels[None]


@dataclass
class Listing:
    """Image files below one folder, as (class or None, path relative to the source)."""

    images: list[tuple[str | None, str]] = field(default_factory=list)
    empty_classes: list[str] = field(default_factory=list)

    def classes(self) -> set[str]:
        """The classes that have images."""
        return {name for name, _ in self.images if name is not None}


def open_folder(root: Path) -> Source:
    """List the images of a folder of class folders or of images, or of two such folders ``train/`` and ``val/``."""
    ignored: list[str] = []
    splits = _splits(root)
    return source_of(root, {split: list_images(root, prefix, ignored) for split, prefix in splits.items()}, ignored)


def source_of(root: Path, listings: dict[str, Listing], ignored: list[str]) -> Source:
    """The source that the images of ``train``, and of ``val`` if that is there, make; ``ignored`` are no images."""
    if not any(listing.images for listing in listings.values()):
        others = f"{len(ignored)} other files, such as {_printable(ignored[0])}" if ignored else "no files at all"
        raise UserError(f"{root}: no image files in it ({others})")
    class_names = _class_names(root, listings)
    labels = {name: i for i, name in enumerate(class_names or [])}
    brings_splits = "val" in listings
    items = [
        Item(path, labels.get(name or "", -1), split if brings_splits else None)
        for split, listing in listings.items()
        for name, path in listing.images
    ]
    return Source(
        name=_text(root.resolve().name, root),
        reader=FolderReader(root),
        items=items,
        class_names=class_names,
        fingerprint=_fingerprint(root, items),
        split_rule="its folders train and val" if brings_splits else None,
        ignored=[_printable(name) for name in ignored],
    )


def _splits(root: Path) -> dict[str, str]:
    """Which top folder is which split: {split: path relative to the root}; without such folders all is train."""
    folders = {entry.name for entry in _entries(root) if entry.is_dir()}
    named = folders & _SPLIT_LIKE
    images = any(is_image(entry.name) and not entry.is_dir() for entry in _entries(root))
    if folders == {"train"} and not images:
        return {"train": "train"}
    if {"train", "val"} <= folders:
        beside = sorted(folders - {"train", "val"}) + (["image files"] if images else [])
        if beside:
            others = _printable(", ".join(beside))
            raise UserError(f"{root}: holds {others} beside its splits train and val; keep only the two")
        return {"train": "train", "val": "val"}
    if named and named == folders:
        found = ", ".join(sorted(named))
        raise UserError(f"{root}: its folders are {found}; name the splits train and val, or give train alone")
    return {"train": ""}


def list_images(root: Path, prefix: str, ignored: list[str]) -> Listing:
    """Images directly in ``root/prefix`` (no classes), or below its folders (each a class), not both."""
    listing = Listing()
    top = root / prefix
    direct: list[tuple[str | None, str]] = []
    for entry in _entries(top):
        relative = f"{prefix}/{entry.name}" if prefix else entry.name
        if not entry.is_dir():
            (direct.append((None, relative)) if is_image(entry.name) else ignored.append(relative))
            continue
        below = [(entry.name, path) for path in _walk(Path(entry.path), relative, ignored, (_identity(top),))]
        listing.images.extend(below)
        if not below:
            listing.empty_classes.append(entry.name)
    if direct and listing.images:
        both = f"directly in it ({_printable(direct[0][1])}) and in folders ({_printable(listing.images[0][1])})"
        raise UserError(f"{top}: images both {both}; put all into class folders, or all into one folder")
    if not direct and listing.images and listing.empty_classes and prefix != "val":
        raise UserError(f"{top / listing.empty_classes[0]}: a class folder without images; remove it or fill it")
    listing.images.extend(direct)
    return listing


def _walk(folder: Path, relative: str, ignored: list[str], above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    """Relative paths of all images below ``folder``; ``above`` identifies the folders it lies in."""
    here = _identity(folder)
    if here in above:
        raise UserError(f"{_printable(str(folder))}: a link that leads back to a folder it lies in")
    for entry in _entries(folder):
        path = f"{relative}/{entry.name}"
        if entry.is_dir():
            yield from _walk(Path(entry.path), path, ignored, (*above, here))
        elif is_image(entry.name):
            yield path
        else:
            ignored.append(path)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What a folder holds, sorted by name, without hidden files and litter."""
    try:
        with os.scandir(folder) as entries:
            kept = [entry for entry in entries if not entry.name.startswith(".") and entry.name not in _LITTER]
    except OSError as error:
        raise UserError(f"{_printable(str(folder))}: cannot be listed ({error.strerror})") from None
    return sorted(kept, key=lambda entry: entry.name)


def _identity(folder: Path) -> tuple[int, int]:
    facts = folder.stat()
    return facts.st_dev, facts.st_ino


def is_image(name: str) -> bool:
    """Whether a file's name ends like an image's."""
    return os.path.splitext(name)[1].lower() in image_suffixes()


def _class_names(root: Path, listings: dict[str, Listing]) -> list[str] | None:
    """Names of all classes, sorted; None without classes. Both splits must agree."""
    train = listings["train"].classes()
    val = listings["val"].classes() if "val" in listings else train
    if not listings["train"].images:
        raise UserError(f"{root / 'train'}: no image files in it")
    if "val" in listings and listings["val"].images and bool(train) != bool(val):
        having, lacking = ("train", "val") if train else ("val", "train")
        raise UserError(f"{root}: {having} has class folders and {lacking} has none; give both the same form")
    unknown = sorted(val - train)
    if unknown:
        known = _printable(", ".join(sorted(train)))
        raise UserError(f"{root / 'val'}: class {_printable(unknown[0])} is not in train, which has {known}")
    return sorted(_text(name, root) for name in train) or None


def _fingerprint(root: Path, items: list[Item]) -> str:
    """SHA-256 over the path and size of every image."""
    digest = hashlib.sha256()
    for item in items:
        try:
            size = (root / str(item.key)).stat().st_size
        except OSError:  # a dead link: found again, and named, when it is read
            size = -1
        digest.update(f"{item.key}\0{size}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _text(name: str, root: Path) -> str:
    shown = _printable(name)
    if name != shown:
        raise UserError(f"{_printable(str(root))}: the folder name {shown} is not valid text (UTF-8); rename it")
    return name


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
