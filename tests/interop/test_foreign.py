"""Checkpoints of others: tensors are read, everything else is refused in one line."""

from __future__ import annotations

import contextlib
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cascaded_diffusion.errors import UserError
from cascaded_diffusion.interop.foreign import load_foreign_checkpoint

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.float16)}


def save_zip(state: Any, path: Path) -> None:
    torch.save(state, path)


def save_old(state: Any, path: Path) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("save", [save_zip, save_old, save_file])
def test_tensors_are_read(tmp_path: Path, save: Callable[[Any, Path], None]) -> None:
    save(STATE, tmp_path / "x.pt")
    found = load_foreign_checkpoint(tmp_path / "x.pt")
    assert list(found) == list(STATE)
    for name, value in STATE.items():
        assert torch.equal(found[name], value)
        assert found[name].dtype == value.dtype


class Wicked:
    """Would make a folder when unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("wicked",))


@pytest.mark.parametrize("save", [save_zip, save_old, lambda state, path: path.write_bytes(pickle.dumps(state))])
def test_nothing_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save: Callable[[Any, Path], None]) -> None:
    monkeypatch.chdir(tmp_path)
    save({"a": Wicked()}, tmp_path / "x.pt")
    with pytest.raises(
        UserError, match=r"x\.pt: not a file of weights \(it holds '(.*mkdir|STACK_GLOBAL)', not tensors alone\)"
    ):
        load_foreign_checkpoint(tmp_path / "x.pt")
    assert not (tmp_path / "wicked").exists()


def write_too_big(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(65 * 2**30)


def write_other_zip(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, a=np.zeros(3))


def write_script(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data.pkl", b"x")
        archive.writestr("m/constants.pkl", b"x")


def write_bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/data.pkl", bytes(2**20))


def write_view(path: Path) -> None:
    torch.save({"a": torch.zeros(1).expand(2**40)}, path)


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda path: None, "no such file"),
        (Path.mkdir, "it is a folder"),
        (lambda path: path.write_bytes(b""), "0 bytes"),
        (write_too_big, f"{65 * 2**30} bytes are no checkpoint; up to {64 * 2**30} are read"),
        (lambda path: path.write_text("<html>not found, sorry</html>"), "neither a PyTorch checkpoint nor"),
        (write_other_zip, "not one record data.pkl"),
        (write_script, "not a file of weights"),
        (write_bomb, "is packed; torch.save packs nothing"),
        (write_view, "a number of 41 bits"),
        (lambda path: torch.save([1, 2], path), "holds a list, not a dict"),
        (lambda path: torch.save({}, path), "a dict that is empty"),
        (lambda path: torch.save({"model": dict(STATE), "step": 3}, path), "'model' (a dict), 'step' (a int)"),
        (lambda path: torch.save({1: torch.zeros(1)}, path), "1 is not the name of a tensor"),
        (
            lambda path: torch.save({"a": torch.zeros(2, 2).to_sparse()}, path),
            "_rebuild_sparse_tensor', not tensors alone",
        ),
        (lambda path: torch.save({"a": torch.tensor([1.0, torch.nan])}, path), "a holds numbers that are not finite"),
        (lambda path: path.write_bytes(b"\xff" * 8 + b"{" + b"x" * 90), "not a readable safetensors file"),
    ],
)
def test_what_is_no_checkpoint_is_told(tmp_path: Path, write: Callable[[Path], Any], words: str) -> None:
    path = tmp_path / "x.pt"
    write(path)
    with pytest.raises(UserError) as caught:
        load_foreign_checkpoint(path)
    assert str(path) in str(caught.value)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("save", [save_zip, save_old, save_file])
def test_damage_anywhere_is_one_line(tmp_path: Path, save: Callable[[Any, Path], None]) -> None:
    path = tmp_path / "x.pt"
    save(STATE, path)
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    for cut in np.linspace(0, len(whole) - 1, 25).astype(int):
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError, match=r"x\.pt: "):
            load_foreign_checkpoint(path)
    for _ in range(100):
        damaged = bytearray(whole)
        damaged[generator.integers(len(whole))] ^= 1 << int(generator.integers(8))
        path.write_bytes(damaged)
        with contextlib.suppress(UserError):  # a flipped bit of a weight is a weight
            load_foreign_checkpoint(path)
