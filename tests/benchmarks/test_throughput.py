"""The speed benchmarks run from end to end at a tiny size, and write as they go."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def run(name: str, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    importlib.import_module(name).main()


def test_throughput(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    shapes = ["sr32"]
    options = ["--tiny", "--steps", "1", "--dtype", "fp32", "--json", str(out)]
    run("throughput", *options, "--shape", *shapes, monkeypatch=monkeypatch)
    report = json.loads(out.read_text())
    assert all(value > 0 for value in report["limits"].values())
    assert {result["shape"] for result in report["results"]} == set(shapes)
    assert all(result["seconds"] > 0 for result in report["results"])
    told = capsys.readouterr().out
    for variant in ("ours plain", "ours fast"):
        assert told.count(f"| {variant} |") == 2 * len(shapes)
    assert told.count("| arithmetic |") + told.count("| memory |") == len(shapes)


def test_both_kinds_have_the_same_number_of_parameters() -> None:
    pytest.importorskip("diffusers")
    models = importlib.import_module("throughput_models")
    for name in ("cpu64", "sr256", "sr32"):
        shape = models.SHAPES[name].tiny()
        ours, theirs = (
            sum(parameter.numel() for parameter in build(shape).parameters())
            for build in (models.build_ours, models.build_theirs)
        )
        # Ours learns s too, where a stage has it; biases and shortcuts differ by less.
        assert ours == pytest.approx(theirs, rel=0.04 if shape.s else 0.02)


def test_loss_parity(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--width", "64", "--side", "16", "--batch", "1", "--steps", "2"]
    run("loss_parity", *options, "--options", "fast_path", "all", monkeypatch=monkeypatch)
    told = capsys.readouterr().out
    for option in ("fast_path", "all"):
        assert f"| {option} |" in told
    # One and the same seed: the options change rounding alone.
    assert all(float(line.split("|")[4]) < 1e-4 for line in told.splitlines() if line.startswith("| fast"))


def test_norm_speed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run("norm_speed", "--tiny", "--repeats", "1", "--threads", str(torch.get_num_threads()), monkeypatch=monkeypatch)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| 2 x 8 x 2 x 2 |")]
    assert [row.split(" | ")[1] for row in rows] == ["fp32", "bf16"]


def test_bf16_on_a_cpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run("bf16_cpu", "--tiny", "--repeats", "1", "--threads", str(torch.get_num_threads()), monkeypatch=monkeypatch)
    rows = [line for line in capsys.readouterr().out.splitlines() if " x 2 x 2 " in line or " x 2 |" in line]
    assert [row.split(",")[0] for row in rows] == ["| attention", "| 3x3 convolution"]
