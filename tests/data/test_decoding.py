import hashlib
import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cascaded_diffusion.data import decoding
from cascaded_diffusion.data.decoding import decode, decode_content, image_suffixes, look
from cascaded_diffusion.data.sources import Bad, Facts

COLOUR = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
GREY = np.random.default_rng(1).integers(0, 256, (6, 9), dtype=np.uint8)


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def stored_mode(path: Path) -> str:
    with Image.open(path) as image:
        return image.mode


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp", "ppm", "tga"])
def test_colour_formats_without_loss(tmp_path: Path, suffix: str) -> None:
    options = {"lossless": True} if suffix == "webp" else {}
    path = saved(tmp_path / f"a.{suffix}", Image.fromarray(COLOUR), **options)
    np.testing.assert_array_equal(decode(path, 3), COLOUR)
    assert look(path, False) == Facts(6, 9, False, None)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "gif", "pgm"])
def test_grey_formats_without_loss(tmp_path: Path, suffix: str) -> None:
    path = saved(tmp_path / f"a.{suffix}", Image.fromarray(GREY))
    assert look(path, False) == Facts(6, 9, True, None)
    np.testing.assert_array_equal(decode(path, 1), GREY[..., None])
    np.testing.assert_array_equal(decode(path, 3), np.repeat(GREY[..., None], 3, axis=-1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(tmp_path: Path, orientation: int) -> None:
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :16] = 255  # white only in the upper left quarter
    # what a camera stores so that applying the orientation gives the upright picture
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / "a.jpg", Image.fromarray(np.ascontiguousarray(stored)), exif=exif, quality=95)
    decoded = decode(path, 3)
    assert isinstance(decoded, np.ndarray)
    assert decoded.shape == upright.shape
    assert np.abs(decoded.astype(int) - upright).max() < 30


def test_palette_with_and_without_transparency(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([200, 0, 0, 0, 100, 0])
    image.putdata([0, 1])
    opaque = saved(tmp_path / "a.png", image)
    np.testing.assert_array_equal(decode(opaque, 3), [[[200, 0, 0], [0, 100, 0]]])
    clear = saved(tmp_path / "b.png", image, transparency=1)
    np.testing.assert_array_equal(decode(clear, 3), [[[200, 0, 0], [255, 255, 255]]])
    assert look(opaque, False) == Facts(1, 2, False, None)


def test_palette_of_greys_is_grey(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([7, 7, 7, 90, 90, 90])
    image.putdata([0, 1])
    for name in ("a.png", "a.bmp", "a.gif", "a.tif"):
        path = saved(tmp_path / name, image)
        facts = look(path, False)
        assert isinstance(facts, Facts)
        assert facts.grey
        np.testing.assert_array_equal(decode(path, 1), [[[7], [90]]])


def test_one_colour_in_a_palette_of_greys_is_colour(tmp_path: Path) -> None:
    """A TIFF's palette has all of red first, then all of green, then all of blue."""
    image = Image.new("P", (2, 1))
    image.putpalette([7, 7, 7, 90, 90, 90, 8, 8, 8, 255, 0, 0])
    image.putdata([3, 3])
    for name in ("a.png", "a.tif"):
        facts = look(saved(tmp_path / name, image), False)
        assert isinstance(facts, Facts)
        assert not facts.grey


def test_alpha_is_laid_on_white(tmp_path: Path) -> None:
    rgba = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 100, 255, 51]]], np.uint8)
    path = saved(tmp_path / "a.png", Image.fromarray(rgba))
    # 51/255 is a fifth: 0.8 * 255 + 0.2 * colour
    np.testing.assert_array_equal(decode(path, 3), [[[10, 20, 30], [255, 255, 255], [204, 224, 255]]])


def test_colour_asked_for_as_grey_is_its_luma_with_and_without_alpha(tmp_path: Path) -> None:
    opaque = Image.new("RGB", (2, 2), (10, 200, 30))
    expected = np.asarray(opaque.convert("L"))[..., None]
    np.testing.assert_array_equal(decode(saved(tmp_path / "a.png", opaque), 1), expected)
    opaque.putalpha(255)
    np.testing.assert_array_equal(decode(saved(tmp_path / "b.png", opaque), 1), expected)


