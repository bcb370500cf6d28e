"""From a stream of images to a folder of prepared data, in one pass.

Every image goes to its split's arrays at every resolution as it comes in, so that only prepared pixels are kept. What
is known at the end alone (how many there are, whether all are grey, the order that ``limit`` asks for) is settled by
rewriting the arrays then.
"""

from __future__ import annotations

import contextlib
import shutil
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from cascaded_diffusion.data.arrays import GrowingArray, save_array
from cascaded_diffusion.data.convert import Converted, convert_contents
from cascaded_diffusion.data.manifest import Manifest, images_file, labels_file
from cascaded_diffusion.data.options import Options, Outcome, finish
from cascaded_diffusion.data.pixels import CROP_RULE
from cascaded_diffusion.data.sources import Bad, Facts, Item
from cascaded_diffusion.data.splits import class_balanced, hash_fraction
from cascaded_diffusion.data.streams import Label, Labels, Part, Quota, Record, Stream
from cascaded_diffusion.data.workers import WorkerPool
from cascaded_diffusion.data.workspace import free_space_check
from cascaded_diffusion.errors import UserError

__all__ = ["StreamRun"]

CHUNK_IMAGES = 16
CHUNK_BYTES = 2**25
Found = tuple[Facts, Converted] | Bad


@dataclass
class StreamRun:
    """One preparation of a stream."""

    stream: Stream
    options: Options
    work: Path
    pool: WorkerPool
    progress: Callable[[str, int, int | None], None]
    note: Callable[[str], None]
    outcome: Outcome = field(default_factory=lambda: Outcome(channels=1))

    def __post_init__(self) -> None:
        """Begin with empty splits."""
        names = self.stream.class_names
        self._labels = Labels(names)
        self._splits = {
            name: _GrowingSplit(self.work, name, self.options, None if names is None else len(names))
            for name in ("train", "val")
        }

    def run(self) -> Manifest:
        """Read the stream and write the arrays and the manifest."""
        self._check_space()
        with contextlib.ExitStack() as stack:
            for split in self._splits.values():
                stack.callback(split.abandon)
            for part in self.stream.parts:
                self._read(part)
            numbers = self._labels.numbers()
            counts = {name: split.close(numbers) for name, split in self._splits.items()}
        self.outcome.upscaled = sum(split.upscaled for split in self._splits.values())
        if self.options.val is not None and counts["train"] and not counts["val"]:
            images = counts["train"]
            self.note(f"val: the fraction {self.options.val} of {images} images is none; there is no val split")
        hash_rule = "all images are train" if self.options.val is None else self.options.hash_rule
        return finish(
            self.work,
            self.options,
            self.outcome,
            source=self.stream.name,
            fingerprint=self.stream.fingerprint,
            class_names=self._labels.names(),
            counts=counts,
            crop_rule=CROP_RULE,
            split_rule=self.stream.split_rule or hash_rule,
            pool=self.pool,
            progress=self.progress,
        )

    def _check_space(self) -> None:
        """Refuse to go on if the number of images is known and their room is not there."""
        images = sum(self._wanted(part) or 0 for part in self.stream.parts)
        free_space_check(self.work, images * self.outcome.channels * self.options.pixels_an_image)

    def _wanted(self, part: Part) -> int | None:
        """How many images of a part will be kept, if that is known."""
        limit, total = self.options.limit, part.total
        return total if limit is None else limit if total is None else min(limit, total)

    # -- reading ------------------------------------------------------------------------------------------------------

    def _read(self, part: Part) -> None:
        step = "reading" if part.split is None else f"reading {part.split}"
        splits = self._possible_splits(part)
        total = self._wanted(part) if self.options.val is None else part.total
        done = 0
        self.progress(step, 0, total)
        with contextlib.closing(self._converted(part, splits)) as found:
            for record, result in found:
                self._take(part, splits, record, result)
                if all(split.quota.full for split in splits):
                    break
                done = sum(split.quota.count for split in splits)
                self.progress(step, done, total)
        done = sum(split.quota.count for split in splits)
        self.progress(step, done, done)

    def _possible_splits(self, part: Part) -> list[_GrowingSplit]:
        if part.split is not None:
            return [self._splits[part.split]]
        return [self._splits["train"]] if self.options.val is None else list(self._splits.values())

    def _converted(self, part: Part, splits: list[_GrowingSplit]) -> Generator[tuple[Record, Found], None, None]:
        """The part's records with what the workers made of them, in order, without those that cannot be wanted."""
        waiting: deque[list[Record]] = deque()

        def tasks() -> Iterator[list[bytes | Bad]]:
            with contextlib.closing(part.records()) as records:
                wanted = (record for record in records if any(split.quota.wants(record.label) for split in splits))
                for chunk in _chunks(wanted):
                    waiting.append(chunk)
                    yield [record.content for record in chunk]

        convert = partial(convert_contents, self.options.val is not None, tuple(self.options.resolutions))
        with contextlib.closing(self.pool.map(convert, tasks())) as results:
            for result in results:
                yield from zip(waiting.popleft(), result, strict=True)

    def _take(self, part: Part, splits: list[_GrowingSplit], record: Record, result: Found) -> None:
        """Put one image where it belongs. Workers read ahead, so whether it is wanted is asked once more."""
        if not any(split.quota.wants(record.label) for split in splits):
            return
        if isinstance(result, Bad):
            self._bad(record, result)
            return
        facts, converted = result
        split = self._splits[part.split or self._split_of(facts)]
        if not split.quota.wants(record.label):
            return
        self._labels.admit(record)
        self.options.check_size(record.name, facts)
        if not facts.grey and self.outcome.channels == 1:
            self.outcome.channels = 3
            self._check_space()
            for each in self._splits.values():
                each.widen(3)
        split.append(record.label, converted)

    def _split_of(self, facts: Facts) -> str:
        if self.options.val is None:
            return "train"
        assert facts.digest is not None  # asked for with val
        return "val" if hash_fraction(facts.digest) < self.options.val else "train"

    def _bad(self, record: Record, bad: Bad) -> None:
        if not self.options.skip_bad:
            remedy = "mend or remove it, or leave such images out with --skip-bad"
            raise UserError(f"{record.name}: unreadable image ({bad.reason}); {remedy}")
        self.outcome.skipped.append(f"{record.name}: {bad.reason}".encode(errors="backslashreplace").decode())
        self.note(f"skipped {record.name}: {bad.reason}")


