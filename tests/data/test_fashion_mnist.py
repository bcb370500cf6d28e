import gzip
import hashlib
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cascaded_diffusion.data import fashion_mnist
from cascaded_diffusion.data.fashion_mnist import CLASS_NAMES, holds_idx_files, load_fashion_mnist, load_idx_folder
from cascaded_diffusion.errors import UserError

IdxFolder = Callable[..., Path]


@pytest.fixture
def stand_in(idx_folder: IdxFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small data set that counts as Fashion-MNIST, found at its official address and nowhere else."""
    folder = idx_folder("official")
    hashes = {path.stem: hashlib.sha256(gzip.decompress(path.read_bytes())).hexdigest() for path in folder.iterdir()}
    monkeypatch.setattr(fashion_mnist, "CONTENT_SHA256", {stem: hashes[stem] for stem in fashion_mnist.CONTENT_SHA256})
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "not-installed")
    monkeypatch.setattr(fashion_mnist, "BASE_URL", f"{folder.as_uri()}/")
    monkeypatch.setenv("CASCADED_DIFFUSION_CACHE", str(tmp_path / "cache"))
    return folder


@pytest.mark.parametrize("packed", [True, False])
def test_folder_of_idx_files(idx_folder: IdxFolder, packed: bool) -> None:
    folder = idx_folder(packed=packed)
    assert holds_idx_files(folder)
    data = load_idx_folder(folder)
    assert data.images.shape == (17, 32, 32, 1)
    assert data.train_count == 12
    expected = np.random.default_rng(7).integers(0, 256, (12, 28, 28), dtype=np.uint8)
    np.testing.assert_array_equal(data.images[:12, 2:30, 2:30, 0], expected)
    assert data.images[:, :2].max() == data.images[:, 30:].max() == data.images[:, :, :2].max() == 0
    assert data.labels.tolist() == [*range(10), 0, 1, *range(5)]


def test_garment_names_only_for_fashion_mnist(idx_folder: IdxFolder, stand_in: Path) -> None:
    assert load_idx_folder(stand_in).class_names == list(CLASS_NAMES)
    assert load_idx_folder(idx_folder("other", train=11)).class_names == [str(i) for i in range(10)]


def test_an_incomplete_folder_is_not_taken_for_one(idx_folder: IdxFolder) -> None:
    folder = idx_folder()
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    assert not holds_idx_files(folder)
    with pytest.raises(UserError, match="no t10k-labels-idx1-ubyte"):
        load_idx_folder(folder)


def test_installed_files_come_first(stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", stand_in)
    monkeypatch.setattr(fashion_mnist, "BASE_URL", "file:///nowhere/")
    notes: list[str] = []
    assert load_fashion_mnist(notes.append).train_count == 12
    assert notes == []


def test_an_installed_file_with_other_content_is_an_error(
    stand_in: Path, idx_folder: IdxFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", idx_folder("other", train=11))
    with pytest.raises(UserError, match=r"other/train-images-idx3-ubyte.gz: not Fashion-MNIST's"):
        load_fashion_mnist(print)


def test_download_is_cached_and_a_damaged_copy_replaced(stand_in: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    first = load_fashion_mnist(notes.append)
    assert first.class_names == list(CLASS_NAMES)
    assert [note.split(" ")[0] for note in notes] == ["downloading"] * 4
    notes.clear()
    np.testing.assert_array_equal(load_fashion_mnist(notes.append).images, first.images)
    assert notes == []
    cached = tmp_path / "cache/fashion-mnist/train-labels-idx1-ubyte.gz"
    cached.write_bytes(cached.read_bytes()[:-9])
    np.testing.assert_array_equal(load_fashion_mnist(notes.append).images, first.images)
    assert "damaged" in notes[0]
    assert len(notes) == 2


def test_a_wrong_download_is_not_kept(
    stand_in: Path, idx_folder: IdxFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fashion_mnist, "BASE_URL", f"{idx_folder('other', train=11).as_uri()}/")
    with pytest.raises(UserError, match=r"gave a wrong file .* install the Debian package"):
        load_fashion_mnist(lambda note: None)
    assert not list((tmp_path / "cache").rglob("*.gz"))


def test_no_network_says_what_to_do(stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion_mnist, "BASE_URL", "http://127.0.0.1:9/")
    with pytest.raises(UserError, match=r"cannot download http://127.0.0.1:9/train-images-.* give a folder"):
        load_fashion_mnist(lambda note: None)


def header(magic: int, *counts: int) -> bytes:
    return struct.pack(f">{1 + len(counts)}I", magic, *counts)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "not an IDX file of images"),
        (header(0x801, 1, 28, 28) + bytes(784), "must begin with 0x00000803"),
        (header(0x803, 1, 28, 27) + bytes(756), "images of 28x27"),
        (header(0x803, 0, 28, 28), "claims 0 entries"),
        (header(0x803, 2**32 - 1, 28, 28), "claims 4294967295 entries"),
        (header(0x803, 2, 28, 28) + bytes(784), "claims 1568 bytes after it, the file has 784"),
        (header(0x803, 1, 28, 28) + bytes(785), "claims 784 bytes after it, the file has more"),
    ],
)
def test_idx_headers_are_checked(idx_folder: IdxFolder, content: bytes, message: str) -> None:
    folder = idx_folder()
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(content))
    with pytest.raises(UserError) as error:
        load_idx_folder(folder)
    assert message in str(error.value)
    assert str(path) in str(error.value)


def test_files_that_are_no_gzip(idx_folder: IdxFolder) -> None:
    folder = idx_folder()
    (folder / "train-images-idx3-ubyte.gz").write_bytes(b"text")
    with pytest.raises(UserError, match="unreadable IDX file"):
        load_idx_folder(folder)


def test_numbers_of_images_and_labels_must_agree(idx_folder: IdxFolder) -> None:
    folder = idx_folder()
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(header(0x801, 4) + bytes(4)))
    with pytest.raises(UserError, match=r"t10k-labels-.*: 4 labels for the 5 images of t10k-images"):
        load_idx_folder(folder)


@pytest.mark.skipif(
    not fashion_mnist.DEBIAN_FOLDER.is_dir(), reason="the Debian package dataset-fashion-mnist is not here"
)
def test_the_real_data_set() -> None:
    data = load_fashion_mnist(print)
    assert data.images.shape == (70_000, 32, 32, 1)
    assert np.bincount(data.labels[:60_000]).tolist() == [6_000] * 10
    assert np.bincount(data.labels[60_000:]).tolist() == [1_000] * 10


def test_a_bomb_is_refused_before_it_is_unpacked(idx_folder: IdxFolder, frugal: Callable[..., str]) -> None:
    folder = idx_folder()
    path = folder / "train-images-idx3-ubyte.gz"
    count = 500_000
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(struct.pack(">IIII", 0x803, count, 28, 28))
        for _ in range(100):
            file.write(bytes(count * 28 * 28 // 100))
    outcome = frugal(lambda: load_idx_folder(folder))
    assert "train-images-idx3-ubyte.gz: " in outcome
    assert "bytes that unpack to 392000000; at most 100 times as many are read" in outcome


@pytest.mark.parametrize(
    "head",
    [b"\x1f\x8b\x08\x08" + bytes(6) + b"x" * 200_000, b"\x1f\x8b\x08\x14" + bytes(6) + b"\x02\x00ab" + b"c" * 200_000],
)
def test_a_gzip_name_without_end_is_refused_at_once(idx_folder: IdxFolder, head: bytes) -> None:
    folder = idx_folder()
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(head)
    with pytest.raises(UserError, match=r"train-labels-idx1-ubyte.gz: unreadable IDX file \(a name in its gzip header"):
        load_idx_folder(folder)


def test_gigabytes_of_zeros_behind_the_content_are_refused_at_once(idx_folder: IdxFolder) -> None:
    folder = idx_folder()
    path = folder / "train-labels-idx1-ubyte.gz"
    with path.open("r+b") as file:
        file.truncate(2**34)
    with pytest.raises(UserError, match=r"train-labels-idx1-ubyte.gz: 17179869184 bytes for the 12 that its header"):
        load_idx_folder(folder)