def test_grey_with_alpha(tmp_path: Path) -> None:
    pixels = np.array([[[40, 255], [40, 0], [100, 51]]], np.uint8)
    path = saved(tmp_path / "a.png", Image.fromarray(pixels))
    assert stored_mode(path) == "LA"
    assert look(path, False) == Facts(1, 3, True, None)
    np.testing.assert_array_equal(decode(path, 1), [[[40], [255], [224]]])
    np.testing.assert_array_equal(decode(path, 3), [[[40] * 3, [255] * 3, [224] * 3]])


def test_cmyk_jpeg(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg", Image.new("CMYK", (16, 16), (0, 255, 255, 0)), quality=95)
    decoded = decode(path, 3)
    assert isinstance(decoded, np.ndarray)
    assert np.abs(decoded.astype(int) - [255, 0, 0]).max() < 12


@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    path = saved(tmp_path / f"a.{suffix}", Image.fromarray(values))
    np.testing.assert_array_equal(decode(path, 1), np.array([[0, 0, 1, 1, 128, 255]])[..., None])
    np.testing.assert_array_equal(decode(path, 3)[..., 2], [[0, 0, 1, 1, 128, 255]])  # type: ignore[call-overload]
    assert look(path, False) == Facts(1, 6, True, None)


def test_1_bit(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(GREY > 127))
    assert stored_mode(path) == "1"
    np.testing.assert_array_equal(decode(path, 1)[..., 0], (GREY > 127) * 255)  # type: ignore[call-overload]


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    path = tmp_path / "a.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decode(path, 3), np.broadcast_to([255, 0, 0], (4, 4, 3)))


def test_digest_is_that_of_the_file(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(COLOUR))
    facts = look(path, True)
    assert isinstance(facts, Facts)
    assert facts.digest == hashlib.sha256(path.read_bytes()).digest()


def png_bytes() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(COLOUR).save(buffer, "png")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "name, content, reason",
    [
        ("a.png", b"", "empty"),
        ("a.jpg", b"<html>not found</html>", "no image format"),
        ("a.heic", b"\0\0\0\x18ftypheic", ".heic files cannot be read"),
        ("a.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot be read"),
        ("renamed.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image format"),
    ],
)
def test_files_that_are_no_image(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    for result in (look(path, False), decode(path, 3)):
        assert isinstance(result, Bad)
        assert reason in result.reason
        assert "\n" not in result.reason


def test_truncated_files_are_bad_not_half_grey(tmp_path: Path) -> None:
    for suffix in ("png", "jpg"):
        path = saved(tmp_path / f"a.{suffix}", Image.fromarray(np.tile(COLOUR, (20, 20, 1))))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        assert isinstance(decode(path, 3), Bad)


def test_missing_file_and_folder_are_bad(tmp_path: Path) -> None:
    assert decode(tmp_path / "gone.png", 3) == Bad("no such file")
    (tmp_path / "folder.png").mkdir()
    assert isinstance(decode(tmp_path / "folder.png", 3), Bad)


def test_decompression_bombs_are_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(COLOUR))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", COLOUR.shape[0] * COLOUR.shape[1] // 2 - 1)
    result = look(path, False)
    assert isinstance(result, Bad)
    assert "decompression bomb" in result.reason
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", COLOUR.shape[0] * COLOUR.shape[1] - 1)
    np.testing.assert_array_equal(decode(path, 3), COLOUR)  # large, as from a camera, but within twice the limit


def test_many_pixels_in_few_bytes_are_a_bomb(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(COLOUR))
    content = path.read_bytes()
    header = b"IHDR" + struct.pack(">II", 5000, 4000) + content[24:29]
    path.write_bytes(content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:])
    words = f"a decompression bomb: 20,000,000 pixels in {len(content)} bytes"
    assert look(path, False) == decode(path, 3) == decode_content(path.read_bytes(), False) == Bad(words)
    # A blank page is none.
    page = saved(tmp_path / "page.png", Image.new("1", (5000, 4000), 1))
    assert 1_500 < 20_000_000 / page.stat().st_size < 10_000
    assert isinstance(look(page, False), Facts)


