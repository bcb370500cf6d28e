"""The ablation's arms are recipes, and the script trains, scores, writes and goes on; all far too small to mean it."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cascaded_diffusion.data.prepare import prepare

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``modern_ablation.py`` as a module."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("modern_ablation")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 grey pictures of 10 classes at 8 and 16 pixels."""
    root = tmp_path_factory.mktemp("grey")
    labels = np.arange(80) % 10
    shade = np.random.default_rng(0).integers(0, 25, (80, 16, 16)) + 20 * labels[:, None, None]
    np.savez(root / "grey.npz", arr_0=shade.astype(np.uint8), arr_1=labels.astype(np.int64))
    prepare(str(root / "grey.npz"), root / "data", resolutions=[8, 16], val=0.25, workers=0)
    return root / "data"


@pytest.mark.parametrize("size", ["cpu", "gpu"])
def test_every_arm_is_a_recipe_that_differs_from_the_papers(size: str, script: Any) -> None:
    sized = script.SIZES[size]
    made = {name: script.recipe_of(arm, sized, sized.low, sized.high, 0) for name, arm in script.ARMS.items()}
    same = [name for name, recipe in made.items() if recipe == made["paper"] and name != "paper"]
    # These differ in which weights are sampled.
    assert same == ["autoguidance", "power-ema", "power-ema-15"]
    for name, arm in script.ARMS.items():
        for stage in (f"base{sized.low}", f"sr{sized.high}"):
            trained = made[arm.trained_as(stage)].stage(stage)
            untold = {"sampling": made["paper"].stage(stage).sampling}
            assert trained.model_copy(update=untold) == made[name].stage(stage).model_copy(update=untold)


def test_it_runs_writes_as_it_goes_and_goes_on(
    script: Any, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", str(data), "--out", str(tmp_path / "out"), "--tiny"]
    words += ["--num", "10", "--metrics", "kid", "--device", "cpu"]
    script.main([*words, "--arms", "few-steps", "autoguidance"])
    few, guided = json.loads((tmp_path / "out/results.json").read_text())["arms"].values()
    assert (few["name"], guided["name"]) == ("few-steps", "autoguidance")
    assert few["evaluations"] == few["passes"] == {"base8": 10, "sr16": 5}
    assert guided["passes"] == {"base8": 200, "sr16": 50}
    script.main([*words, "--arms", "few-steps", "all"])
    assert capsys.readouterr().out.count("done before") == 1
    rows = json.loads((tmp_path / "out/results.json").read_text())["arms"]
    assert list(rows.values())[:2] == [few, guided]
    everything = rows["all/seed0/tiny/8-16/64images/10samples"]
    assert sum(everything["evaluations"].values()) <= 150 / 5
    assert len({json.dumps(row["scores"]) for row in rows.values()}) == 3
    script.main([*words, "--arms", "few-steps", "--again", "fd"])
    again = json.loads((tmp_path / "out/results.json").read_text())["arms"]
    assert again.keys() == rows.keys()
    scores = again["few-steps/seed0/tiny/8-16/64images/10samples"]["scores"]
    assert sorted(scores) == ["fd_fashion-mnist", "kid_fashion-mnist"]
    assert scores["kid_fashion-mnist"] == few["scores"]["kid_fashion-mnist"]
    # Two arms sample one training.
    assert sorted(path.name for path in (tmp_path / "out/runs-64").iterdir()) == [
        f"{name}-{stage}-seed0" for name in ("all", "paper") for stage in ("base8", "sr16")
    ]
    assert (tmp_path / "out/results.md").read_text().count("\n") == 2 + 3
    with Image.open(tmp_path / "out/samples.png") as picture:
        assert picture.height > 3 * 3 * 16


def test_an_interruption_does_not_shorten_a_training(script: Any) -> None:
    lines = [{"images": 100, "images_per_second": 10.0}, {"images": 160, "images_per_second": 20.0}]
    assert script.seconds_of(lines) == 13
    assert script.seconds_of([]) == 0


def test_the_table_tells_mean_and_spread_over_seeds(script: Any) -> None:
    row = {"name": "a", "what": "b", "images": 10, "num": 5, "evaluations": {"x": 2}, "passes": {"x": 3}}
    rows = [{**row, "training_flops": 1.0, "scores": {"fd": value}} for value in (1.0, 2.0, 6.0)]
    assert script.table(rows).splitlines()[2] == "| a | b | 3 (1 to 6) | 2 | 3 | 1.00e+00 | 10 | 5 | 3 |"
