"""``cdm train``: its options, resuming, and being stopped."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cascaded_diffusion.cli.train import _Watcher
from cascaded_diffusion.training.loop import Progress

Done = Callable[..., Any]


def checkpoints(run: Path) -> list[int]:
    """All that ``checkpoints/`` holds; each name must be a number."""
    folder = run / "checkpoints"
    return sorted(int(path.name) for path in folder.iterdir()) if folder.is_dir() else []


@pytest.fixture
def train(done: Done, recipe: Path, data: Path, tmp_path: Path) -> Callable[..., Any]:
    """``train("--max-images", 8)``: train base8 in ``tmp_path / "run"``."""

    def run(*options: object) -> Any:
        fixed = ("--stage", "base8", "--data", data, "--out", tmp_path / "run", "--device", "cpu")
        return done("train", recipe, *fixed, *options)

    return run


def test_run_folder(runs: Path) -> None:
    run = runs / "base8"
    assert {path.name for path in run.iterdir()} - {".lock"} == {
        "config.json",
        "metrics.jsonl",
        "previews",
        "checkpoints",
    }
    assert checkpoints(run) == [16, 32]
    assert [path.name for path in sorted((run / "previews").iterdir())] == ["000000000016.png", "000000000032.png"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["images"] for line in lines] == [16, 32]
    checkpoint = run / "checkpoints/000000000032"
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    assert sorted(manifest["files"]) == [
        "ema-16.safetensors",
        "ema-4.safetensors",
        "model.safetensors",
        "optimizer.pt",
    ]


def test_what_is_recorded_of_the_augmentation(runs: Path) -> None:
    noise = json.loads((runs / "sr16/config.json").read_text())["conditioning"]
    base = json.loads((runs / "base8/config.json").read_text())
    assert (noise["augmentation"], noise["s_max"], noise["low_resolution"]) == ("gaussian", 0.8, 8)
    assert noise["low_schedule"] == base["diffusion"]["noise_schedule"]
    assert noise["low_schedule"]["timesteps"] == 20
    blur = json.loads((runs / "sr32/config.json").read_text())["conditioning"]
    assert (blur["augmentation"], blur["low_resolution"], blur["low_schedule"]) == ("blur", 16, None)
    assert (blur["blur_kernel"], blur["blur_sigma"]) == (3, [0.4, 0.6])


def test_resume_is_the_same_command_and_bit_exact(train: Done, runs: Path, tmp_path: Path) -> None:
    train("--max-images", 16)
    assert checkpoints(tmp_path / "run") == [16]
    result = train("--max-images", 32)
    assert "base8: 32 images seen; checkpoint" in result.out
    for name in ("model", "ema-16", "ema-4"):
        path = f"checkpoints/000000000032/{name}.safetensors"
        assert (tmp_path / "run" / path).read_bytes() == (runs / "base8" / path).read_bytes()
    before = (tmp_path / "run/metrics.jsonl").read_text()
    assert "32 images seen" in train("--max-images", 32).out
    assert (tmp_path / "run/metrics.jsonl").read_text() == before


def test_max_images_is_rounded_up_to_a_whole_batch(train: Done, tmp_path: Path) -> None:
    assert "base8: 24 images seen" in train("--max-images", 17).out
    assert checkpoints(tmp_path / "run") == [16, 24]
    rates = [json.loads(line)["lr"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert rates == [1e-3, 1e-3]


def test_the_recipe_s_length_ends_the_run(train: Done, tmp_path: Path) -> None:
    assert "base8: 24 images seen" in train("--set", "training.images=20", "--max-images", 1000).out


def test_max_seconds(train: Done, tmp_path: Path) -> None:
    train("--set", "training.images=1_000_000", "--max-seconds", 0.5)
    (last,) = [int(folder) for folder in checkpoints(tmp_path / "run")][-1:]
    assert 0 < last < 1_000_000
    train("--set", "training.images=1_000_000", "--max-seconds", 0)
    assert checkpoints(tmp_path / "run")[-1] == last + 8  # a run that is resumed again and again must get on


def test_set(train: Done, tmp_path: Path) -> None:
    train("--set", "training.batch_size=4", "--set", "network.channels=64", "--set", "flip=true", "--max-images", 4)
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert (config["training"]["batch_size"], config["network"]["channels"], config["flip"]) == (4, 64, True)
    assert checkpoints(tmp_path / "run") == [4]


def test_allow_changes(train: Done, refused: Callable[..., str], recipe: Path, data: Path, tmp_path: Path) -> None:
    train("--max-images", 16)
    changes = ("--set", "training.learning_rate=5e-4", "--set", "training.ema_half_lives=[16,8]")
    fixed = ("--stage", "base8", "--data", data, "--out", tmp_path / "run", "--device", "cpu", "--max-images", 32)
    line = refused("train", recipe, *fixed, *changes)
    assert "training.learning_rate: 0.001 -> 0.0005" in line
    assert checkpoints(tmp_path / "run") == [16]
    train("--max-images", 32, "--allow-changes", *changes)
    assert json.loads((tmp_path / "run/config.json").read_text())["training"]["learning_rate"] == 5e-4
    assert checkpoints(tmp_path / "run") == [16, 32]
    assert (tmp_path / "run/checkpoints/000000000032/ema-8.safetensors").exists()


def test_a_setting_of_one_stage_leaves_the_others(done: Done, recipe: Path, data: Path, tmp_path: Path) -> None:
    schedule = "{noise_schedule: {kind: cosine, timesteps: 20}, prediction: v}"
    continuous = schedule.replace("20", "null")
    text = recipe.read_text().replace(schedule, f"&shared {schedule}", 1).replace(continuous, "*shared")
    (tmp_path / "shared.yaml").write_text(text)
    options = ("--stage", "sr16", "--data", data, "--out", tmp_path / "run", "--device", "cpu", "--max-images", 8)
    done("train", tmp_path / "shared.yaml", *options, "--set", "diffusion.noise_schedule.timesteps=30")
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["diffusion"]["noise_schedule"]["timesteps"] == 30
    assert config["conditioning"]["low_schedule"]["timesteps"] == 20


def test_plain_lines_of_progress(train: Done) -> None:
    lines = train("--max-images", 32).err.splitlines()
    assert [line.partition(",")[0] for line in lines] == [
        "base8: 16 images",
        "base8: 32 of 32",
        "base8: 32 images",
    ]
    assert "loss" in lines[0]
    assert "images/s" in lines[0]


def test_full_disk(
    cdm: Done, recipe: Path, data: Path, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "base8"
    shutil.copytree(runs / "base8", run)

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("torch.save", full)
    options = ("--stage", "base8", "--data", data, "--out", run, "--device", "cpu")
    result = cdm("train", recipe, *options)
    assert result.status == 1
    assert result.err.splitlines()[-1] == (
        "cdm: base8: the state after 64 images could not be saved (No space left on device); the checkpoint at 32 "
        "images stands, 32 images of training are not in it (cdm --traceback ... shows where)"
    )
    names = sorted(folder.name for folder in (run / "checkpoints").iterdir() if not folder.name.startswith("."))
    assert names == ["000000000016", "000000000032"]
    with pytest.raises(RuntimeError, match="No space left"):
        cdm("--traceback", "train", recipe, *options)
    monkeypatch.undo()
    assert cdm("train", recipe, *options).status == 0
    assert checkpoints(run) == [32, 48, 64]


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_save(
    cdm_process: tuple[list[str], dict[str, str]],
    recipe: Path,
    data: Path,
    done: Done,
    tmp_path: Path,
    number: int,
    status: int,
) -> None:
    program, environment = cdm_process
    run = tmp_path / "run"
    options = ["train", recipe, "--stage", "base8", "--data", data, "--out", run, "--device", "cpu"]
    changes = ["--set", "training.images=1_000_000", "--set", "training.checkpoint_every=1_000_000"]
    arguments = [*program, *map(str, options), *changes]
    with subprocess.Popen(
        arguments, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("base8: 16 images, loss ")
        process.send_signal(number)
        out, errors = process.communicate(timeout=60)
    assert process.returncode == status, errors
    assert "Traceback" not in errors
    assert errors.endswith("stopped by a signal with everything saved; the same command goes on\n")
    (saved,) = checkpoints(run)
    assert saved >= 16
    assert f"base8: {saved:,} images seen" in out
    done(*options, *changes, "--max-images", saved + 8)
    assert checkpoints(run) == [saved, saved + 8]


def test_a_packaged_recipe_wins_and_says_so(cdm: Done, here: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "demo").mkdir()
    result = cdm("train", "demo", "--stage", "base8", "--data", data, "--out", "run")
    assert result.status == 2
    assert result.err.startswith("demo: the packaged recipe is used, not what has this name here (write ./demo for")
    assert "classes: the recipe says 10, the data has 3" in result.err


def test_as_a_module(cdm_process: tuple[list[str], dict[str, str]]) -> None:
    program, environment = cdm_process
    assert program[0] == sys.executable
    run = subprocess.run([*program, "train", "--help"], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.startswith("Usage: cdm train")


class _Display:
    """Keeps the lines that a person would see."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def begin(self, *_: object) -> None: ...

    def advance(self, *_: object) -> None: ...

    def note(self, line: str) -> None:
        self.lines.append(line)