def test_floating_point_and_32_bit_greys_are_bad(tmp_path: Path) -> None:
    for i, values in enumerate([np.array([[0.5]], np.float32), np.array([[70000]], np.int32)]):
        path = saved(tmp_path / f"{i}.tiff", Image.fromarray(values))
        result = decode(path, 1)
        assert isinstance(result, Bad)
        assert "grey values" in result.reason


def test_suffixes() -> None:
    assert {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".svg"} <= image_suffixes()
    assert not {".txt", ".json", ".csv", ".pdf", ".npz", ".mpg", ".h5", ""} & image_suffixes()


def test_pipes_and_devices_are_bad_at_once(tmp_path: Path, frugal: Callable[..., str]) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    for name, kind in (("pipe.png", "pipe"), ("zero.png", "device")):

        def read(path: Path = tmp_path / name, kind: str = kind) -> None:
            for result in (look(path, True), decode(path, 3)):
                assert isinstance(result, Bad)
                assert kind in result.reason

        assert frugal(read) == "read"


def test_wide_intermediate_numbers_are_never_there_for_the_whole_image(frugal: Callable[..., str]) -> None:
    rgba = np.full((4000, 4000, 4), 100, np.uint8)
    deep = np.full((4000, 8000), 257, np.uint16)

    def convert() -> None:
        assert decoding._by_rows(decoding._on_white, rgba).max() == 194
        assert decoding._by_rows(decoding._from_16_bits, deep).max() == 1

    assert frugal(convert) == "read"


@pytest.mark.parametrize("rows", [1, 2, 5, 100])
def test_rows_at_once_do_not_matter(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    rgba = np.random.default_rng(0).integers(0, 256, (7, 9, 4), dtype=np.uint8)
    monkeypatch.setattr(decoding, "_PIXELS_AT_ONCE", 9 * rows)
    np.testing.assert_array_equal(decoding._by_rows(decoding._on_white, rgba), decoding._on_white(rgba))


@pytest.mark.parametrize("form", ["png", "gif", "tiff", "webp", "bmp"])
def test_a_header_that_claims_gigapixels_takes_no_memory(tmp_path: Path, frugal: Callable[..., str], form: str) -> None:
    """The width and height in the header become 50,000 wherever a format keeps them."""
    path = saved(tmp_path / f"a.{form}", Image.fromarray(np.tile(COLOUR, (2, 2, 1))))
    content = path.read_bytes()
    for kind in (">I", "<I", "<H", ">H"):
        content = content.replace(struct.pack(kind, 18), struct.pack(kind, 50_000))
        content = content.replace(struct.pack(kind, 12), struct.pack(kind, 50_000))
    if form == "png":
        content = content[:29] + struct.pack(">I", zlib.crc32(content[12:29])) + content[33:]
    path.write_bytes(content)

    def read() -> None:
        assert isinstance(decode(path, 3), Bad)

    assert frugal(read) == "read"


def test_compressed_metadata_without_end_takes_no_memory(tmp_path: Path, frugal: Callable[..., str]) -> None:
    bomb = zlib.compress(bytes(2**28))
    for chunk in (b"iCCPx\0\0" + bomb, b"zTXtx\0\0" + bomb):
        content = png_bytes()
        extra = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        (tmp_path / "a.png").write_bytes(content[:33] + extra + content[33:])
        # Pillow leaves out a profile that is too large, and refuses text that is.
        assert frugal(lambda: decode(tmp_path / "a.png", 3)) == "read"


def test_a_header_that_promises_gigabytes_takes_no_memory(tmp_path: Path, frugal: Callable[..., str]) -> None:
    path = tmp_path / "x.jp2"
    Image.new("RGB", (8, 8)).save(path)
    content = bytearray(path.read_bytes())
    box = content.index(b"jp2h") - 4
    content[box : box + 4] = (2**32 - 2**15).to_bytes(4, "big")
    path.write_bytes(content)

    def read() -> None:
        for result in (look(path, False), decode(path, 3)):
            assert isinstance(result, Bad)
            assert "Expected to read" in result.reason

    assert frugal(read) == "read"
