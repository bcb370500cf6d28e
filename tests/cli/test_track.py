"""``--track`` of ``cdm train`` and ``cdm search``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cdm = Callable[..., Any]


def _steps(folder: Path, tag: str) -> list[int]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return [event.step for event in found.Scalars(tag)]


@pytest.fixture
def train(recipe: Path, data: Path, tmp_path: Path) -> list[object]:
    """A command that trains in ``tmp_path / "run"``."""
    fixed = ["--data", data, "--out", tmp_path / "run", "--device", "cpu", "--set", "training.preview_every=null"]
    return ["train", recipe, "--stage", "base8", *fixed]


def test_a_run_can_take_up_and_leave_its_trackers(done: Cdm, train: list[object], tmp_path: Path) -> None:
    done(*train, "--max-images", 16)
    assert not (tmp_path / "run/tensorboard").exists()
    result = done(*train, "--max-images", 32, "--track", "tensorboard")
    assert result.out.startswith("base8: 32 images seen")
    done(*train, "--max-images", 48)
    done(*train, "--max-images", 64, "--track", " tensorboard ")
    assert _steps(tmp_path / "run/tensorboard", "lr") == [16, 32, 48, 64]


@pytest.mark.parametrize(
    "track, words",
    [
        ("tensorbord", "track: 'tensorbord' is not known; allowed: tensorboard, wandb, trackio; did you mean tens"),
        ("tensorboard,", "track: '' is not known"),
        ("wandb", "track: wandb is not installed; pip install 'cascaded-diffusion[wandb]'"),
    ],
)
def test_refusals(
    track: str,
    words: str,
    refused: Callable[..., str],
    train: list[object],
    cascade: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert refused(*train, "--track", track).startswith(words)
    search = ("search", cascade, "--data", data, "--stage", "sr16", "--out", tmp_path / "run", "--track", track)
    assert refused(*search).startswith(words)
    assert not (tmp_path / "run").exists()


def test_a_damaged_record_is_a_user_s_error(
    refused: Callable[..., str], done: Cdm, train: list[object], tmp_path: Path
) -> None:
    done(*train, "--max-images", 8)
    (tmp_path / "run/tracking.json").write_text("{")
    line = refused(*train, "--max-images", 16, "--track", "tensorboard")
    assert "tracking.json: not valid JSON" in line
    done(*train, "--max-images", 16)