def test_waiting_for_data_is_shown_and_warned_of_once() -> None:
    display = _Display()
    watch = _Watcher(display, "base8")  # type: ignore[arg-type]  # of a display, it uses these three
    for images, wait, speed in ((64, 0.5, 100.0), (1064, 0.001, 100.0), (2064, 0.031, 100.0), (3064, 0.9, 100.0)):
        told = {"images": images, "loss": 1.0, "lr": 1e-3, "images_per_second": speed, "data_wait": wait}
        watch(Progress(images, 4000, told))
    shares = [line.rpartition(", ")[2] for line in display.lines if "images/s" in line]
    assert shares == [f"{share} waiting for data" for share in ("50.0%", "0.1%", "3.1%", "90.0%")]
    (warning,) = (line for line in display.lines if "--data-workers" in line)
    assert warning.startswith("base8: 3.1% of the time went into waiting for data, more than 2%")


def test_attention_that_would_not_fit_is_told_before_the_run(
    train: Done, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("--set", "network.attention=[4]", "--max-images", 16)
    monkeypatch.setattr("cascaded_diffusion.memory.total_memory", lambda device: 1000)
    lines = train(*settings).err.splitlines()
    assert lines[0].startswith("base8: attention at 4 pixels would not fit: for ")
    monkeypatch.setattr("cascaded_diffusion.memory.total_memory", lambda device: 2**40)
    assert "would not fit" not in train(*settings, "--allow-changes").err
