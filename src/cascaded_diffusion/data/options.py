"""What a preparation was asked for, and the manifest that it ends with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from cascaded_diffusion.data.manifest import (
    MAX_RESOLUTION,
    Counts,
    Manifest,
    Request,
    images_file,
    packed_file,
    split_files,
)
from cascaded_diffusion.data.packed import pack_array
from cascaded_diffusion.data.pixels import RESIZE_RULE
from cascaded_diffusion.data.sources import Facts
from cascaded_diffusion.data.workers import WorkerPool
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.files import sha256_of, write_json

__all__ = ["MAX_RESOLUTION", "Options", "Outcome", "finish"]


LARGEST_PLAIN = 128
"""Pixels up to which images are never compressed: they are small, and reading them must cost nothing."""


@dataclass(frozen=True)
class Options:
    """What was asked for, beside the source: see :func:`cascaded_diffusion.data.prepare.prepare`."""

    resolutions: list[int]
    val: float | None
    limit: int | None
    skip_bad: bool
    allow_upscale: bool
    compressed: list[int] = field(default_factory=list)
    """Resolutions at which images are stored compressed."""

    @classmethod
    def checked(
        cls,
        resolutions: Sequence[int],
        val: float | None,
        limit: int | None,
        skip_bad: bool,
        allow_upscale: bool,
        compress: bool = False,
    ) -> Options:
        """The options, with ascending resolutions; ``UserError`` for numbers that are not allowed."""
        sizes = list(resolutions)
        allowed = f"give distinct whole numbers from 1 to {MAX_RESOLUTION}"
        if not sizes:
            raise UserError(f"resolutions: none given; {allowed}")
        for size in sizes:
            if type(size) is not int or not 1 <= size <= MAX_RESOLUTION:
                raise UserError(f"resolutions: {size!r}; {allowed}")
            if sizes.count(size) > 1:
                raise UserError(f"resolutions: {size} is given twice; {allowed}")
        if val is not None and not 0 < val < 1:
            raise UserError(f"val: {val}; give a fraction above 0 and below 1")
        if limit is not None and limit < 1:
            raise UserError(f"limit: {limit}; give 1 or more")
        compressed = [size for size in sorted(sizes) if compress and size > LARGEST_PLAIN]
        if compress and not compressed:
            raise UserError(
                f"compress: {max(sizes)} is the largest resolution; only images above {LARGEST_PLAIN} are compressed"
            )
        return cls(sorted(sizes), val, limit, skip_bad, allow_upscale, compressed)

    def request(self, fingerprint: str) -> Request:
        """As the manifest records it, of a source with this fingerprint."""
        return Request(
            source_fingerprint=fingerprint,
            val=self.val,
            limit=self.limit,
            skip_bad=self.skip_bad,
            allow_upscale=self.allow_upscale,
        )

    @property
    def pixels_an_image(self) -> int:
        """Of all resolutions, as they need room on the disk at most: one is compressed beside its plain form."""
        return sum(size**2 for size in self.resolutions) + max(self.compressed, default=0) ** 2

    @property
    def hash_rule(self) -> str:
        """How ``val`` divides the images, in words."""
        return f"val if the content's SHA-256, its first 8 bytes over 2^64, is below {self.val}"

    def check_size(self, name: str, facts: Facts) -> None:
        """``UserError`` if the image called ``name`` is too small and must not be enlarged."""
        largest = self.resolutions[-1]
        if min(facts.height, facts.width) < largest and not self.allow_upscale:
            raise UserError(
                f"{name}: {facts.width}x{facts.height} pixels, too small for resolution {largest}; leave it out, ask "
                "for less, or allow enlarging with --allow-upscale"
            )

    def array_files(self, split: str) -> list[str]:
        """Paths of a split's arrays."""
        return split_files(split, self.resolutions, self.compressed)


@dataclass
class Outcome:
    """What became of the images, as the manifest tells it."""

    channels: int = 3
    upscaled: int = 0
    skipped: list[str] = field(default_factory=list)


def _told(progress: Callable[[str, int, int | None], None], step: str, total: int, done: int) -> None:
    progress(step, done, total)


def finish(
    work: Path,
    options: Options,
    outcome: Outcome,
    *,
    source: str,
    fingerprint: str,
    class_names: list[str] | None,
    counts: dict[str, int],
    crop_rule: str,
    split_rule: str,
    pool: WorkerPool,
    progress: Callable[[str, int, int | None], None],
) -> Manifest:
    """Compress what is to be, and write ``work/manifest.json``, which makes the folder complete.

    Raises:
        UserError: there is no training image.
    """
    if not counts.get("train"):
        raise UserError(f"{source}: no readable training image")
    for split, count in counts.items():
        for size in options.compressed if count else ():
            shape = (count, size, size, outcome.channels)
            told = partial(_told, progress, f"compressing {split} at {size}", count)
            pack_array(work / images_file(split, size), work / packed_file(split, size), shape, pool, told)
    enlarged = "; smaller crops enlarged by bicubic interpolation" if outcome.upscaled else ""
    arrays = [path for split, count in counts.items() if count for path in options.array_files(split)]
    manifest = Manifest(
        format_version=2 if options.compressed else 1,
        source=source,
        channels=1 if outcome.channels == 1 else 3,
        class_names=class_names,
        counts=Counts(train=counts["train"], val=counts.get("val", 0)),
        resolutions=options.resolutions,
        compressed=options.compressed,
        crop=crop_rule,
        resize=RESIZE_RULE + enlarged,
        split=split_rule,
        upscaled=outcome.upscaled,
        skipped=len(outcome.skipped),
        skipped_files=outcome.skipped,
        files={path: sha256_of(work / path) for path in arrays},
        request=options.request(fingerprint),
    )
    write_json(work / "manifest.json", manifest.model_dump(mode="json"))
    return manifest
