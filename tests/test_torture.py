"""tools/torture.py: a sample of what ``make torture`` does, and that it sees what it is there to see."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

TOOLS = Path(__file__).parents[1] / "tools"


@pytest.fixture
def cases(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The tool's module of what must hold."""
    monkeypatch.syspath_prepend(TOOLS)
    return importlib.import_module("torture_cases")


@pytest.mark.slow
def test_three_kills_lose_nothing(tmp_path: Path) -> None:
    """One each of training, sampling and searching, each started again and compared with an uninterrupted run."""
    chosen = ["--case", "train", "--case", "sample-pictures", "--case", "search"]
    options = ["--kills", "1", "--anew", "0", "--signals", "0", "--folder", str(tmp_path)]
    source = str(TOOLS.parent / "src")
    command = [sys.executable, str(TOOLS / "torture.py"), *options, *chosen]
    result = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": source}, capture_output=True, text=True, timeout=600, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    rows = [line.split() for line in result.stdout.splitlines()[-3:]]
    assert [(row[0], row[1], row[-2]) for row in rows] == [
        ("train", "1", "0"),
        ("sample-pictures", "1", "0"),
        ("search", "1", "0"),
    ]


@pytest.fixture
def lives(tmp_path: Path, tiny_runs: dict[str, Path]) -> tuple[Path, Path]:
    """Two folders that hold the same finished run."""
    for name in ("life", "reference"):
        shutil.copytree(tiny_runs["base8"], tmp_path / name / "run")
    return tmp_path / "life", tmp_path / "reference"


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _retimed(run: Path) -> None:
    path = run / "metrics.jsonl"
    path.write_text(path.read_text().replace('"images_per_second": ', '"images_per_second": 1'))


def _another_loss(run: Path) -> None:
    path = run / "metrics.jsonl"
    path.write_text(path.read_text().replace('"loss": ', '"loss": 1', 1))


LATEST = "run/checkpoints/000000000064"
HARM: list[tuple[Callable[[Path], object], list[str], list[str]]] = [
    (lambda run: None, [], []),
    (_retimed, [], []),
    (_another_loss, ["run/metrics.jsonl: differs"], []),
    (lambda run: _cut(run / "metrics.jsonl"), ["run/metrics.jsonl: differs"], []),  # half a line is dropped at a start
    (lambda run: _cut(run / "config.json"), ["run/config.json: differs"], ["run/config.json: incomplete"]),
    (lambda run: (run / "config.json").unlink(), ["run/config.json: missing"], []),
    (lambda run: (run / ".x.partial").touch(), ["run/.x.partial: left over"], []),
    (lambda run: (run / "x").touch(), ["run/x: left over"], ["run/x: a file that the uninterrupted"]),
    (
        lambda run: _cut(run / "checkpoints" / "000000000064" / "optimizer.pt"),
        [f"{LATEST}/optimizer.pt: differs"],
        ["optimizer.pt: damaged"],
    ),
    (
        lambda run: (run / "checkpoints" / "000000000064" / "manifest.json").unlink(),
        [f"{LATEST}/manifest.json: missing"],
        ["manifest.json: no such file"],
    ),
    (lambda run: (run / "checkpoints" / "new").mkdir(), ["run/checkpoints/new: left over"], ["new: not a checkpoint"]),
]


@pytest.mark.parametrize("harm, at_the_end, after_a_kill", HARM)
def test_harm_is_seen(
    harm: Callable[[Path], object],
    at_the_end: list[str],
    after_a_kill: list[str],
    cases: ModuleType,
    lives: tuple[Path, Path],
) -> None:
    life, reference = lives
    harm(life / "run")
    assert cases.differences(life, reference) == at_the_end
    found = cases.violations(life, reference)
    assert len(found) == len(after_a_kill)
    assert all(words in line for words, line in zip(after_a_kill, found, strict=True)), found


def test_a_lost_checkpoint_is_seen(cases: ModuleType, lives: tuple[Path, Path]) -> None:
    life, _ = lives
    assert cases.newest_checkpoint(life) == 64
    shutil.rmtree(life / LATEST)
    assert cases.newest_checkpoint(life) == 32
    shutil.rmtree(life / "run" / "checkpoints")
    assert cases.newest_checkpoint(life) == -1
