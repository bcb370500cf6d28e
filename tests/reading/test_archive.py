"""Zip archives and the arrays in them."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cascaded_diffusion.errors import UserError
from cascaded_diffusion.reading.archive import check_member, open_zip, read_npz, refuse_bomb

Frugal = Callable[[Callable[[], object]], str]
FLOATS = {"a": np.float32, "b": np.int64, "name": np.str_}


def packed(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def array(value: object) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.asarray(value))
    return stream.getvalue()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_what_was_saved(tmp_path: Path, save: Callable[..., None]) -> None:
    a, b = np.arange(6, dtype=np.float32).reshape(2, 3), np.asfortranarray(np.arange(6).reshape(2, 3))
    save(tmp_path / "x.npz", a=a, b=b, name=np.array("words"), other=np.zeros(3))
    found = read_npz(tmp_path / "x.npz", FLOATS, limit=10_000)
    assert set(found) == {"a", "b", "name"}
    np.testing.assert_array_equal(found["a"], a)
    np.testing.assert_array_equal(found["b"], b)
    assert str(found["name"]) == "words"
    assert found["a"].flags.writeable


@pytest.mark.parametrize(
    "members, words",
    [
        ({"a.npy": array(np.zeros(3))}, r"a is float64 \(3,\); float32 is needed"),
        ({"a.npy": array(np.zeros(99, np.float32))}, r"a is float32 \(99,\), more than can be meant"),
        ({"a.npy": array(np.zeros(3, np.float32))[:-1]}, r"a.npy claims 12 bytes of float32 \(3,\), it has 11"),
        ({"a.npy": b"text"}, "a.npy is not an array"),
        ({"name.npy": array(np.array(b"bytes"))}, "name is .*needed"),
    ],
)
def test_other_arrays_are_refused(tmp_path: Path, members: dict[str, bytes], words: str) -> None:
    path = packed(tmp_path / "x.npz", members)
    with pytest.raises(UserError, match=words):
        read_npz(path, FLOATS, limit=100)


def test_a_name_that_stands_twice_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("a.npy", array(np.zeros(1, np.float32)))
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a.npy", array(np.ones(1, np.float32)))
    with pytest.raises(UserError, match="holds a twice"):
        read_npz(tmp_path / "x.npz", FLOATS, limit=100)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_that_numpy_does_not_use_are_refused(tmp_path: Path, method: int) -> None:
    path = packed(tmp_path / "x.npz", {"a.npy": array(np.zeros(3, np.float32))}, method)
    with pytest.raises(UserError, match=f"packed by method {method}"):
        read_npz(path, FLOATS, limit=100)


def test_an_encrypted_member_is_refused(tmp_path: Path) -> None:
    path = packed(tmp_path / "x.npz", {"a.npy": array(np.zeros(3, np.float32))})
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a.npy is encrypted"):
        read_npz(path, FLOATS, limit=100)


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, frugal: Frugal) -> None:
    path = tmp_path / "x.npz"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("a.npy", "w", force_zip64=True) as file,
    ):
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (2**27,)})
        for _ in range(2**9):
            file.write(bytes(2**20))
    assert path.stat().st_size < 10**6
    outcome = frugal(lambda: read_npz(path, FLOATS, limit=2**40))
    assert "x.npz: a.npy: " in outcome
    assert "at most 100 times as many are read" in outcome


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_lying_directory_is_noticed(tmp_path: Path, frugal: Frugal, method: int) -> None:
    """The directory says that a member is stored in as many bytes as it has; the archive has not got them."""
    path = packed(tmp_path / "x.npz", {"a.npy": array(np.zeros(3, np.float32))}, method)
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\x01\x02")
    content[at + 20 : at + 28] = struct.pack("<II", 2**31, 2**31)
    path.write_bytes(content)
    outcome = frugal(lambda: read_npz(path, FLOATS, limit=2**40))
    assert f"a.npy claims {2**31} bytes of an archive of {len(content)}" in outcome


@pytest.mark.parametrize("zip64", [False, True])
def test_a_directory_without_end_is_not_read(tmp_path: Path, frugal: Frugal, zip64: bool) -> None:
    path, size = tmp_path / "x.npz", 2**30
    with path.open("wb") as file:
        file.truncate(size)
        file.seek(size)
        if zip64:
            file.write(b"PK\x06\x06" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, 1, 1, size, 0))
            file.write(b"PK\x06\x07" + struct.pack("<IQI", 0, size, 1))
        end = (2**16 - 1, 2**16 - 1, 2**32 - 1, 2**32 - 1) if zip64 else (1, 1, size, 0)
        file.write(b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, *end, 0))
    outcome = frugal(lambda: read_npz(path, FLOATS, limit=100))
    assert "x.npz: not a whole .npz file (a directory of 1073741824 bytes" in outcome


@pytest.mark.parametrize("content", [b"", b"PK", b"PK\x05\x06", b"PK\x05\x06" + bytes(17), b"x" * 70_000, bytes(100)])
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(UserError, match=r"x.zip: no such thing \("), open_zip(tmp_path / "x.zip", "no such thing"):
        pass


def test_damage_inside_shows_when_it_is_read(tmp_path: Path) -> None:
    path = packed(tmp_path / "x.zip", {"a": bytes(100)})
    content = bytearray(path.read_bytes())
    content[50] ^= 1
    path.write_bytes(content)

    def read() -> None:
        with open_zip(path, "wrong") as archive:
            check_member(path, archive, archive.infolist()[0])
            archive.read("a")

    with pytest.raises(UserError, match=r"x.zip: wrong \(Bad CRC"):
        read()


def test_growth_within_reason_is_no_bomb() -> None:
    refuse_bomb("x", 10, 16 * 2**20)
    refuse_bomb("x", 2**20, 100 * 2**20)
    with pytest.raises(UserError, match="x: 1048576 bytes that unpack to 104857601"):
        refuse_bomb("x", 2**20, 100 * 2**20 + 1)
