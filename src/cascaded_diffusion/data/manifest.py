"""What ``manifest.json`` of prepared data says, as a checked class."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, ValidationError, model_serializer, model_validator

from cascaded_diffusion.config import Name, StrictModel, Words, explain
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.files import read_json

__all__ = [
    "COMPRESSED_VERSION",
    "FORMAT_VERSION",
    "MAX_RESOLUTION",
    "Counts",
    "Manifest",
    "Request",
    "images_file",
    "labels_file",
]

FORMAT_VERSION = 1
COMPRESSED_VERSION = 2
"""Of folders with compressed images, so that a reader that knows none says so at once."""
MAX_RESOLUTION = 4096
MOST_IMAGES = 2**28  # 2 GB of labels, which are held in memory
_MOST_BYTES = 64 * 2**20  # it names every file that was skipped
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def images_file(split: str, resolution: int) -> str:
    """Path of an image array inside a folder of prepared data."""
    return f"{split}/images_{resolution}.npy"


def packed_file(split: str, resolution: int) -> str:
    """Path of compressed images inside a folder of prepared data."""
    return f"{split}/images_{resolution}.pack"


def packed_offsets_file(split: str, resolution: int) -> str:
    """Path of where each of them begins."""
    return f"{split}/images_{resolution}.offsets.npy"


def labels_file(split: str) -> str:
    """Path of a label array inside a folder of prepared data."""
    return f"{split}/labels.npy"


def split_files(split: str, resolutions: list[int], compressed: list[int]) -> list[str]:
    """Paths of all files of a split."""
    paths = []
    for size in resolutions:
        packed = [packed_file(split, size), packed_offsets_file(split, size)]
        paths += packed if size in compressed else [images_file(split, size)]
    return [*paths, labels_file(split)]


class Counts(StrictModel):
    """Images in each split."""

    train: int = Field(ge=1, le=MOST_IMAGES, description="Training images.")
    val: int = Field(ge=0, le=MOST_IMAGES, description="Validation images; with 0 there is no val folder.")


class Request(StrictModel):
    """What was asked for, beside the resolutions: the same request on the same source need not run again."""

    source_fingerprint: Sha256 = Field(
        description="SHA-256 over what the source holds: names and sizes of files, or an archive's check sums."
    )
    val: float | None = Field(gt=0, lt=1, description="Fraction of images meant for val, by content hash.")
    limit: int | None = Field(ge=1, lt=2**63, description="Most images taken of each split.")
    skip_bad: bool = Field(description="Whether unreadable files were left out instead of stopping the run.")
    allow_upscale: bool = Field(description="Whether crops smaller than a resolution were enlarged to it.")


class Manifest(StrictModel):
    """Description of a folder of prepared data; written last, so a folder that has one is complete."""

    format_version: Literal[1, 2] = Field(description="Version of this folder layout: 2 has compressed images, else 1.")
    source: Words = Field(description="Name of what the images came from: a data set, or the last part of a path.")
    channels: Literal[1, 3] = Field(description="Channels of every image: 1 grey, 3 red-green-blue.")
    class_names: list[Annotated[str, Field(max_length=1000)]] | None = Field(
        min_length=1, max_length=1_000_000, description="Name of class i at place i; null without classes."
    )
    counts: Counts = Field(description="Images in each split.")
    resolutions: list[Annotated[int, Field(ge=1, le=MAX_RESOLUTION)]] = Field(
        min_length=1, max_length=64, description="Sides in pixels, ascending."
    )
    compressed: list[Annotated[int, Field(ge=1, le=MAX_RESOLUTION)]] = Field(
        default=[], max_length=64, description="Of these, the ones at which images are compressed, without loss."
    )
    crop: Words = Field(description="How the square was cut from the source image, in words.")
    resize: Words = Field(description="How the square was brought to each resolution, in words.")
    split: Words = Field(description="How images were divided into train and val, in words.")
    upscaled: int = Field(ge=0, le=10**12, description="Images enlarged to at least one of the resolutions.")
    skipped: int = Field(ge=0, le=10**12, description="Unreadable files left out.")
    skipped_files: list[Words] = Field(
        max_length=10_000_000, description="Their names inside the source, each with the reason."
    )
    files: dict[Name, Sha256] = Field(max_length=10_000, description="SHA-256 of every array file.")
    request: Request = Field(description="What was asked for.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.resolutions != sorted(set(self.resolutions)):
            raise ValueError("resolutions must be distinct and ascending")
        if self.compressed != sorted(set(self.compressed) & set(self.resolutions)):
            raise ValueError("compressed must be distinct and ascending, of the resolutions")
        if (self.format_version == COMPRESSED_VERSION) != bool(self.compressed):
            raise ValueError("format_version must be 2 with compressed images and 1 without")
        if self.skipped != len(self.skipped_files):
            raise ValueError("skipped must be the length of skipped_files")
        if set(self.files) != set(self.expected_files()):
            raise ValueError(f"files must list exactly {', '.join(self.expected_files())}")
        return self

    def splits(self) -> list[str]:
        """Names of the splits that hold images."""
        return ["train", "val"] if self.counts.val else ["train"]

    def expected_files(self) -> list[str]:
        """Paths of all array files that belong to this manifest."""
        return [path for split in self.splits() for path in split_files(split, self.resolutions, self.compressed)]

    def images_file(self, split: str, resolution: int) -> str:
        """Path of the file with a split's images."""
        return (packed_file if resolution in self.compressed else images_file)(split, resolution)

    @model_serializer(mode="wrap")
    def _without_what_is_not_used(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        if not self.compressed:
            del values["compressed"]  # which readers of version 1 do not know
        return values

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read ``folder/manifest.json``; a missing, malformed or foreign one is a ``UserError`` naming it."""
        path = folder / "manifest.json"
        value = read_json(path, limit=_MOST_BYTES)
        version = value.get("format_version") if isinstance(value, dict) else None
        if version not in (FORMAT_VERSION, COMPRESSED_VERSION):
            found = f"format_version {version!r}, not {FORMAT_VERSION} or {COMPRESSED_VERSION}"
            raise UserError(f"{path}: not a manifest of prepared data that can be read ({found})")
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            raise UserError(f"{path}: {explain(error)}") from None
