"""A person's own small image: looked at before it is decoded, and made to fit the stage that enlarges it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cascaded_diffusion.data.decoding import decode, look
from cascaded_diffusion.data.pixels import Pixels, area_resize, centre_square
from cascaded_diffusion.data.sources import Bad
from cascaded_diffusion.errors import UserError

__all__ = ["LARGEST_UPLOAD", "Upload", "read_upload"]

LARGEST_UPLOAD = 10 * 2**20
"""Bytes of an uploaded file."""
_MOST_PIXELS = 50_000_000
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


class Upload(NamedTuple):
    """The image that a stage enlarges, uint8 (1, r, r, C), and a name for its file on a command line."""

    image: Pixels
    file: str


def read_upload(sent: Any, uploads: Path, side: int, channels: int) -> Upload:
    """Read the file that the page's upload field names: its centre square, area-averaged to ``side`` pixels.

    Args:
        sent: what the browser sent: a mapping with the file's ``path`` on this machine and its ``orig_name``.
        uploads: the only folder from which files are read.
        side: of the images that the stage enlarges.
        channels: 1 grey, 3 red-green-blue.

    Raises:
        UserError: no file, one that was not uploaded, too large, no image, or smaller than ``side``.
    """
    if sent is None:
        raise UserError("image: none given; choose a file first")
    path = _uploaded(sent, uploads)
    name = _plain_name(sent.get("orig_name"), path)
    size = path.stat().st_size
    if size > LARGEST_UPLOAD:
        raise UserError(f"{name}: {size / 2**20:.0f} MB; allowed: files up to {LARGEST_UPLOAD // 2**20} MB")
    if path.suffix.lower() not in _SUFFIXES:
        raise UserError(f"{name}: not an image that can be read here; allowed: {', '.join(_SUFFIXES)}")
    return Upload(_read(path, name, side, channels), name)


def _uploaded(sent: Any, uploads: Path) -> Path:
    place = sent.get("path") if isinstance(sent, dict) else None
    if not isinstance(place, str) or "\0" in place:
        raise UserError("image: the browser sent no uploaded file")
    path = Path(place).resolve()
    if not path.is_relative_to(uploads.resolve()) or not path.is_file():
        raise UserError("image: that file was not uploaded here; upload it again")
    return path


def _plain_name(given: Any, path: Path) -> str:
    """The file's own name without folders and control characters, short."""
    text = given if isinstance(given, str) else path.name
    name = re.sub(r"[\x00-\x1f\x7f]+", "", re.split(r"[/\\]", text)[-1]).strip()
    return name[-100:] or path.name


def _read(path: Path, name: str, side: int, channels: int) -> Pixels:
    facts = look(path, with_digest=False)
    if isinstance(facts, Bad):
        raise UserError(f"{name}: {facts.reason}")
    if facts.height * facts.width > _MOST_PIXELS:
        raise UserError(f"{name}: {facts.width}x{facts.height} pixels; allowed: at most {_MOST_PIXELS:,}")
    pixels = decode(path, channels)
    if isinstance(pixels, Bad):
        raise UserError(f"{name}: {pixels.reason}")
    square = centre_square(pixels[None])
    if square.shape[1] < side:
        raise UserError(f"{name}: {square.shape[1]} pixels a side; at least {side} are needed to start from")
    image: Pixels = np.ascontiguousarray(area_resize(square, side))
    return image
