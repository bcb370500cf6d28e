"""From a source of images to a folder of prepared data: scan, divide, crop, resize, write, and only then show it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from cascaded_diffusion.data.arrays import RowWriter, save_array
from cascaded_diffusion.data.convert import Converted, convert_all
from cascaded_diffusion.data.manifest import Manifest, images_file, labels_file
from cascaded_diffusion.data.options import MAX_RESOLUTION, Options, Outcome, finish
from cascaded_diffusion.data.sources import PACKAGED, Bad, Facts, Item, Key, Source, open_source
from cascaded_diffusion.data.splits import by_content_hash, class_balanced
from cascaded_diffusion.data.streams import PREFIXES, Columns, Stream, local_folder, open_stream
from cascaded_diffusion.data.workers import WorkerPool
from cascaded_diffusion.data.workspace import finished_manifest, free_space_check, workspace
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.telling import tell

__all__ = ["MAX_RESOLUTION", "Note", "Progress", "prepare"]

Result = TypeVar("Result")
Progress = Callable[[str, int, int | None], None]  # what is being done, images done, images in all if that is known
Note = Callable[[str], None]  # one line a person should read


def _no_progress(what: str, done: int, total: int | None) -> None:
    pass


def prepare(
    source: str | Path,
    out: str | Path,
    *,
    resolutions: Sequence[int],
    val: float | None = None,
    limit: int | None = None,
    skip_bad: bool = False,
    allow_upscale: bool = False,
    compress: bool = False,
    columns: Columns | None = None,
    workers: int | None = None,
    progress: Progress = _no_progress,
    note: Note = tell,
) -> Manifest:
    """Write the images of ``source`` to the new folder ``out`` at every resolution; see ``docs`` for the layout.

    Args:
        source: ``fashion-mnist``, a folder of class folders, a folder of images, a ``file.npz``, ``hf:NAME[:SPLIT]``
            for a data set of the Hugging Face hub or a folder or file that ``datasets`` can read, or ``wds:PATTERN``
            for webdataset shards.
        out: a folder that does not exist yet or is empty; it appears complete or not at all. If it already holds the
            result of the same request nothing is done; anything else in it is an error.
        resolutions: distinct sides in pixels, each in [1, 4096].
        val: fraction in (0, 1) of the images for the val split, chosen by SHA-256 of their content, so that equal
            images stay together; not for sources that bring their own splits.
        limit: at most so many images of each split, the first of a class-balanced order (the first image of every
            class, then the second of every class, ...). An unreadable one is replaced by the next.
        skip_bad: leave unreadable files out and list them in the manifest, instead of stopping at the first.
        allow_upscale: enlarge crops that are smaller than a resolution (bicubic), instead of stopping.
        compress: store images above 128 pixels compressed, without loss (``images_<R>.pack``).
        columns: of an ``hf:`` data set, where they cannot be found out.
        workers: processes; ``None`` is one per processor, 0 or 1 works in this process.
        progress: called with (what, done, total) as images are done.
        note: called with each line a person should read.

    Returns:
        The manifest, as written to ``out/manifest.json``.

    Raises:
        UserError: for anything wrong with the arguments, the source or ``out``; it names the file.
    """
    source, out = str(source), Path(out)
    options = Options.checked(resolutions, val, limit, skip_bad, allow_upscale, compress)
    is_stream = source.startswith(PREFIXES)
    if columns not in (None, Columns()) and not source.startswith("hf:"):
        raise UserError(f"{source}: has no columns and subsets to choose; those are for hf: data sets")
    folder = None if source in PACKAGED else local_folder(source) if is_stream else Path(source)
    with workspace(out, folder) as (work, scratch), WorkerPool(workers) as pool:
        found = (
            open_stream(source, columns or Columns(), scratch, note)
            if is_stream
            else open_source(source, scratch, note)
        )
        _check_request(found, options)
        done = finished_manifest(out, found.name, options.request(found.fingerprint), options)
        if done is not None:
            note(f"{out}: already prepared, nothing to do")
            return done
        if isinstance(found, Stream):
            from cascaded_diffusion.data.stream_run import StreamRun

            return StreamRun(found, options, work, pool, progress, note).run()
        return _Run(found, options, work, pool, progress, note).run()


def _check_request(source: Source | Stream, options: Options) -> None:
    if options.val is not None and source.split_rule is not None:
        raise UserError(f"val: {options.val}; not for {source.name}, whose splits are {source.split_rule}")
    if isinstance(source, Source) and source.resolutions is not None:
        for size in options.resolutions:
            if size not in source.resolutions:
                allowed = ", ".join(map(str, source.resolutions))
                raise UserError(f"resolutions: {size}; {source.name} allows {allowed} ({source.crop_rule})")


@dataclass
class _Run:
    """One preparation from the listed source to the finished folder."""

    source: Source
    options: Options
    work: Path
    pool: WorkerPool
    progress: Progress
    note: Note
    outcome: Outcome = field(default_factory=Outcome)

    def run(self) -> Manifest:
        items, facts = self._scan()
        self.outcome.channels = 1 if all(fact.grey for fact in facts) else 3
        splits, rule = self._divide(items, facts)
        self._check_space(splits)
        written = {name: self._write_split(name, members) for name, members in splits.items() if members}
        manifest = finish(
            self.work,
            self.options,
            self.outcome,
            source=self.source.name,
            fingerprint=self.source.fingerprint,
            class_names=self.source.class_names,
            counts=written,
            crop_rule=self.source.crop_rule,
            split_rule=rule,
            pool=self.pool,
            progress=self.progress,
        )
        self._report_ignored()
        return manifest

    # -- looking ------------------------------------------------------------------------------------------------------

    def _scan(self) -> tuple[list[Item], list[Facts]]:
        """Header, size and, if needed, content hash of every image; unreadable ones are dropped or stop the run."""
        items = self.source.items
        if self.source.facts is not None and self.options.val is None:
            self.options.check_size(self.source.reader.name(items[0].key), self.source.facts)
            return items, [self.source.facts] * len(items)
        look = partial(self.source.reader.look, with_digest=self.options.val is not None)
        kept: list[Item] = []
        facts: list[Facts] = []
        done = 0
        self.progress("checking", 0, len(items))
        for chunk, results in self._in_chunks(items, look):
            for item, result in zip(chunk, results, strict=True):
                if isinstance(result, Bad):
                    self._bad(item, result)
                else:
                    self.options.check_size(self.source.reader.name(item.key), result)
                    kept.append(item)
                    facts.append(result)
            done += len(chunk)
            self.progress("checking", done, len(items))
        if not kept:
            raise UserError(f"{self.source.name}: no readable image")
        return kept, facts

    def _bad(self, item: Item, bad: Bad) -> None:
        name = self.source.reader.name(item.key)
        if not self.options.skip_bad:
            remedy = "mend or remove it, or leave such files out with --skip-bad"
            raise UserError(f"{name}: unreadable image ({bad.reason}); {remedy}")
        self.outcome.skipped.append(f"{item.key}: {bad.reason}".encode(errors="backslashreplace").decode())
        self.note(f"skipped {name}: {bad.reason}")

    # -- dividing -----------------------------------------------------------------------------------------------------

    def _divide(self, items: list[Item], facts: list[Facts]) -> tuple[dict[str, list[Item]], str]:
        if self.source.split_rule is not None:
            rule = self.source.split_rule
            splits = {name: [item for item in items if item.split == name] for name in ("train", "val")}
        elif self.options.val is not None:
            rule = self.options.hash_rule
            splits = by_content_hash(zip(items, facts, strict=True), self.options.val)
            if not splits["val"]:
                self.note(f"val: the fraction {self.options.val} of {len(items)} images is none; there is no val split")
        else:
            rule = "all images are train"
            splits = {"train": items, "val": []}
        if not splits["train"]:
            raise UserError(f"{self.source.name}: no training image left of {len(items)} (val: {self.options.val})")
        if self.options.limit is not None:
            splits = {name: class_balanced(members) for name, members in splits.items()}
        return splits, rule

    def _check_space(self, splits: dict[str, list[Item]]) -> None:
        images = sum(min(len(members), self.options.limit or len(members)) for members in splits.values())
        free_space_check(self.work, images * self.outcome.channels * self.options.pixels_an_image)

    # -- writing ------------------------------------------------------------------------------------------------------

    def _write_split(self, name: str, candidates: list[Item]) -> int:
        """Fill one split's arrays; an unreadable image's row goes to the next candidate, or is dropped at the end."""
        total = min(len(candidates), self.options.limit or len(candidates))
        (self.work / name).mkdir()
        with _SplitArrays(self.work, name, total, self.outcome.channels, self.options.resolutions) as arrays:
            rows, used = list(range(total)), 0
            while rows and used < len(candidates):
                batch = candidates[used : used + len(rows)]
                used += len(batch)
                rows = self._fill(arrays, rows[: len(batch)], batch) + rows[len(batch) :]
            arrays.close(missing=rows)
        if len(rows) == total:
            shutil.rmtree(self.work / name)
        return total - len(rows)

    def _fill(self, arrays: _SplitArrays, rows: list[int], items: list[Item]) -> list[int]:
        """Write ``items`` to ``rows`` in order; returns the rows that stay empty."""
        convert = partial(convert_all, self.source.reader, self.outcome.channels, tuple(self.options.resolutions))
        step = f"writing {arrays.name}"
        failed, done = [], 0
        self.progress(step, arrays.total - len(items), arrays.total)
        for chunk, results in self._in_chunks(items, convert):
            for item, result in zip(chunk, results, strict=True):
                if isinstance(result, Bad):
                    self._bad(item, result)
                    failed.append(rows[done])
                else:
                    arrays.write(rows[done], item.label, result)
                    self.outcome.upscaled += result.upscaled
                done += 1
            self.progress(step, arrays.total - len(items) + done, arrays.total)
        return failed

    def _in_chunks(
        self, items: list[Item], function: Callable[[list[Key]], list[Result]]
    ) -> Iterator[tuple[list[Item], list[Result]]]:
        size = self.source.reader.chunk
        chunks = [items[i : i + size] for i in range(0, len(items), size)]
        results = self.pool.map(function, [[item.key for item in chunk] for chunk in chunks])
        yield from zip(chunks, results, strict=True)

    # -- telling ------------------------------------------------------------------------------------------------------

    def _report_ignored(self) -> None:
        ignored = self.source.ignored
        if ignored:
            self.note(f"ignored as no images: {len(ignored):,} files, such as {ignored[0]}")


class _SplitArrays:
    """The array files of one split while they are written."""

    def __init__(self, work: Path, name: str, total: int, channels: int, resolutions: Sequence[int]) -> None:
        self.name, self.total, self._work = name, total, work
        self._labels = np.full(total, -1, np.int64)
        self._images = {
            size: RowWriter(work / images_file(name, size), (total, size, size, channels)) for size in resolutions
        }

    def __enter__(self) -> _SplitArrays:
        return self

    def __exit__(self, *exc: object) -> None:
        for writer in self._images.values():
            writer.abandon()

    def write(self, row: int, label: int, converted: Converted) -> None:
        self._labels[row] = label
        for size, image in converted.images.items():
            self._images[size].write(row, image)

    def close(self, missing: Sequence[int]) -> None:
        for writer in self._images.values():
            writer.close(missing)
        save_array(self._work / labels_file(self.name), np.delete(self._labels, np.array(missing, np.int64)))
