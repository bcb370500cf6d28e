"""Sources that are read once, from front to back: data sets of the Hugging Face hub and webdataset shards.

Their raw images never have to be on this disk all at once, or at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from cascaded_diffusion.data.sources import Bad
from cascaded_diffusion.errors import UserError

__all__ = [
    "MAX_CLASSES",
    "PREFIXES",
    "Columns",
    "Labels",
    "Part",
    "Quota",
    "Record",
    "Stream",
    "local_folder",
    "open_stream",
]

PREFIXES = ("hf:", "wds:")
MAX_CLASSES = 1_000_000
LONGEST_NAME = 1000
"""Characters of a class name, as the manifest allows."""
Label = int | str | None


class Record(NamedTuple):
    """One image of a stream: what to call it (its shard and key), its class, and its file's content."""

    name: str
    label: Label
    content: bytes | Bad


@dataclass(frozen=True)
class Part:
    """A run of records that belongs to one split, or to whichever their content's hash says."""

    split: str | None
    records: Callable[[], Generator[Record, None, None]]
    total: int | None = None  # images in it, if that is known before they are read


@dataclass(frozen=True)
class Stream:
    """What is known of a stream before its images are read."""

    name: str
    parts: list[Part]
    class_names: list[str] | None  # of classes 0, 1, ...; None if there are none or they are found out while reading
    fingerprint: str
    split_rule: str | None = None  # in words, if it brings its own splits


@dataclass(frozen=True)
class Columns:
    """Which part of a data set of the hub is meant; None: found out."""

    image: str | None = None
    label: str | None = None
    subset: str | None = None


def open_stream(source: str, columns: Columns, scratch: Path, note: Callable[[str], None]) -> Stream:
    """Open ``hf:NAME[:SPLIT]`` or ``wds:PATTERN``; ``UserError`` if there is none, or its extra is not installed.

    ``scratch`` is a folder for what the libraries write down while the stream is read.
    """
    if source.startswith("hf:"):
        from cascaded_diffusion.data.hub import open_hub_data

        return open_hub_data(source.removeprefix("hf:"), columns, scratch, note)
    from cascaded_diffusion.data.shards import open_shards

    return open_shards(source.removeprefix("wds:"), note)


def local_folder(source: str) -> Path | None:
    """The folder on this disk that a stream is read from, if it is one."""
    name = source.removeprefix("hf:")
    return Path(name) if name and source.startswith("hf:") and Path(name).is_dir() else None


@dataclass
class Labels:
    """The classes of a stream: given beforehand, or found out as its records come in."""

    class_names: list[str] | None
    _first: Record | None = None
    _seen: set[int | str] = field(default_factory=set)

    def admit(self, record: Record) -> None:
        """Take note of a record's class.

        Raises:
            UserError: it is out of range, or of another kind than those before.
        """
        label = record.label
        first = self._first = self._first or record._replace(content=b"")
        if type(label) is not type(first.label):
            found, before = _describe(label), _describe(first.label)
            raise UserError(f"{record.name}: {found}, where {first.name} has {before}; give all images the same form")
        if label is None:
            return
        if isinstance(label, int):
            known = MAX_CLASSES if self.class_names is None else len(self.class_names)
            if not 0 <= label < known:
                raise UserError(f"{record.name}: class {label}; allowed: 0 to {known - 1}")
        if isinstance(label, str) and len(label) > LONGEST_NAME:
            raise UserError(
                f"{record.name}: a class name of {len(label):,} characters; at most {LONGEST_NAME:,} are allowed. "
                "If it is a text and no class, --label-column none leaves it out"
            )
        self._seen.add(label)
        if len(self._seen) > MAX_CLASSES:
            raise UserError(f"{record.name}: one class name more than the {MAX_CLASSES:,} that are allowed")

    def names(self) -> list[str] | None:
        """The names of all classes in the order of their numbers, None without classes."""
        if not self._seen:
            return None
        if self.class_names is not None:
            return self.class_names
        numbers = [label for label in self._seen if isinstance(label, int)]
        if numbers:
            return [str(number) for number in range(max(numbers) + 1)]
        return sorted(label for label in self._seen if isinstance(label, str))

    def numbers(self) -> dict[Label, int]:
        """The number of each class that was seen; -1 for none."""
        names = self.names() or []
        order = {name: number for number, name in enumerate(names)}
        return {None: -1} | {label: order[label] if isinstance(label, str) else label for label in self._seen}


def _describe(label: Label) -> str:
    if label is None:
        return "no class"
    return f"the class {'number' if isinstance(label, int) else 'name'} {label!r}"


class Quota:
    """Which records of a stream can still be among the first ``limit`` of a class-balanced order.

    A record's rank is its place within its class. The order is by rank first, so a record is out as soon as ``limit``
    records of lower rank are there, whatever else comes.
    """

    def __init__(self, limit: int | None, classes: int | None) -> None:
        self._limit, self._classes = limit, classes
        self._seen: Counter[Label] = Counter()
        self._of_rank: Counter[int] = Counter()
        self._ranks = limit or 0  # records of this rank and above are out
        self._below = 0  # records of lower ranks

    @property
    def count(self) -> int:
        """How many of the first ``limit`` are there."""
        taken = self._seen.total()
        return taken if self._limit is None else min(taken, self._limit)

    def wants(self, label: Label) -> bool:
        """Whether the next record of this class can be among the first."""
        return self._limit is None or self._seen[label] < self._ranks

    def take(self, label: Label) -> None:
        """Count a record that :meth:`wants` has let through."""
        rank = self._seen[label]
        self._seen[label] += 1
        if self._limit is None:
            return
        self._of_rank[rank] += 1
        self._below += 1
        while self._ranks and self._below - self._of_rank[self._ranks - 1] >= self._limit:
            self._ranks -= 1
            self._below -= self._of_rank.pop(self._ranks, 0)

    @property
    def full(self) -> bool:
        """Whether no record of any class can be among the first; never, as long as new classes may turn up."""
        classes = 1 if self._seen.keys() == {None} else self._classes
        if self._limit is None or classes is None or len(self._seen) < classes:
            return False
        return min(self._seen.values()) >= self._ranks
