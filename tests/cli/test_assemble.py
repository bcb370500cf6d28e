"""``cdm assemble``: what it takes, chooses and refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

Done = Callable[..., Any]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def provenance(cascade: Path) -> list[dict[str, Any]]:
    return [stage["provenance"] for stage in json.loads((cascade / "cascade.json").read_text())["stages"]]


def test_a_prefix_is_a_cascade(done: Done, runs: Path, tmp_path: Path) -> None:
    result = done("assemble", tmp_path / "out", runs / "base8", runs / "sr16")
    assert result.out == f"{tmp_path / 'out'}: base8 -> sr16\n"
    done("sample", tmp_path / "out", "--out", tmp_path / "x.npz")
    assert np.load(tmp_path / "x.npz")["arr_0"].shape == (3, 16, 16, 1)


@pytest.mark.parametrize("ema, name", [(None, "ema-16"), ("16", "ema-16"), ("4", "ema-4"), ("raw", "model")])
def test_ema(done: Done, runs: Path, tmp_path: Path, ema: str | None, name: str) -> None:
    done("assemble", tmp_path / "out", runs / "base8", *(() if ema is None else ("--ema", ema)))
    expected = load_file(runs / f"base8/checkpoints/000000000032/{name}.safetensors")
    found = weights(tmp_path / "out/base8")
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    assert provenance(tmp_path / "out") == [{"images": 32, "ema": ema or "16"}]
    others = {"ema-16", "ema-4", "model"} - {name}
    for other in others:
        different = load_file(runs / f"base8/checkpoints/000000000032/{other}.safetensors")
        assert not all(torch.equal(found[key], value) for key, value in different.items())


def test_checkpoint(done: Done, runs: Path, tmp_path: Path) -> None:
    done("assemble", tmp_path / "out", runs / "base8", runs / "sr16", "--checkpoint", "16", "--ema", "raw")
    for stage in ("base8", "sr16"):
        expected = load_file(runs / stage / "checkpoints/000000000016/model.safetensors")
        assert equal(weights(tmp_path / "out" / stage), expected)
    assert provenance(tmp_path / "out") == [{"images": 16, "ema": "raw"}] * 2


def test_half(done: Done, runs: Path, tmp_path: Path) -> None:
    done("assemble", tmp_path / "half", runs / "base8", "--half")
    done("assemble", tmp_path / "full", runs / "base8")
    half, full = weights(tmp_path / "half/base8"), weights(tmp_path / "full/base8")
    assert {value.dtype for value in half.values()} == {torch.float16}
    assert {value.dtype for value in full.values()} == {torch.float32}
    for name, value in full.items():
        torch.testing.assert_close(half[name].float(), value, atol=1e-3, rtol=1e-3)
    done("sample", tmp_path / "half", "--out", tmp_path / "x.npz")


def test_parts_of_another_cascade_and_stage_folders(done: Done, cascade: Path, tmp_path: Path) -> None:
    done("assemble", tmp_path / "out", cascade / "base8", cascade / "sr16")
    for stage in ("base8", "sr16"):
        assert equal(weights(tmp_path / "out" / stage), weights(cascade / stage))
    assert provenance(tmp_path / "out") == provenance(cascade)[:2]
    (cascade / "sr16").resolve()
    alone = tmp_path / "alone"
    alone.mkdir()
    for name in ("config.json", "model.safetensors"):
        (alone / name).write_bytes((cascade / "base8" / name).read_bytes())
    done("assemble", tmp_path / "second", alone)
    assert (tmp_path / "second/base8/config.json").exists()
    assert provenance(tmp_path / "second") == [{}]


def test_settings_of_a_cascade_travel_with_its_parts(done: Done, broken: Path, tmp_path: Path) -> None:
    manifest = json.loads((broken / "cascade.json").read_text())
    manifest["stages"][1]["sampling"] |= {"steps": 7, "s": 0.3}
    (broken / "cascade.json").write_text(json.dumps(manifest))
    done("assemble", tmp_path / "out", broken / "base8", broken / "sr16")
    result = done("sample", tmp_path / "out", "--out", tmp_path / "x.npz")
    assert "sr16 ddim 7 steps, nontruncated s=0.3" in result.out


@pytest.fixture(scope="session")
def other_base(tmp_path_factory: pytest.TempPathFactory, done: Done, recipe: Path, data: Path) -> Path:
    """A run of base8 with another noise schedule."""
    run = tmp_path_factory.mktemp("other") / "base8"
    options = ("--stage", "base8", "--data", data, "--out", run, "--device", "cpu", "--max-images", 8)
    done("train", recipe, *options, "--set", "diffusion.noise_schedule.timesteps=30")
    return run


def test_another_schedule(
    done: Done, refused: Callable[..., str], runs: Path, other_base: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    line = refused("assemble", out, other_base, runs / "sr16")
    assert "sr16" in line
    assert "cosine T=20" in line
    assert "base8" in line
    assert "cosine T=30" in line
    assert "--no-truncated" in line
    assert not out.exists()
    done("assemble", out, other_base, runs / "sr16", "--no-truncated")
    assert [stage["truncated"] for stage in json.loads((out / "cascade.json").read_text())["stages"]] == [False, False]
    line = refused("sample", out, "--out", tmp_path / "x.npz", "--augmentation", "truncated")
    assert "augmentation: truncated is not available, sr16 was assembled with --no-truncated" in line
    done("sample", out, "--out", tmp_path / "x.npz", "--augmentation", "nontruncated", "--s", "0.4")
    assert np.load(tmp_path / "x.npz")["arr_0"].shape == (3, 16, 16, 1)


def test_classes_must_agree(
    refused: Callable[..., str], runs: Path, relabelled: Callable[..., Path], tmp_path: Path
) -> None:
    other = relabelled(class_names=("Bag", "Hat", "Boat"))
    line = refused("assemble", tmp_path / "out", runs / "base8", other / "sr16")
    assert "sr16 has 3 classes" in line
    assert "base8 has 3 classes" in line


def test_out_may_be_an_empty_folder(done: Done, runs: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    done("assemble", tmp_path / "out", runs / "base8")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["base8", "cascade.json"]


def test_nothing_is_left_of_a_failure(cdm: Done, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cascaded_diffusion.cascade.stage.write_json", full)
    result = cdm("assemble", tmp_path / "out", runs / "base8")
    assert result.status == 1
    assert result.err.count("\n") == 1
    assert result.err.startswith("cdm: OSError: [Errno 28] No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_a_guide_comes_with_a_weight(done: Done, refused: Any, runs: Path, tmp_path: Path) -> None:
    guide = f"base8={runs / 'base8'}@16"
    done("assemble", tmp_path / "out", runs / "base8", runs / "sr16", "--guide", guide)
    entry = json.loads((tmp_path / "out/cascade.json").read_text())["stages"][0]
    assert entry["sampling"]["guide"] == 2.0
    expected = load_file(runs / "base8/checkpoints/000000000016/ema-16.safetensors")
    found = weights(tmp_path / "out/base8/guide")
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    # A sub-folder takes its guide along, and its weight; --set changes that.
    done("assemble", tmp_path / "again", tmp_path / "out/base8", "--set", "base8.guide=1.4")
    entry = json.loads((tmp_path / "again/cascade.json").read_text())["stages"][0]
    assert entry["sampling"]["guide"] == 1.4
    assert equal(weights(tmp_path / "again/base8/guide"), found)
    done("sample", tmp_path / "again", "--out", tmp_path / "guided.npz", "--num", "3")
    done("sample", tmp_path / "again", "--out", tmp_path / "plain.npz", "--num", "3", "--set", "base8.guide=1")
    assert not np.array_equal(np.load(tmp_path / "guided.npz")["arr_0"], np.load(tmp_path / "plain.npz")["arr_0"])
