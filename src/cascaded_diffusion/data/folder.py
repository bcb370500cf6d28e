"""Folders of image files as a source: classes from folder names, splits from ``train/`` and ``val/``.

Splits are known by other names of theirs too (``Training``, ``validation``, ``train_set``): taken for classes, they
would have the held-out images trained on.

Links to files and folders are followed, so that a subset can be made of links; one that leads back to a folder it lies
in is an error. Hidden files and what file managers leave (Thumbs.db and the like) are passed over. Every file whose
name ends like an image's must be one; other files (read-me, licence, JSON, ...) are ignored and counted.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cascaded_diffusion.data.decoding import decode, image_suffixes, look
from cascaded_diffusion.data.pixels import Pixels
from cascaded_diffusion.data.sources import Bad, Facts, Item, Key, Source
from cascaded_diffusion.errors import UserError

__all__ = ["FolderReader", "Listing", "is_image", "list_images", "open_folder", "source_of"]

_LITTER = {"Thumbs.db", "desktop.ini", "Icon\r", "__MACOSX"}
_SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
    "eval": "test",
}
_SPLIT_LIKE = re.compile(  # also train_set, test-images, val2017
    rf"({'|'.join(_SPLIT_WORDS)})(?:[ _-]?(?:set|split|data|images))?(?:[ _-]?[0-9]{{4}})?"
)


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
    """Image files below one folder, as (class or None, path relative to the source).

    ``folder`` and ``empty_classes`` are paths relative to the source as well.
    """

    folder: str
    images: list[tuple[str | None, str]] = field(default_factory=list)
    empty_classes: list[str] = field(default_factory=list)

    def classes(self) -> set[str]:
        """The classes that have images."""
        return {name for name, _ in self.images if name is not None}


def open_folder(root: Path) -> Source:
    """List the images of a folder of class folders or of images, or of two such folders ``train/`` and ``val/``.

    Raises:
        UserError: its form leaves open what is a class and what a split, or a class is empty, or there are no images.
    """
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
        fingerprint=_fingerprint(root, items, listings),
        split_rule=f"its folders {' and '.join(given.folder for given in listings.values())}"
        if brings_splits
        else None,
        ignored=[_printable(name) for name in ignored],
    )


def _splits(root: Path) -> dict[str, str]:
    """Which top folder is which split: {split: path relative to the root}; without such folders all is train."""
    folders = [entry.name for entry in _entries(root) if entry.is_dir()]
    splits = {name: split for name in folders if (split := _split_named(name)) is not None}
    beside = [name for name in folders if name not in splits]
    images = any(is_image(entry.name) and not entry.is_dir() for entry in _entries(root))
    train, val = ([name for name, split in splits.items() if split == wanted] for wanted in ("train", "val"))
    if len(folders) == len(train) == 1 and not images:
        return {"train": train[0]}
    if len(train) == len(val) == 1:
        others = [name for name in folders if name not in train + val] + (["image files"] if images else [])
        if others:
            found = f"holds {_listed(others)} beside its splits {train[0]} and {val[0]}"
            raise UserError(f"{root}: {_printable(found)}; keep only the two")
        return {"train": train[0], "val": val[0]}
    if splits and not beside:
        found = _printable(", ".join(splits))
        raise UserError(f"{root}: its folders are {found}; name the splits train and val, or give train alone")
    # One such folder of images may be a class (a train beside cars); two, or one of folders, are taken for splits.
    if len(set(splits.values())) > 1 or any(_holds_only_folders(root / name) for name in splits):
        found = _printable(f"folders named like splits ({_listed(list(splits))}) beside others ({_listed(beside)})")
        raise UserError(f"{root}: {found}; keep train and val, or train alone, or rename what is a class")
    return {"train": ""}


def _split_named(folder: str) -> str | None:
    """The split that a folder's name tells: train, val or test; None for any other name."""
    match = _SPLIT_LIKE.fullmatch(folder.casefold())
    return None if match is None else _SPLIT_WORDS[match.group(1)]


def _holds_only_folders(folder: Path) -> bool:
    """Whether a folder holds folders and no images beside them, as a split of class folders does."""
    entries = _entries(folder)
    return any(entry.is_dir() for entry in entries) and not any(
        is_image(entry.name) and not entry.is_dir() for entry in entries
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def list_images(root: Path, prefix: str, ignored: list[str]) -> Listing:
    """Images directly in ``root/prefix`` (no classes), or below its folders (each a class), not both."""
    listing = Listing(prefix)
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
            listing.empty_classes.append(relative)
    if direct and listing.images:
        both = f"directly in it ({_printable(direct[0][1])}) and in folders ({_printable(listing.images[0][1])})"
        raise UserError(f"{top}: images both {both}; put all into class folders, or all into one folder")
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
    learned = listings["train"]
    held_out = listings.get("val", learned)
    train, val = learned.classes(), held_out.classes()
    if not learned.images:
        raise UserError(f"{root / learned.folder}: no image files in it")
    if train and learned.empty_classes:
        raise UserError(f"{root / learned.empty_classes[0]}: a class folder without images; remove it or fill it")
    if held_out.images and bool(train) != bool(val):
        having, lacking = (learned.folder, held_out.folder) if train else (held_out.folder, learned.folder)
        raise UserError(f"{root}: {having} has class folders and {lacking} has none; give both the same form")
    unknown = sorted(val - train)
    if unknown:
        known = _printable(", ".join(sorted(train)))
        found = f"class {_printable(unknown[0])} is not in {learned.folder}"
        raise UserError(f"{root / held_out.folder}: {found}, which has {known}")
    return sorted(_text(name, root) for name in train) or None


def _fingerprint(root: Path, items: list[Item], listings: dict[str, Listing]) -> str:
    """SHA-256 over the path and size of every image."""
    digest = hashlib.sha256()
    for split, listing in listings.items():
        if listing.folder not in ("", split):  # data prepared when such a folder was still a class are others
            digest.update(f"{split}\0{listing.folder}\n".encode())
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
