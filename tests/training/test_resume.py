"""A run that is killed and started again ends as one that was never interrupted, bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cascaded_diffusion.cascade.stage import StageConfig
from cascaded_diffusion.training.checkpoint import checkpoint_folders, find_checkpoint, read_checkpoint
from cascaded_diffusion.training.loop import read_metrics

Configure = Callable[..., StageConfig]
IMAGES = 160
BATCH = 8


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, base_config: Configure, sr_config: Configure) -> Path:
    """Both stages with dropout, accumulation, flips and several averages; a checkpoint after every second step."""
    changes = {
        "network": {"dropout": 0.2, "channels": 32},
        "training": {
            "images": IMAGES,
            "batch_size": BATCH,
            "micro_batch": 4,
            "decay": "cosine",
            "warmup_images": 40,
            "log_every": BATCH,
            "checkpoint_every": 2 * BATCH,
            "keep_checkpoints": 2,
        },
    }
    recorded = ("channels", "classes", "class_names", "flip", "format_version")
    stages: list[dict[str, Any]] = []
    for config in (base_config(8, **changes), sr_config(16, low=8, **changes)):
        raw = config.model_dump(mode="json")
        stages.append({key: value for key, value in raw.items() if key not in recorded})
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(json.dumps({"name": "resumed", "channels": 3, "classes": 4, "flip": True, "stages": stages}))
    return path


@pytest.fixture(scope="module")
def arguments(recipe: Path, colour_folder: Path) -> Callable[..., list[str]]:
    """``arguments(stage, run)``: the words of the training command."""

    def make(stage: str, run: Path, *more: str) -> list[str]:
        words = ["train", str(recipe), "--stage", stage, "--data", str(colour_folder), "--out", str(run)]
        return [*words, "--device", "cpu", *more]

    return make


@pytest.fixture(scope="module")
def uninterrupted(
    tmp_path_factory: pytest.TempPathFactory, commands: Any, arguments: Callable[..., list[str]]
) -> dict[str, Path]:
    """The run folder of each stage, trained in one go."""
    root = tmp_path_factory.mktemp("uninterrupted")
    for stage in ("base8", "sr16"):
        commands.start(arguments(stage, root / stage))
        assert commands.wait() == 0, commands.log.read_text()
    return {stage: root / stage for stage in ("base8", "sr16")}


def _assert_same_end(run: Path, other: Path) -> None:
    folder, expected = find_checkpoint(run), find_checkpoint(other)
    assert folder.name == expected.name
    assert read_checkpoint(folder)["images"] == IMAGES
    names = {path.name for path in folder.iterdir()}
    assert names == {"manifest.json", "optimizer.pt", "model.safetensors", "ema-16.safetensors", "ema-64.safetensors"}
    for name in names - {"manifest.json", "optimizer.pt"}:
        left, right = load_file(folder / name), load_file(expected / name)
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left), name
    left_state, right_state = (torch.load(place / "optimizer.pt", weights_only=True) for place in (folder, expected))
    assert left_state["state"].keys() == right_state["state"].keys()
    assert left_state["param_groups"] == right_state["param_groups"]
    for index, moments in left_state["state"].items():
        for key, value in moments.items():
            assert torch.equal(value, right_state["state"][index][key]), (index, key)


def _assert_metrics_in_order(run: Path) -> None:
    """Every step's line once and in order: nothing twice, nothing lost."""
    assert [line["images"] for line in read_metrics(run)] == list(range(BATCH, IMAGES + 1, BATCH))


DEATHS = [
    ("cascaded_diffusion.training.run:write_json", 1),  # recording the settings
    ("cascaded_diffusion.files:os.replace", 1),  # settings whole, not yet under their name
    ("torch.optim.adam:Adam.step", 2),  # before the first checkpoint
    ("cascaded_diffusion.training.checkpoint:write_tensors", 2),  # weights written, no average
    ("cascaded_diffusion.training.checkpoint:torch.save", 2),  # the second checkpoint, averages written
    ("cascaded_diffusion.training.checkpoint:write_json", 1),  # all but the manifest written
    ("cascaded_diffusion.training.checkpoint:Path.rename", 1),  # all written, not yet under its name
    ("cascaded_diffusion.training.checkpoint:sync_folder", 2),  # under its name, older ones not pruned
    ("cascaded_diffusion.training.checkpoint:shutil.rmtree", 3),  # pruning, renamed but not deleted
    ("cascaded_diffusion.training.run:MetricsLog.write", 2),  # a step done and not logged
    ("cascaded_diffusion.training.ema:Averages.update", 3),  # weights stepped, averages not
]


