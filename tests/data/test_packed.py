"""Compressed images: the same pixels by every way of reading, and damage that is named."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cascaded_diffusion.data.manifest import Manifest
from cascaded_diffusion.data.packed import PackedImages, pack_array
from cascaded_diffusion.data.prepare import prepare
from cascaded_diffusion.data.prepared import PreparedData
from cascaded_diffusion.data.workers import WorkerPool
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.reading.webp import decode_webp, encode_webp
from cascaded_diffusion.training.batches import BatchSource

SIDE = 130


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 4 and 3 noisy pictures, large enough to be compressed."""
    root = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for label, count in (("ant", 4), ("bee", 3)):
        (root / label).mkdir()
        for i in range(count):
            ramp = np.linspace(0, 200, SIDE + i)[:, None, None] + generator.integers(0, 30, (SIDE + i, SIDE, 3))
            Image.fromarray(ramp.astype(np.uint8)).save(root / label / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def plain(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    out = tmp_path_factory.mktemp("plain") / "data"
    prepare(str(pictures), out, resolutions=[8, SIDE], val=0.4, workers=0)
    return PreparedData.open(out)


@pytest.fixture(scope="module")
def packed_folder(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "data"
    prepare(str(pictures), out, resolutions=[8, SIDE], val=0.4, workers=0, compress=True)
    return out


@pytest.fixture
def copied(packed_folder: Path, tmp_path: Path) -> Path:
    """``packed_folder``, to be damaged."""
    shutil.copytree(packed_folder, tmp_path / "data")
    return tmp_path / "data"


def test_the_same_pixels(plain: PreparedData, packed_folder: Path) -> None:
    data = PreparedData.open(packed_folder)
    data.verify()
    assert sorted(path.name for path in (packed_folder / "train").iterdir()) == [
        f"images_{SIDE}.offsets.npy",
        f"images_{SIDE}.pack",
        "images_8.npy",
        "labels.npy",
    ]
    assert data.splits == ["train", "val"]
    for name in data.splits:
        images, expected = data.split(name).images(SIDE), np.asarray(plain.split(name).images(SIDE))
        assert isinstance(images, PackedImages)
        assert (images.shape, images.dtype, len(images)) == (expected.shape, expected.dtype, len(expected))
        np.testing.assert_array_equal(np.asarray(images), expected)
        last = len(expected) - 1
        for where in (0, -1, np.int64(last), slice(1, None), slice(None, None, -1), [last, 0, 0], np.arange(2) * last):
            np.testing.assert_array_equal(images[where], expected[where])
        mask = np.arange(len(expected)) % 2 == 1
        np.testing.assert_array_equal(images[mask], expected[mask])
        np.testing.assert_array_equal(np.stack(list(images)), expected)
        np.testing.assert_array_equal(np.asarray(images, np.float64), expected.astype(np.float64))
        np.testing.assert_array_equal(data.split(name).images(8), plain.split(name).images(8))
    with pytest.raises(IndexError):
        images[len(images)]
    with pytest.raises(IndexError):
        images[:, 0]


def test_a_batch_of_training_is_the_same(plain: PreparedData, packed_folder: Path, base_config: Any) -> None:
    config = base_config(SIDE, classes=2)
    one, other = (
        BatchSource(config, data, torch.device("cpu")).gather(1, 6)
        for data in (plain, PreparedData.open(packed_folder))
    )
    assert one.images[SIDE].equal(other.images[SIDE])
    assert one.labels is not None
    assert one.labels.equal(other.labels)


def test_the_manifest_says_so_and_readers_of_plain_data_refuse(plain: PreparedData, packed_folder: Path) -> None:
    written = json.loads((packed_folder / "manifest.json").read_text())
    assert (written["format_version"], written["compressed"]) == (2, [SIDE])
    assert f"train/images_{SIDE}.offsets.npy" in written["files"]
    old = json.loads((plain.folder / "manifest.json").read_text())
    assert old["format_version"] == 1
    assert "compressed" not in old
    for change in ({"format_version": 1}, {"compressed": []}, {"compressed": [9]}):
        with pytest.raises(ValueError, match=r"format_version must be|compressed must be"):
            Manifest.model_validate(written | change)


def test_asking_again(pictures: Path, packed_folder: Path, plain: PreparedData) -> None:
    notes: list[str] = []
    options: dict[str, Any] = {"resolutions": [8, SIDE], "val": 0.4, "workers": 0, "note": notes.append}
    prepare(str(pictures), packed_folder, compress=True, **options)
    assert "nothing to do" in notes[-1]
    with pytest.raises(UserError, match=rf"already holds data prepared with compressed \[\], not \[{SIDE}\]"):
        prepare(str(pictures), plain.folder, compress=True, **options)
    with pytest.raises(UserError, match="compress: 8 is the largest resolution; only images above 128"):
        prepare(str(pictures), packed_folder.with_name("small"), resolutions=[8], compress=True)


@pytest.mark.parametrize("shape", [(5, 7, 7, 1), (1, 140, 140, 3)])
def test_any_shape(tmp_path: Path, shape: tuple[int, int, int, int]) -> None:
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    done: list[int] = []
    with WorkerPool(0) as pool:
        pack_array(tmp_path / "images.npy", tmp_path / "images.pack", shape, pool, done.append)
    assert done == [shape[0]]
    assert not (tmp_path / "images.npy").exists()
    np.testing.assert_array_equal(PackedImages(tmp_path / "images.pack", shape), images)


def test_large_images_are_compressed_a_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process hands over waits in memory."""
    monkeypatch.setattr("cascaded_diffusion.data.packed._CHUNK_BYTES", 2 * 9 * 9 * 3)
    images = np.random.default_rng(0).integers(0, 256, (5, 9, 9, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    done: list[int] = []
    with WorkerPool(0) as pool:
        pack_array(tmp_path / "images.npy", tmp_path / "images.pack", images.shape, pool, done.append)
    assert done == [2, 4, 5]
    np.testing.assert_array_equal(PackedImages(tmp_path / "images.pack", images.shape), images)


def test_damage_is_named_before_memory_is_taken(copied: Path, frugal: Callable[..., str]) -> None:
    pack, offsets = copied / f"train/images_{SIDE}.pack", copied / f"train/images_{SIDE}.offsets.npy"
    content, places = pack.read_bytes(), np.load(offsets)

    def opened(new: bytes = content, where: np.ndarray = places) -> str:
        pack.write_bytes(new)
        np.save(offsets, where)
        return frugal(lambda: PreparedData.open(copied).split("train").images(SIDE)[:])

    assert opened() == "read"
    assert "bytes, not the" in opened(content[:-1])
    for broken in ([1, *places[1:]], [*places[:2], places[1], *places[3:]], [0, places[2], places[1], *places[3:]]):
        assert "not where pictures of 130x130 pixels can begin" in opened(where=np.array(broken))
    far = places.copy()
    far[-1] = 2**40
    assert "not where pictures of 130x130 pixels can begin" in opened(where=far)
    assert "the manifest asks for int64" in opened(where=places[1:])
    changed = bytearray(content)
    changed[places[1] + 40 : places[1] + 80] = bytes(40)
    assert f"images_{SIDE}.pack: image 1: " in opened(bytes(changed))
    # A header that claims 16384 x 16384 pixels, whose decoding would take a gigabyte.
    changed = bytearray(content)
    changed[21:25] = (0x0FFFFFFF).to_bytes(4, "little")
    assert "image 0: 16384x16384 pixels, not 130x130" in opened(bytes(changed))


def test_a_file_that_is_cut_short_later_is_an_error_not_a_crash(copied: Path) -> None:
    images = PreparedData.open(copied).split("train").images(SIDE)
    os.truncate(copied / f"train/images_{SIDE}.pack", 100)
    with pytest.raises(OSError, match="the file has been cut short"):
        images[len(images) - 1]


@pytest.mark.parametrize("content", [b"", b"RIFF", b"RIFF\x10\0\0\0WEBPVP8 " + bytes(20)])
def test_what_is_no_lossless_picture(content: bytes) -> None:
    with pytest.raises(ValueError, match="not a whole lossless WebP picture"):
        decode_webp(content, 8, 3)
    good = encode_webp(np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match="8x8 pixels, not 9x9"):
        decode_webp(good, 9, 3)
    with pytest.raises(ValueError, match="not a whole"):
        decode_webp(good + b"x", 8, 3)


def test_room_for_both_forms_is_asked_for(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr("cascaded_diffusion.data.prepare.free_space_check", lambda folder, needed: asked.append(needed))
    for compress in (False, True):
        prepare(str(pictures), tmp_path / str(compress), resolutions=[8, SIDE], workers=0, compress=compress)
    assert asked == [7 * 3 * (8**2 + SIDE**2), 7 * 3 * (8**2 + 2 * SIDE**2)]
