"""Pictures that are shown as they are."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from cascaded_diffusion.errors import UserError
from cascaded_diffusion.reading.pictures import check_png

Frugal = Callable[[Callable[[], object]], str]


def png(width: int = 4, height: int = 4, form: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("L", (4, 4)).save(stream, form)
    content = bytearray(stream.getvalue())
    if form == "PNG":
        content[16:24] = struct.pack(">II", width, height)
        content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


def test_a_whole_one_passes() -> None:
    check_png(png(), Path("x.png"))
    check_png(png(10_000, 10_000), Path("x.png"))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"text",
        png()[:-20],
        png(form="GIF"),
        png(2**31 - 1, 2**31 - 1),
        png(40_000, 1),
        png().replace(b"IDAT", b"IDAX"),
    ],
)
def test_others_are_refused(frugal: Frugal, content: bytes) -> None:
    assert frugal(lambda: check_png(content, Path("x.png"))).startswith("UserError: x.png: ")


def test_the_reason_is_told() -> None:
    with pytest.raises(UserError, match=r"x.png: a picture of 40000x1 pixels; at most 32768"):
        check_png(png(40_000, 1), Path("x.png"))
