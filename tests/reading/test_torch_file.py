"""Files of torch.save: tensors and nothing else."""

from __future__ import annotations

import io
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cascaded_diffusion.errors import UserError
from cascaded_diffusion.reading.torch_file import load_foreign_weights

Frugal = Callable[[Callable[[], object]], str]
WEIGHTS = {
    "a.weight": torch.randn(2, 3),
    "b": torch.ones(4, dtype=torch.float16),
    "c": torch.nn.Parameter(torch.ones(2)),
}
LARGEST = 2**20


class _Call:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("new", [True, False])
def test_weights_of_either_form_are_read(tmp_path: Path, new: bool) -> None:
    path = tmp_path / "x.pth"
    torch.save(WEIGHTS, path, _use_new_zipfile_serialization=new)
    found = load_foreign_weights(path, LARGEST)
    assert all(torch.equal(found[name], value) for name, value in WEIGHTS.items())
    with pytest.raises(UserError, match=r"x.pth: \d+ bytes; at most 100 are read"):
        load_foreign_weights(path, 100)


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize(
    "trap", [_Call(bytearray, 2**40), _Call(bytes, 2**40), _Call(print, "executed"), _Call(torch.zeros, 2**40)]
)
def test_memory_and_code_are_not_to_be_had(
    tmp_path: Path, frugal: Frugal, capfd: pytest.CaptureFixture[str], new: bool, trap: _Call
) -> None:
    path = tmp_path / "x.pth"
    torch.save({"a": trap}, path, _use_new_zipfile_serialization=new)
    outcome = frugal(lambda: load_foreign_weights(path, LARGEST))
    assert outcome.startswith(f"UserError: {path}: not a file of weights (it holds '")
    assert "not tensors alone" in outcome
    assert "executed" not in capfd.readouterr().out


def rebuilt(path: Path, change: Callable[[str, bytes], bytes], method: int = zipfile.ZIP_STORED) -> None:
    """``path`` with its members changed."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, change(name, content))


def test_packed_members_are_refused(tmp_path: Path, frugal: Frugal) -> None:
    """torch unpacks them, to whatever they unpack to."""
    path = tmp_path / "x.pth"
    torch.save(WEIGHTS, path)
    rebuilt(path, lambda name, content: bytes(2**24) if name.endswith("data/0") else content, zipfile.ZIP_DEFLATED)
    outcome = frugal(lambda: load_foreign_weights(path, LARGEST))
    assert "is packed; torch.save packs nothing" in outcome


def test_a_claim_of_more_than_the_file_holds_is_refused(tmp_path: Path, frugal: Frugal) -> None:
    """One float, seen as 2^40 of them with strides of 0, is small until someone copies it."""
    path = tmp_path / "x.pth"
    torch.save({"a": torch.zeros(1).expand(2**40)}, path)
    assert "a number of 41 bits" in frugal(lambda: load_foreign_weights(path, LARGEST))


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "it is empty"),
        (b"PK\x03\x04", "File is not a zip file"),
        (b"text", "its record"),
        (pickle.dumps({"a": 1}, protocol=2), "its record"),
        (pickle.dumps(2**90, protocol=2) + b"\x80\x02X\xff\xff\xff\x7f", "only 0 remain"),
        (pickle.dumps([1], protocol=4), "its record"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, frugal: Frugal, content: bytes, words: str) -> None:
    (tmp_path / "x.pth").write_bytes(content)
    outcome = frugal(lambda: load_foreign_weights(tmp_path / "x.pth", LARGEST))
    assert outcome.startswith(f"UserError: {tmp_path}/x.pth: not a file of weights (")
    assert words in outcome


def test_other_archives_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        archive.writestr("x/data/0", b"")
    with pytest.raises(UserError, match=r"not one record data\.pkl"):
        load_foreign_weights(tmp_path / "x.pth", LARGEST)
    with tarfile.open(tmp_path / "y.pth", "w") as tar:
        info = tarfile.TarInfo("../storages")
        info.size = 4
        tar.addfile(info, io.BytesIO(b"1234"))
    with pytest.raises(UserError, match=r"y.pth: not a file of weights"):
        load_foreign_weights(tmp_path / "y.pth", LARGEST)
