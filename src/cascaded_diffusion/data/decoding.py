"""Decoding one image file to 8-bit grey or red-green-blue, whatever form it is stored in."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from cascaded_diffusion.data.pixels import Pixels
from cascaded_diffusion.data.sources import Bad, Facts
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.files import sha256_of
from cascaded_diffusion.reading.plain import open_file

__all__ = ["decode", "decode_content", "image_suffixes", "look"]

_PIXELS_AT_ONCE = 2**20
_SMALL_ENOUGH = 2**24
"""Pixels that are decoded whatever the file's size: not a second's work."""
_PIXELS_A_BYTE = 10_000
"""A larger image with more than this is a header's claim: one bit a pixel, deflated, allows 8,000."""
Result = TypeVar("Result")

# Formats that Pillow hands to other programs or only knows by name; EPS would run Ghostscript on a stranger's file.
_FOREIGN_FORMATS = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
# Files that hold an image for a person, though none can be read here: better an error than a silently smaller data set.
_CAMERA_RAW = (".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".rw2")
_DRAWINGS = (".emf", ".eps", ".ps", ".svg", ".wmf")
_UNREADABLE_SUFFIXES = frozenset([*_CAMERA_RAW, *_DRAWINGS, ".heic", ".heif", ".jxl"])


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(sorted(set(Image.OPEN) - _FOREIGN_FORMATS))


@cache
def image_suffixes() -> frozenset[str]:
    """Lower-case endings of files that count as images, with the dot."""
    allowed = set(_formats())
    readable = {suffix for suffix, kind in Image.registered_extensions().items() if kind in allowed}
    return frozenset(readable | _UNREADABLE_SUFFIXES)


def look(path: Path, with_digest: bool) -> Facts | Bad:
    """Size and greyness from the header alone; with ``with_digest`` also the SHA-256 of the file's bytes."""

    def facts(image: Image.Image) -> Facts:
        digest = bytes.fromhex(sha256_of(path)) if with_digest else None
        return Facts(image.height, image.width, _is_grey(image), digest)

    return _with_file(path, facts)


def decode(path: Path, channels: int) -> Pixels | Bad:
    """The image as uint8 (H, W, channels), 1 grey or 3 red-green-blue; of several frames, the first.

    The rotation that EXIF asks for is applied; transparency is laid on white; 16-bit grey is divided by 257 and
    rounded.
    """

    def pixels(image: Image.Image) -> Pixels:
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return _to_array(image, channels)

    return _with_file(path, pixels)


def decode_content(content: bytes, with_digest: bool) -> tuple[Facts, Pixels] | Bad:
    """What :func:`look` and :func:`decode` tell of a file with this content; one channel if it is grey, else three."""

    def both(image: Image.Image) -> tuple[Facts, Pixels]:
        digest = hashlib.sha256(content).digest() if with_digest else None
        facts = Facts(image.height, image.width, _is_grey(image), digest)
        image.load()
        return facts, _to_array(ImageOps.exif_transpose(image), 1 if facts.grey else 3)

    return _with_image(lambda: io.BytesIO(content), both)


class _Modest(io.BufferedIOBase):
    """A file of which nobody reads more than it holds.

    Python takes memory for as many bytes as it is asked for, and decoders ask for what a header claims: 4 GB of a file
    that has 600 bytes.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.size = file.seek(0, io.SEEK_END)
        file.seek(0)

    def read(self, size: int | None = -1) -> bytes:
        left = max(self.size - self._file.tell(), 0)
        return self._file.read(left if size is None or size < 0 else min(size, left))

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


def _with_file(path: Path, use: Callable[[Image.Image], Result]) -> Result | Bad:
    if path.suffix.lower() in _UNREADABLE_SUFFIXES:
        return Bad(f"{path.suffix} files cannot be read; convert it to PNG or JPEG")
    found = _with_image(lambda: open_file(path), use)
    # What opening a file refuses names it; so does whoever tells of a bad image.
    return Bad(found.reason.removeprefix(f"{path}: ")) if isinstance(found, Bad) else found


def _with_image(opened: Callable[[], IO[bytes]], use: Callable[[Image.Image], Result]) -> Result | Bad:
    try:
        # Pillow warns above 89 million pixels (real cameras make such files) and refuses above twice that.
        with warnings.catch_warnings(), opened() as file:
            warnings.simplefilter("ignore")
            if not file.read(1):
                return Bad("the file is empty")
            file.seek(0)
            modest = _Modest(file)
            with Image.open(cast("IO[bytes]", modest), formats=_formats()) as image:
                pixels = image.width * image.height
                if pixels > max(_SMALL_ENOUGH, _PIXELS_A_BYTE * modest.size):
                    return Bad(f"a decompression bomb: {pixels:,} pixels in {modest.size:,} bytes")
                return use(image)
    except MemoryError:
        raise
    except UserError as error:
        return Bad(str(error))
    except UnidentifiedImageError:
        return Bad("in no image format that can be read")
    except Exception as error:  # noqa: BLE001 - on damaged bytes decoders raise nearly anything
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return Bad(" ".join(reason.split()) or type(error).__name__)


def _is_grey(image: Image.Image) -> bool:
    if image.mode == "P" and image.palette is not None:
        mode, _, order = (image.palette.rawmode or image.palette.mode).partition(";")
        entry = len(mode)  # bytes of one palette entry; some have a filler
        flat = np.frombuffer(bytes(image.palette.palette), np.uint8)
        flat = flat[: len(flat) // entry * entry]
        # "RGB;L": all of red, then all of green, then all of blue.
        colours = (flat.reshape(entry, -1).T if order == "L" else flat.reshape(-1, entry))[:, :3]
        return bool((colours == colours[:, :1]).all())
    return image.mode in ("1", "L", "LA", "La", "I", "F") or image.mode.startswith("I;16")


def _to_array(image: Image.Image, channels: int) -> Pixels:
    if image.mode == "F":
        raise ValueError("floating-point grey values, whose range is unknown; save it with 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        grey = _by_rows(_from_16_bits, np.asarray(image))[..., None]
        return np.repeat(grey, channels, axis=-1)
    if image.has_transparency_data:
        rgba = image if image.mode == "RGBA" else image.convert("RGBA")
        image = Image.fromarray(_by_rows(_on_white, np.asarray(rgba)))
    array = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return array.reshape(*array.shape[:2], channels)


def _by_rows(change: Callable[[npt.NDArray[Any]], Pixels], pixels: npt.NDArray[Any]) -> Pixels:
    """``change`` of an image, a few rows at a time: its wide intermediate numbers are never there for the whole."""
    at_once = max(1, _PIXELS_AT_ONCE // max(pixels.shape[1], 1))
    return np.concatenate([change(pixels[i : i + at_once]) for i in range(0, len(pixels), at_once)])


def _from_16_bits(values: npt.NDArray[Any]) -> Pixels:
    """0..65535 to 0..255: 257 is 65535 / 255, so black and white stay black and white."""
    values = values.astype(np.int64)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ValueError(f"grey values from {low} to {high}; at most 16 bits (0 to 65535) are read")
    return ((values + 128) // 257).astype(np.uint8)


def _on_white(rgba: Pixels) -> Pixels:
    """Composite (H, W, 4) with straight alpha on white, rounded half up."""
    colour, alpha = rgba[..., :3].astype(np.int32), rgba[..., 3:].astype(np.int32)
    return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
