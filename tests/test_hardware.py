"""GPUs by name."""

from __future__ import annotations

import types

import pytest
import torch

from cascaded_diffusion.errors import UserError
from cascaded_diffusion.hardware import GPUS, detect_gpu, find_gpu


def test_known_and_given() -> None:
    assert (find_gpu("h100").memory, find_gpu("h100").peak) == (80 * 10**9, 989e12)
    assert (find_gpu("24:165.5").memory, find_gpu("24:165.5").peak) == (24 * 2**30, 165.5e12)
    assert all(gpu.source and gpu.name == name for name, gpu in GPUS.items())


@pytest.mark.parametrize("name", ["h900", "0:1", "24:0", "24", "24:x", "1e3:5", ""])
def test_unknown(name: str) -> None:
    with pytest.raises(UserError, match=r"--gpu: .* is not known; allowed: a100, .* such as 24:165"):
        find_gpu(name)


@pytest.mark.parametrize(
    "told, name",
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-40GB", "a100"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA A100 80GB PCIe", "a100"),
        ("NVIDIA GeForce GTX 1080", None),
        ("NVIDIA RTX A1000 Laptop GPU", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA L40", None),
        ("NVIDIA A10G", None),
        ("NVIDIA H100 PCIe", None),
    ],
)
def test_the_gpu_at_hand(monkeypatch: pytest.MonkeyPatch, told: str, name: str | None) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: told)
    facts = types.SimpleNamespace(total_memory=123)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: facts)
    found = detect_gpu()
    assert (None if found is None else found.name) == name
    assert found is None or (found.memory, found.peak) == (123, GPUS[found.name].peak)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert detect_gpu() is None
