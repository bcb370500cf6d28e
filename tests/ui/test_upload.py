"""A person's own image."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cascaded_diffusion.data.given import read_given_images
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.ui.upload import LARGEST_UPLOAD, read_upload


def picture(path: Path, width: int = 40, height: int = 30) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def huge_png(path: Path, side: int) -> Path:
    """A file of a few bytes whose header promises ``side`` x ``side`` pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b""))
    return path


def test_it_becomes_what_the_command_line_would_read(tmp_path: Path) -> None:
    path = picture(tmp_path / "mine.png")
    for channels in (1, 3):
        upload = read_upload({"path": str(path), "orig_name": "my photo.png"}, tmp_path, 8, channels)
        assert upload.file == "my photo.png"
        assert np.array_equal(upload.image, read_given_images(path, 8, channels).images)


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("a.png", b"just text", "in no image format"),
        ("a.png", b"", "the file is empty"),
        ("a.txt", b"just text", "not an image that can be read here; allowed: .png"),
        ("a.svg", b"<svg/>", "not an image that can be read here"),
        ("a.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n", "not an image that can be read here"),
        ("a.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "in no image format"),
        ("a.png", b"\0" * (LARGEST_UPLOAD + 1), "10 MB; allowed: files up to 10 MB"),
    ],
)
def test_what_is_no_image_is_refused(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_upload({"path": str(path), "orig_name": "theirs.png"}, tmp_path, 8, 3)
    assert str(caught.value).startswith("theirs.png: ")
    assert words in str(caught.value)


@pytest.mark.parametrize("side, more, words", [
    (8000, 7000, "8000x8000 pixels; allowed: at most 50,000,000"),
    (8000, 0, "64,000,000 pixels in"),
    (30_000, 0, "pixels"),
])  # fmt: skip
def test_an_image_bomb_is_refused_unopened(tmp_path: Path, side: int, more: int, words: str) -> None:
    path = huge_png(tmp_path / "bomb.png", side)
    path.write_bytes(path.read_bytes() + bytes(more))
    with pytest.raises(UserError, match=words):
        read_upload({"path": str(path)}, tmp_path, 8, 3)


def test_a_broken_image_is_refused(tmp_path: Path) -> None:
    path = huge_png(tmp_path / "short.png", 600)
    with pytest.raises(UserError, match=r"short\.png: "):
        read_upload({"path": str(path)}, tmp_path, 8, 3)


def test_an_image_that_is_too_small_is_refused(tmp_path: Path) -> None:
    path = picture(tmp_path / "small.png", 40, 7)
    with pytest.raises(UserError, match="7 pixels a side; at least 8"):
        read_upload({"path": str(path)}, tmp_path, 8, 3)


@pytest.mark.parametrize(
    "sent", [None, "x", 3, {}, {"path": 3}, {"path": "a\0b"}, {"path": "/etc/passwd"}, {"path": "."}]
)
def test_only_uploaded_files_are_read(tmp_path: Path, sent: Any) -> None:
    with pytest.raises(UserError, match="image: "):
        read_upload(sent, tmp_path, 8, 3)


def test_neither_dots_nor_links_lead_out_of_the_folder(tmp_path: Path) -> None:
    outside = picture(tmp_path / "outside.png")
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    (uploads / "link.png").symlink_to(outside)
    for path in (uploads / "link.png", uploads / ".." / "outside.png", outside):
        with pytest.raises(UserError, match="not uploaded here"):
            read_upload({"path": str(path)}, uploads, 8, 3)


def test_a_name_is_only_a_name(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png")
    for given, kept in (
        ("../../x.png", "x.png"),
        ("C:\\me\\y.png", "y.png"),
        ("a\nb\x00.png", "ab.png"),
        ("", "a.png"),
    ):
        assert read_upload({"path": str(path), "orig_name": given}, tmp_path, 8, 3).file == kept
    assert len(read_upload({"path": str(path), "orig_name": "z" * 500}, tmp_path, 8, 3).file) == 100
