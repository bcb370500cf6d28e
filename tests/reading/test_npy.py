"""``.npy`` headers."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascaded_diffusion.errors import UserError
from cascaded_diffusion.reading.npy import map_npy, read_npy_header

Frugal = Callable[[Callable[[], object]], str]


def header(text: str, version: int = 1) -> bytes:
    size = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + size + text.encode("latin-1")


@given(
    st.sampled_from(["|u1", "<i8", "<f4", ">f8", "|b1", "<U7", "|S3", "<c16"]),
    st.lists(st.integers(0, 2**40), max_size=5),
    st.booleans(),
)
def test_numpys_own_headers_are_read(descr: str, shape: list[int], fortran: bool) -> None:
    form = {"descr": descr, "fortran_order": fortran, "shape": tuple(shape)}
    for write in (np.lib.format.write_array_header_1_0, np.lib.format.write_array_header_2_0):
        stream = io.BytesIO()
        write(stream, form)
        at = stream.tell()
        stream.write(b"body")
        stream.seek(0)
        found = read_npy_header(stream)
        assert (found.shape, found.fortran_order, found.dtype) == (tuple(shape), fortran, np.dtype(descr))
        assert stream.tell() == at


def test_other_writers_spaces_and_order_are_read() -> None:
    found = read_npy_header(io.BytesIO(header("{ 'shape':(3,) ,'descr' : '<f4','fortran_order':False}\n")))
    assert found.shape == (3,)
    assert found.size == 12


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "does not begin"),
        (b"\x93NUMPY\x09\x00", "does not begin"),
        (b"PK\x03\x04 and more", "does not begin"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff", "a header of 4294967295 bytes"),
        (header("x" * 5000), "a header of 5000 bytes"),
        (header("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }")[:-9], "not that of a plain array"),
        (header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}"), "not that of a plain"),
        (header("{'descr': '<f4', 'fortran_order': False, 'shape': (1e9,)}"), "not that of a plain"),
        (header("{'descr': '<f4', 'fortran_order': False, 'shape': (1,) * 10**9}"), "not that of a plain"),
        (header("{'descr': '<f4', 'fortran_order': False, 'shape': (" + "9" * 30 + ",)}"), "not that of a plain"),
        (header("{'descr': '<f4', 'fortran_order': False, 'shape': (" + "1, " * 40 + ")}"), "not that of a plain"),
        (header("{'descr': '<f4', 'descr': '<f4', 'shape': (1,)}"), "not that of a plain"),
        (header("{'descr': '<f4', 'fortran_order': 'x', 'shape': (1,)}"), "not that of a plain"),
        (header("{'descr': '<f4', 'fortran_order': False, 'shape': False}"), "not that of a plain"),
        (header("{'descr': True, 'fortran_order': False, 'shape': (1,)}"), "not that of a plain"),
        (header("{'descr': '<i3', 'fortran_order': False, 'shape': (1,)}"), "not that of a plain"),
        (header("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}"), "not that of a plain"),
        (header("__import__('os').system('true')"), "not that of a plain"),
        (header("(" * 4000), "not that of a plain"),
    ],
)
def test_what_is_refused(content: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_npy_header(io.BytesIO(content))


def test_a_mapped_file_is_what_was_saved(tmp_path: Path) -> None:
    values = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    np.save(tmp_path / "x.npy", values)
    found = map_npy(tmp_path / "x.npy", np.uint8, (2, 3, 4))
    np.testing.assert_array_equal(found, values)
    with pytest.raises(ValueError, match="read-only"):
        found[0, 0, 0] = 1


def test_objects_are_never_mapped(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([print]), allow_pickle=True)
    with pytest.raises(UserError, match=r"x.npy: object \(1,\); the manifest asks for int64"):
        map_npy(tmp_path / "x.npy", np.int64, (1,))


def test_a_header_that_claims_a_terabyte_takes_no_memory(tmp_path: Path, frugal: Frugal) -> None:
    path = tmp_path / "x.npy"
    path.write_bytes(header(f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({2**40},)}}") + b"few")
    outcome = frugal(lambda: map_npy(path, np.uint8, (2**40,)))
    assert "x.npy: not a whole .npy file (3 bytes behind its header, not 1099511627776)" in outcome
