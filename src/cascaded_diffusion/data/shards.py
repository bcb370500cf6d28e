"""Webdataset shards on this disk as a stream: tar files in which files of one name without its endings are a sample.

The package ``webdataset`` expands the pattern's braces and groups the members; the members are read here, since they
are strangers' files: nothing is extracted, decoded by its name or unpickled, and none may be larger than an image is.
"""

from __future__ import annotations

import glob
import hashlib
import json
import re
import tarfile
import zlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from cascaded_diffusion.data.sources import Bad
from cascaded_diffusion.data.streams import Label, Part, Record, Stream
from cascaded_diffusion.errors import UserError, one_line
from cascaded_diffusion.extras import load_extra

__all__ = ["MAX_MEMBER", "open_shards"]

MAX_SHARDS = 100_000
MAX_MEMBER = 2**28  # bytes; a photograph has a tenth of it
MAX_LABEL = 2**20
_LONGEST = 2**36  # bytes of a member that is passed over
_BUFFER = 2**20  # tarfile passes over a member buffer by buffer, also where there is nothing left to read
_IMAGES = ("jpg", "jpeg", "png", "webp")
_LABELS = ("cls", "json")
_SPLIT_WORD = re.compile(r"(?<![a-z])(train|val|valid|validation)(?![a-z])")


def open_shards(pattern: str, note: Callable[[str], None]) -> Stream:
    """Open the shards that a pattern of braces (``a-{000..009}.tar``) and globs (``a-*.tar``) names.

    If every shard's name holds the word train or val (or valid, or validation), these are the splits.

    Raises:
        UserError: there are none, one is missing, or they are not files on this disk.
    """
    grouping = load_extra("webdataset.tariterators", "webdataset", f"wds:{pattern}: reading it")
    shards = _expanded(pattern, load_extra("braceexpand", "webdataset", f"wds:{pattern}: reading it").braceexpand)
    words = [_SPLIT_WORD.findall(shard.name.lower()) for shard in shards]
    roles = ["train" if found[-1:] == ["train"] else "val" for found in words]
    brings_splits = all(words) and len(set(roles)) == 2
    parts = [Part(None, _Samples(shards, grouping.group_by_keys))]
    if brings_splits:
        chosen = {role: [shard for shard, of in zip(shards, roles) if of == role] for role in ("train", "val")}
        parts = [Part(role, _Samples(found, grouping.group_by_keys)) for role, found in chosen.items()]
        counts = " and ".join(f"{len(found)} of {role}" for role, found in chosen.items())
        note(f"wds:{pattern}: shards of two splits by their names, {counts}")
    sums = "".join(f"{shard.name}\0{shard.stat().st_size}\n" for shard in shards)
    return Stream(
        name=Path(pattern).name,
        parts=parts,
        class_names=None,
        fingerprint=hashlib.sha256(sums.encode(errors="surrogateescape")).hexdigest(),
        split_rule="the shards' own, by their names" if brings_splits else None,
    )


def _expanded(pattern: str, braceexpand: Callable[[str], Iterator[str]]) -> list[Path]:
    allowed = "give files on this disk, such as wds:shards/train-{000..009}.tar or wds:shards/*.tar"
    if not pattern or re.match(r"[a-z0-9]+:", pattern) or "::" in pattern:
        raise UserError(f"wds:{pattern}: {'no pattern' if not pattern else 'not files on this disk'}; {allowed}")
    ranges = re.findall(r"\{(-?\d+)\.\.(-?\d+)", pattern)
    too_many = any(abs(int(last) - int(first)) >= MAX_SHARDS for first, last in ranges)  # a range is made whole
    try:
        names = [] if too_many else list(islice(braceexpand(pattern), MAX_SHARDS + 1))
    except ValueError as error:
        raise UserError(f"wds:{pattern}: {error}; {allowed}") from None
    if too_many or len(names) > MAX_SHARDS:
        raise UserError(f"wds:{pattern}: more than {MAX_SHARDS} shards; {allowed}")
    shards: list[Path] = []
    for name in names:
        found = [name] if Path(name).exists() else sorted(glob.glob(name))
        if not found:
            raise UserError(f"wds:{pattern}: no file {name}; {allowed}")
        shards.extend(map(Path, found))
    for shard in shards:
        if not shard.is_file():
            raise UserError(f"wds:{pattern}: {shard} is not a file; {allowed}")
    return list(dict.fromkeys(shards))


