"""``cdm`` itself: help, exit statuses, signals."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cascaded_diffusion.errors import UserError

Done = Callable[..., Any]
COMMANDS = (
    *("demo", "recipe", "prepare", "plan", "train", "assemble", "sample"),
    *("search", "evaluate", "report", "import", "export", "ui", "push", "train-classifier"),
)


def test_help_names_every_command(done: Done) -> None:
    lines = done("--help").out.splitlines()
    commands = lines[lines.index("Commands:") + 1 :]
    assert [line.split()[0] for line in commands] == list(COMMANDS)
    assert not any(line.endswith("...") for line in commands)
    assert done().out == done("-h").out == done("--help").out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(done: Done, command: str) -> None:
    result = done(command, "--help")
    assert result.out.startswith(f"Usage: cdm {command}")
    assert result.err == ""


def test_help_names_every_option_of_the_contract(done: Done) -> None:
    options = {
        "prepare": "--resolutions --val --limit --skip-bad --allow-upscale --workers",
        "plan": "--gpus --gpu --batch-size --mfu --price --json",
        "train": "--stage --data --out --set --max-images --max-seconds --device --allow-changes",
        "assemble": "--checkpoint --ema --no-truncated",
        "sample": "--out --classes --num --per-class --seed --batch-size --device --rgb --steps --sampler "
        "--augmentation --s --guidance --grid --stages --until --from-images --start-stage",
        "search": "--data --stage --s --augmentation --steps --guidance --num --out --dry-run",
        "evaluate": "--data --split --metrics --features --num --all-checkpoints --json",
        "report": "--out",
        "demo": "--out",
        "recipe": "--list",
    }
    for command, names in options.items():
        text = done(command, "--help").out.split()
        assert [name for name in names.split() if name not in text] == []


@pytest.mark.parametrize(
    "error, status, line",
    [
        (UserError("x: 3 is not allowed;\n give 4"), 2, "x: 3 is not allowed; give 4"),
        (RuntimeError("lost\nthe thread"), 1, "lost the thread (cdm --traceback ... shows where)"),
        (ValueError(), 1, "ValueError: ValueError (cdm --traceback ... shows where)"),
        (MemoryError(), 1, "MemoryError: MemoryError (cdm --traceback ... shows where)"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/x"),
            2,
            "Permission denied: /x",
        ),
        (AssertionError("no"), 1, "AssertionError: no (cdm"),
    ],
)
def test_errors_are_one_line(
    cdm: Done, monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int, line: str
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("cascaded_diffusion.recipes.recipe.load_recipe", fail)
    result = cdm("plan", "demo")
    assert result.status == status
    assert result.err.startswith(f"cdm: {line}")
    assert result.err.count("\n") == 1


def test_interrupted(cdm: Done, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cascaded_diffusion.recipes.recipe.load_recipe", stop)
    result = cdm("plan", "demo")
    assert result.status == 130
    assert "Traceback" not in result.err


def test_traceback_on_request(cdm: Done, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("deep inside")

    monkeypatch.setattr("cascaded_diffusion.recipes.recipe.load_recipe", fail)
    with pytest.raises(RuntimeError, match="deep inside"):
        cdm("--traceback", "plan", "demo")


def test_a_full_disk_leaves_no_samples(
    cdm: Done, cascade: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "x.npz").write_text("the last one")
    monkeypatch.setattr(os, "fsync", full)
    result = cdm("sample", cascade, "--out", tmp_path / "x.npz", "--until", "base8")
    assert result.status == 1
    assert result.err.splitlines()[-1].startswith("cdm: OSError: [Errno 28] No space left on device")
    # What was sampled is kept for the same command to go on from.
    assert {path.name for path in tmp_path.iterdir()} <= {"x.npz", ".x.npz.sampling"}
    assert (tmp_path / "x.npz").read_text() == "the last one"


def test_a_read_only_place_is_found_before_the_work(
    cdm: Done, cascade: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*arguments: object, **options: object) -> None:
        raise AssertionError("sampled although the result cannot be written")

    monkeypatch.setattr("cascaded_diffusion.cascade.chain.Cascade.sample", work)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    result = cdm("sample", cascade, "--out", tmp_path / "x.npz")
    assert result.status == 2
    assert f"--out: {tmp_path / 'x.npz'} cannot be made, for nothing may be written to {tmp_path}" in result.err
    assert result.err.count("\n") == 1


def test_a_closed_pipe_is_no_traceback(cdm_process: tuple[list[str], dict[str, str]]) -> None:
    program, environment = cdm_process
    command = [*program, "recipe", "imagenet-256"]
    ours, theirs = os.pipe()
    os.close(ours)
    run = subprocess.run(command, env=environment, stdout=theirs, stderr=subprocess.PIPE, text=True, check=False)
    os.close(theirs)
    assert run.returncode == 1
    assert "Traceback" not in run.stderr


LOUD = "from cascaded_diffusion.cli import app, progress; progress.PLAIN_INTERVAL_S = 0.0; app.main()"


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_while_sampling(
    cdm_process: tuple[list[str], dict[str, str]], cascade: Path, tmp_path: Path, number: int, status: int
) -> None:
    _, environment = cdm_process
    options = ["sample", cascade, "--out", tmp_path / "out/x.npz", "--num", 100_000, "--device", "cpu"]
    arguments = [sys.executable, "-c", LOUD, *map(str, options)]
    with subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("samples: ")
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == status
    assert "Traceback" not in errors
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {".x.npz.sampling"}
