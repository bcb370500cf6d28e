"""The device that a command is to work on."""

from __future__ import annotations

import pytest
import torch

from cascaded_diffusion import memory, precision
from cascaded_diffusion.cli.options import chosen_device
from cascaded_diffusion.errors import UserError


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    calls: list[str] = []
    monkeypatch.setattr(memory, "keep_freed", lambda: calls.append("keep"))
    return calls


def test_on_a_cpu_freed_memory_is_kept(told: list[str]) -> None:
    assert chosen_device("cpu") == torch.device("cpu")
    assert told == ["keep"]


def test_elsewhere_it_is_left_alone(told: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "pick_device", lambda name: torch.device("cuda"))
    assert chosen_device(None) == torch.device("cuda")
    assert told == []


def test_one_that_is_not_there_is_refused(told: list[str]) -> None:
    with pytest.raises(UserError, match="--device: 'abacus' is not available here"):
        chosen_device("abacus")
    assert told == []
