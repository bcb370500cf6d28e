"""safetensors headers, and what they promise."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from cascaded_diffusion.errors import UserError
from cascaded_diffusion.reading.tensors import read_header, read_tensors, without_memory

Frugal = Callable[[Callable[[], object]], str]
ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def forged(path: Path, header: Any, body: bytes = bytes(8), length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + body)
    return path


def test_tensors_are_what_was_saved(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors = {
        "a": torch.randn(2, 3),
        "b": torch.arange(4),
        "c": torch.tensor(1.0, dtype=torch.bfloat16),
        "d": torch.empty(0),
    }
    save_file(tensors, path, metadata={"made": "by"})
    assert {name: facts.shape for name, facts in read_header(path).items()} == {
        "a": (2, 3),
        "b": (4,),
        "c": (),
        "d": (0,),
    }
    found = read_tensors(path)
    assert all(torch.equal(found[name], value) for name, value in tensors.items())


@pytest.mark.parametrize(
    "header, body, length, words",
    [
        ({"a": ONE}, b"", 2**62, "its header is to have 4611686018427387904 bytes, the file has"),
        ({"a": ONE}, b"", 500, "its header is to have 500 bytes"),
        (b" " * (9 * 2**20), b"", None, "a header of 9437184 bytes, at most 8388608 are read"),
        (b"{", b"", None, "not valid JSON"),
        (b"[]", b"", None, "its header is no object"),
        (b'{"a": {}, "a": {}}', b"", None, "the key 'a' stands twice"),
        (
            {"a": ONE | {"shape": [2**38], "data_offsets": [0, 2**40]}},
            bytes(8),
            None,
            "take 1099511627776 bytes, 8 are",
        ),
        ({"a": ONE | {"shape": [2**20, 2**20, 2**20]}}, bytes(8), None, "'a' is not that of a tensor"),
        ({"a": ONE | {"data_offsets": [8, 0]}}, bytes(8), None, "'a' is not that"),
        ({"a": ONE | {"data_offsets": [-8, 0]}}, bytes(8), None, "'a' is not that"),
        ({"a": ONE | {"data_offsets": [0]}}, bytes(8), None, "'a' is not that"),
        ({"a": ONE | {"shape": [-2]}}, bytes(8), None, "'a' is not that"),
        ({"a": ONE | {"shape": [True, 2]}}, bytes(8), None, "'a' is not that"),
        ({"a": ONE | {"shape": "2"}}, bytes(8), None, "'a' is not that"),
        ({"a": ONE | {"shape": [1] * 17, "data_offsets": [0, 4]}}, bytes(4), None, "'a' is not that"),
        ({"a": ONE | {"dtype": "F4"}}, bytes(8), None, "'a' is not that"),
        ({"a": ONE | {"dtype": None}}, bytes(8), None, "'a' is not that"),
        ({"a": ONE | {"more": 1}}, bytes(8), None, "'a' is not that"),
        ({"a": [1]}, bytes(8), None, "'a' is not that"),
        ({"x" * 600: ONE}, bytes(8), None, "is not that"),
        ({"a": ONE, "b": ONE}, bytes(8), None, "overlap or leave gaps"),
        ({"a": ONE, "b": ONE | {"data_offsets": [4, 12]}}, bytes(12), None, "overlap or leave gaps"),
        ({"a": ONE | {"data_offsets": [8, 16]}}, bytes(16), None, "overlap or leave gaps"),
        ({"a": ONE}, bytes(9), None, "take 8 bytes, 9 are there"),
        ({"a": ONE}, bytes(7), None, "take 8 bytes, 7 are there"),
    ],
)
def test_headers_that_lie_are_refused(
    tmp_path: Path, frugal: Frugal, header: Any, body: bytes, length: int | None, words: str
) -> None:
    path = forged(tmp_path / "x.safetensors", header, body, length)
    outcome = frugal(lambda: read_tensors(path))
    assert outcome.startswith(f"UserError: {path}: not a readable safetensors file")
    assert words in outcome


@pytest.mark.parametrize("content", [b"", b"\x00" * 7, b"\x00" * 8])
def test_files_without_a_header_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(UserError, match="not a readable safetensors file"):
        read_tensors(tmp_path / "x")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, bad: float) -> None:
    save_file({"a": torch.ones(3), "b": torch.tensor([1.0, bad]).half()}, tmp_path / "x")
    with pytest.raises(UserError, match="x: b holds values that are not finite"):
        read_tensors(tmp_path / "x")


def test_what_does_not_fit_is_refused_before_it_is_read(tmp_path: Path, frugal: Frugal) -> None:
    """The file is as large as it says: only the network tells that it is not meant."""
    path = tmp_path / "x"
    forged(path, {"weight": {"dtype": "F32", "shape": [2**28], "data_offsets": [0, 2**30]}}, b"")
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + 2**30)
    with without_memory():
        wanted = nn.Linear(2, 2).state_dict()
    assert "x: tensors missing for this config.json: bias" in frugal(lambda: read_tensors(path, wanted))
    wanted.pop("bias")
    assert "x: tensors of another shape for this config.json: weight" in frugal(lambda: read_tensors(path, wanted))


def test_whole_numbers_are_no_weights(tmp_path: Path) -> None:
    save_file(
        {"weight": torch.ones(2, 2, dtype=torch.int64), "bias": torch.ones(2, dtype=torch.float64)}, tmp_path / "x"
    )
    with pytest.raises(UserError, match=r"tensors of another kind of number for this config\.json: weight"):
        read_tensors(tmp_path / "x", nn.Linear(2, 2).state_dict())


def test_a_network_without_memory_has_the_real_ones_shapes(frugal: Frugal) -> None:
    def build() -> None:
        with without_memory():
            network = nn.Sequential(nn.Linear(2**16, 2**16), nn.Embedding(2**20, 2**10), nn.GroupNorm(32, 64))
        assert {name: tuple(value.shape) for name, value in network.state_dict().items()}["0.weight"] == (2**16, 2**16)
        assert all(value.is_meta for value in network.state_dict().values())

    assert frugal(build) == "read"