def _chunks(records: Iterator[Record]) -> Iterator[list[Record]]:
    """Records in tasks of sensible size and memory."""
    chunk: list[Record] = []
    size = 0
    for record in records:
        chunk.append(record)
        size += len(record.content) if isinstance(record.content, bytes) else 0
        if len(chunk) == CHUNK_IMAGES or size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


class _GrowingSplit:
    """The arrays of one split while images come in."""

    def __init__(self, work: Path, name: str, options: Options, classes: int | None) -> None:
        self.name, self.quota, self.upscaled = name, Quota(options.limit, classes), 0
        self._work, self._limit = work, options.limit
        self._labels: list[Label] = []
        self._enlarged: list[bool] = []
        (work / name).mkdir()
        self._images = {size: GrowingArray(work / images_file(name, size), size, 1) for size in options.resolutions}

    def append(self, label: Label, converted: Converted) -> None:
        """Add an image that the quota wants."""
        self.quota.take(label)
        self._labels.append(label)
        self._enlarged.append(converted.upscaled)
        for size, image in converted.images.items():
            self._images[size].append(image)

    def widen(self, channels: int) -> None:
        """Give the grey images so far more channels."""
        for array in self._images.values():
            array.widen(channels)

    def close(self, numbers: dict[Label, int]) -> int:
        """Put the arrays on disk, in class-balanced order if there is a limit; the number of images."""
        labels = [numbers[label] for label in self._labels]
        order = None
        if self._limit is not None:
            items = class_balanced(Item(row, label) for row, label in enumerate(labels))[: self._limit]
            order = [int(item.key) for item in items]
            labels = [labels[row] for row in order]
        self.upscaled = sum(self._enlarged if order is None else (self._enlarged[row] for row in order))
        for array in self._images.values():
            array.close(order)
        save_array(self._work / labels_file(self.name), np.array(labels, np.int64))
        if not labels:
            shutil.rmtree(self._work / self.name)
        return len(labels)

    def abandon(self) -> None:
        """Close the files as they are."""
        for array in self._images.values():
            array.abandon()
