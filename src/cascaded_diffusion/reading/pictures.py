"""Pictures that are shown as they are, not decoded."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

from PIL import Image

from cascaded_diffusion.errors import UserError

__all__ = ["check_png"]

_LARGEST_SIDE = 32_768


def check_png(content: bytes, path: Path) -> None:
    """``UserError`` naming ``path`` if ``content`` is no whole PNG file, or one so large that no browser shows it.

    Its check sums are compared; its pixels are not decoded.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the side is limited here
            with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
                width, height = picture.size
                picture.verify()
    except (OSError, SyntaxError, ValueError, OverflowError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: not a readable PNG picture ({error})") from None
    if max(width, height) > _LARGEST_SIDE:
        raise UserError(f"{path}: a picture of {width}x{height} pixels; at most {_LARGEST_SIDE} a side are shown")
