"""Lossless WebP pictures of known size: the header is compared before memory is taken for the pixels.

The format is that of RFC 9649, section 2.6: a RIFF file of one chunk ``VP8L``.
"""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image, features

from cascaded_diffusion.errors import UserError

__all__ = ["decode_webp", "encode_webp", "need_webp"]

_HEADER = 25
_SIGNATURE = 0x2F


def need_webp() -> None:
    """``UserError`` if this Pillow was built without WebP."""
    if not features.check("webp"):
        raise UserError("compressed data are WebP pictures, which this installation of Pillow was built without")


def encode_webp(image: npt.NDArray[np.uint8]) -> bytes:
    """An image (R, R, 1) or (R, R, 3) without loss of a bit."""
    buffer = io.BytesIO()
    picture = Image.fromarray(np.ascontiguousarray(image[..., 0] if image.shape[-1] == 1 else image))
    # Method 2 of 6: the higher ones gain few per cent and take many times as long.
    picture.convert("RGB").save(buffer, "WEBP", lossless=True, method=2, quality=50, exact=True)
    return buffer.getvalue()


def decode_webp(content: bytes, side: int, channels: int) -> npt.NDArray[np.uint8]:
    """The image (side, side, channels) that :func:`encode_webp` was given.

    Raises:
        ValueError: it is none of this size, or damaged.
    """
    head = content[:_HEADER]
    bits = int.from_bytes(head[21:25], "little")
    whole = len(head) == _HEADER and int.from_bytes(head[4:8], "little") + 8 == len(content)
    if not whole or head[:4] != b"RIFF" or head[8:16] != b"WEBPVP8L" or head[20] != _SIGNATURE:
        raise ValueError("not a whole lossless WebP picture")
    width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if (width, height) != (side, side):
        raise ValueError(f"{width}x{height} pixels, not {side}x{side}")
    try:
        with Image.open(io.BytesIO(content), formats=["WEBP"]) as picture:
            pixels = np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"damaged ({error})") from None
    return pixels if channels == 3 else pixels[..., :1]