@pytest.mark.parametrize("stage, deaths", [("base8", DEATHS), ("sr16", DEATHS[2:7])], ids=["base8", "sr16"])
def test_killed_at_every_kind_of_moment(
    stage: str,
    deaths: list[tuple[str, int]],
    commands: Any,
    arguments: Callable[..., list[str]],
    uninterrupted: dict[str, Path],
    tmp_path: Path,
) -> None:
    """SIGKILL inside each function that changes the run folder or the state, one after the other in one run."""
    run = tmp_path / stage
    killed = 0
    for death in deaths:
        commands.start(arguments(stage, run), die_at=death)
        status = commands.wait()
        killed += status == -signal.SIGKILL
        assert status in (0, -signal.SIGKILL), commands.log.read_text()
        for folder in checkpoint_folders(run):
            read_checkpoint(folder)
    assert killed >= len(deaths) - 1
    commands.start(arguments(stage, run))
    assert commands.wait() == 0, commands.log.read_text()
    _assert_same_end(run, uninterrupted[stage])
    _assert_metrics_in_order(run)
    assert not list((run / "checkpoints").glob(".*"))


def _wait_for(happened: Callable[[], bool], pid: int) -> None:
    deadline = time.monotonic() + 60
    while not happened() and time.monotonic() < deadline:
        if not Path(f"/proc/{pid}/stat").exists():
            return
        time.sleep(0.001)


def test_killed_from_outside(
    commands: Any, arguments: Callable[..., list[str]], uninterrupted: dict[str, Path], tmp_path: Path
) -> None:
    """SIGKILL from another process, at moments that nobody chose: while a checkpoint is written, and in between."""
    run = tmp_path / "base8"
    generator = random.Random(4)
    killed = 0
    for attempt in range(4):
        seen = len(read_metrics(run))
        pid = commands.start(arguments("base8", run))
        if attempt % 2:
            _wait_for(lambda: bool(list(run.glob("checkpoints/.writing-*"))), pid)
        else:
            _wait_for(lambda: len(_whole_lines(run)) > seen + 1, pid)  # noqa: B023 - used at once
            time.sleep(generator.uniform(0, 0.03))
        os.kill(pid, signal.SIGKILL)
        killed += commands.wait() == -signal.SIGKILL
    assert killed >= 3
    commands.start(arguments("base8", run))
    assert commands.wait() == 0, commands.log.read_text()
    _assert_same_end(run, uninterrupted["base8"])
    _assert_metrics_in_order(run)


def _whole_lines(run: Path) -> list[bytes]:
    path = run / "metrics.jsonl"
    return (
        [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")] if path.exists() else []
    )


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_save_and_leave(
    number: int,
    status: int,
    commands: Any,
    arguments: Callable[..., list[str]],
    uninterrupted: dict[str, Path],
    tmp_path: Path,
) -> None:
    run = tmp_path / "base8"
    pid = commands.start(arguments("base8", run, "--set", f"training.checkpoint_every={10 * IMAGES}"))
    _wait_for(lambda: len(_whole_lines(run)) > 2, pid)
    os.kill(pid, number)
    assert commands.wait() == status, commands.log.read_text()
    (folder,) = checkpoint_folders(run)
    assert 2 * BATCH < int(folder.name) < IMAGES
    assert len(_whole_lines(run)) == int(folder.name) // BATCH
    commands.start(arguments("base8", run, "--allow-changes"))
    assert commands.wait() == 0, commands.log.read_text()
    _assert_same_end(run, uninterrupted["base8"])
    _assert_metrics_in_order(run)


def test_stopping_at_max_images_and_going_on_changes_nothing(
    commands: Any, arguments: Callable[..., list[str]], uninterrupted: dict[str, Path], tmp_path: Path
) -> None:
    """Rounded up to a whole batch; the learning rate goes on where it was."""
    run = tmp_path / "sr16"
    for most, reached in (("20", 24), ("20", 24), ("100", 104), (str(10 * IMAGES), IMAGES)):
        commands.start(arguments("sr16", run, "--max-images", most))
        assert commands.wait() == 0, commands.log.read_text()
        assert int(find_checkpoint(run).name) == reached
    _assert_same_end(run, uninterrupted["sr16"])
    _assert_metrics_in_order(run)


def test_other_settings_in_the_same_folder_are_refused(
    commands: Any, arguments: Callable[..., list[str]], uninterrupted: dict[str, Path], tmp_path: Path
) -> None:
    commands.start(arguments("base8", uninterrupted["base8"], "--set", "training.learning_rate=0.5"))
    assert commands.wait() == 2
    last = commands.log.read_text().splitlines()[-1]
    assert "training.learning_rate: 0.001 -> 0.5" in last
    assert last.startswith("cdm: ")
