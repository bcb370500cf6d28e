"""Tensors on disk, and what a failing disk makes of them."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from cascaded_diffusion import writing
from cascaded_diffusion.writing import write_tensors


def test_what_is_written_is_read(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).reshape(2, 3).t(), "b": torch.tensor(7)}
    umask = os.umask(0o027)
    try:
        write_tensors(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    finally:
        os.umask(umask)
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], value) for name, value in tensors.items())
    assert (tmp_path / "x.safetensors").stat().st_mode & 0o777 == 0o640


def test_a_full_disk_is_told_in_its_proper_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise SafetensorError(f"I/O error: No space left on device (os error {errno.ENOSPC})")

    monkeypatch.setattr(writing, "save_file", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_tensors({}, tmp_path / "x.safetensors")
    assert caught.value.errno == errno.ENOSPC


def test_other_errors_stay_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def odd(*args: object, **kwargs: object) -> None:
        raise SafetensorError("a header of no kind")

    monkeypatch.setattr(writing, "save_file", odd)
    with pytest.raises(SafetensorError, match="no kind"):
        write_tensors({}, tmp_path / "x.safetensors")
