"""What ``manifest.json`` of prepared data says, as a checked class."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from cascaded_diffusion.config import Name, StrictModel, Words, explain
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.files import read_json

__all__ = ["FORMAT_VERSION", "MAX_RESOLUTION", "Counts", "Manifest", "Request", "images_file", "labels_file"]

FORMAT_VERSION = 1
MAX_RESOLUTION = 4096
MOST_IMAGES = 2**28  # 2 GB of labels, which are held in memory
_MOST_BYTES = 64 * 2**20  # it names every file that was skipped
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def images_file(split: str, resolution: int) -> str:
    """Path of an image array inside a folder of prepared data."""
    return f"{split}/images_{resolution}.npy"


def labels_file(split: str) -> str:
    """Path of a label array inside a folder of prepared data."""
    return f"{split}/labels.npy"


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

    format_version: Literal[1] = Field(description="Version of this folder layout.")
    source: Words = Field(description="Name of what the images came from: a data set, or the last part of a path.")
    channels: Literal[1, 3] = Field(description="Channels of every image: 1 grey, 3 red-green-blue.")
    class_names: list[Annotated[str, Field(max_length=1000)]] | None = Field(
        min_length=1, max_length=1_000_000, description="Name of class i at place i; null without classes."
    )
    counts: Counts = Field(description="Images in each split.")
    resolutions: list[Annotated[int, Field(ge=1, le=MAX_RESOLUTION)]] = Field(
        min_length=1, max_length=64, description="Sides in pixels, ascending."
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
        return [
            path
            for split in self.splits()
            for path in [*(images_file(split, size) for size in self.resolutions), labels_file(split)]
        ]

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read ``folder/manifest.json``; a missing, malformed or foreign one is a ``UserError`` naming it."""
        path = folder / "manifest.json"
        value = read_json(path, limit=_MOST_BYTES)
        version = value.get("format_version") if isinstance(value, dict) else None
        if version != FORMAT_VERSION:
            found = f"format_version {version!r}, not {FORMAT_VERSION}"
            raise UserError(f"{path}: not a manifest of prepared data that can be read ({found})")
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            raise UserError(f"{path}: {explain(error)}") from None