@dataclass(frozen=True)
class _Samples:
    """The samples of some shards as records."""

    shards: list[Path]
    group: Callable[..., Iterator[dict[str, Any]]]

    def __call__(self) -> Generator[Record, None, None]:
        for shard in self.shards:
            members = _Members(shard)
            for sample in self.group(iter(members), handler=members.refuse):
                yield _record(shard, sample)
            if members.damage is not None:
                yield Record(f"{shard}: after {members.last or 'its start'}", None, members.damage)
            elif not members.found:
                yield Record(str(shard), None, Bad(f"no KEY.{', KEY.'.join(_IMAGES)} in it"))


class _Header(tarfile.TarInfo):
    """A member's header, of which no part that is read into memory may be of absurd size."""

    def _proc_member(self, tar: tarfile.TarFile) -> Any:
        plain = (*tarfile.REGULAR_TYPES, tarfile.DIRTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE)
        if self.type not in plain and self.size > MAX_LABEL:
            raise tarfile.ReadError(f"a header of {self.size} bytes; at most {MAX_LABEL} are read")
        return super()._proc_member(tar)  # type: ignore[misc]


class _Members:
    """A shard's members of interest, as webdataset passes them on; oversized ones as what is wrong with them."""

    def __init__(self, shard: Path) -> None:
        self.shard, self.last, self.found = shard, "", False
        self.damage: Bad | None = None  # why the rest of the shard cannot be read

    def __iter__(self) -> Iterator[dict[str, Any]]:
        try:
            with tarfile.open(self.shard, mode="r|*", tarinfo=_Header, bufsize=_BUFFER) as tar:
                for member in tar:
                    if member.size > _LONGEST:
                        raise tarfile.ReadError(
                            f"{member.name} has {member.size} bytes; at most {_LONGEST} are passed over"
                        )
                    tar.members = []  # type: ignore[attr-defined]  # else the list grows with the shard
                    if self._is_wanted(member):
                        self.found = True
                        yield {"fname": member.name, "data": self._data(tar, member), "__url__": str(self.shard)}
                    self.last = member.name
        except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError) as error:
            self.damage = Bad(f"the rest of the shard cannot be read ({one_line(error)})")

    def refuse(self, error: Exception) -> bool:
        """Webdataset's handler of errors: a member that is there twice."""
        raise UserError(f"{self.shard}: {str(error.args[0]).partition(' dict_keys')[0]}") from None

    def _is_wanted(self, member: tarfile.TarInfo) -> bool:
        name = member.name.rpartition("/")[2].lower()
        ending = name.partition(".")[2]
        return member.isreg() and not name.startswith((".", "__")) and ending in (*_IMAGES, *_LABELS)

    def _data(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes | Bad:
        ending = member.name.rpartition(".")[2].lower()
        most = MAX_LABEL if ending in _LABELS else MAX_MEMBER
        if member.size > most:
            return Bad(f"{member.name} has {member.size} bytes; at most {most} are read")
        file = tar.extractfile(member)
        content = b"" if file is None else file.read()
        if len(content) != member.size:
            raise tarfile.ReadError(f"{member.name} is cut short")
        return content


def _record(shard: Path, sample: dict[str, Any]) -> Record:
    name = f"{shard}: {sample['__key__']}"
    images = [key for key in _IMAGES if key in sample]
    label = _label(sample)
    if len(images) == 1 and not isinstance(label, Bad):
        return Record(name, label, sample[images[0]])
    if isinstance(label, Bad):
        return Record(name, None, label)
    return Record(name, label, Bad(f"images of two kinds: {', '.join(images)}" if images else "no image in it"))


def _label(sample: dict[str, Any]) -> Label | Bad:
    """The class in ``cls``, a number or a name, or in the ``label`` of ``json``; None without both."""
    content = sample.get("cls", sample.get("json"))
    if content is None or isinstance(content, Bad):
        return content
    try:
        text = content.decode().strip()
        value = text if "cls" in sample else json.loads(text).get("label")
        if "cls" in sample and re.fullmatch(r"-?[0-9]{1,9}", text):
            value = int(text)
    except (ValueError, RecursionError, AttributeError) as error:
        return Bad(f"its class cannot be read ({one_line(error)})")
    if isinstance(value, str):
        if not value or not value.isprintable():
            return Bad(f"its class {value!r} is no number and no name")
        return value
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return None if value == -1 else value
    return Bad(f"its class {value!r} is no number and no name")
