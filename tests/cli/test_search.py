"""``cdm search``: what it prints and writes, and what it refuses before any work."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cascaded_diffusion.cascade import find, search, search_passes
from cascaded_diffusion.cascade.chain import Cascade
from cascaded_diffusion.evaluation.classifier import Classifier, ClassifierConfig, save_classifier

Cdm = Callable[..., Any]


@pytest.fixture(scope="module")
def eye(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of the data's classes that has learned nothing; its features differ all the same."""
    folder = tmp_path_factory.mktemp("classifier") / "eye"
    config = ClassifierConfig(
        architecture="small", resolution=8, channels=1, classes=3, class_names=("Bag", "Hat", "Shoe")
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_classifier(Classifier(config).eval(), folder)
    return folder


@pytest.fixture
def own(cascade: Path, here: Path) -> Path:
    """A copy of the cascade, in the current folder, that a search may change."""
    return Path(shutil.copytree(cascade, here / "own"))


@pytest.fixture
def common(data: Path, eye: Path, here: Path) -> list[object]:
    """Options of every search here."""
    return ["--data", data, "--features", eye, "--num", "4", "--device", "cpu", "--out", "out", "--cache", "cache"]


@pytest.fixture
def no_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if a test samples anything."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("sampled")

    monkeypatch.setattr(search_passes, "sample_stage", refuse)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


SHORT = ("--stage", "sr16", "--s", "0,0.2,0.4", "--steps", "2")


def test_the_best_becomes_the_default(done: Cdm, own: Path, common: list[object], here: Path) -> None:
    result = done("search", own, *common, *SHORT)
    lines = result.out.splitlines()
    assert lines[0].startswith("sr16: fd_eye of 4 samples to ")
    assert [line.split(",")[0].strip() for line in lines[1:6]] == [
        "s=0",
        "nontruncated s=0.2",
        "nontruncated s=0.4",
        "truncated s=0.2",
        "truncated s=0.4",
    ]
    assert sum(line.endswith("  best") for line in lines) == 1
    assert lines[6] == "  passes of all samples: base8 3, sr16 5"
    record = json.loads((here / "out" / "search.json").read_text())
    (found,) = record["searched"]
    best = next(point for point in found["points"] if point["key"] == found["best"])
    assert lines[-1] == f"{own}: the default is now sr16: {best['label']}"
    sampling = Cascade.from_pretrained(own).defaults["sr16"]
    assert (sampling.s, sampling.augmentation, sampling.steps) == (
        best["settings"]["sr16"]["s"],
        best["settings"]["sr16"]["augmentation"],
        2,
    )
    assert (here / "out" / "s-curve.png").read_bytes().startswith(b"\x89PNG")
    assert len((here / "out" / "results.csv").read_text().splitlines()) == 6
    assert "warning: 4 samples for features of " in result.err
    assert not (here / "out" / "tensorboard").exists()
    again = done("search", own, *common, *SHORT, "--track", "tensorboard")
    assert again.out == result.out
    assert len(list((here / "out" / "tensorboard").glob("events.out.tfevents.*"))) == 1


def test_again_makes_nothing(
    done: Cdm, own: Path, common: list[object], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = done("search", own, *common, *SHORT)
    before = contents(here)
    monkeypatch.delattr(search_passes, "sample_stage")
    again = done("search", own, *common, *SHORT)
    assert again.out == first.out
    assert contents(here) == before


def test_what_was_chosen_can_be_sampled(done: Cdm, own: Path, common: list[object], here: Path) -> None:
    done("search", own, *common, "--stage", "all", "--steps", "1,2", "--guidance", "1,2")
    record = json.loads((here / "out" / "search.json").read_text())
    assert [found["stage"] for found in record["searched"]] == ["base8", "sr16", "sr32"]
    done("sample", own, "--out", "samples.npz", "--device", "cpu")
    assert {path.name for path in (here / "out").glob("*.png")} == {"steps-curve.png", "guidance-curve.png"}


def test_later_settings(done: Cdm, own: Path, common: list[object], here: Path) -> None:
    given = ("--stage", "sr16", "--start", "1,0.5", "--guidance", "2", "--guidance-interval", "none,0.3:5")
    dry = done("search", own, *common, *given, "--dry-run").out.splitlines()
    assert dry[0] == "sr16: 4 points, 0 of them done"
    assert dry[4] == "  guidance 2, from time 0.5, at sigma 0.3 to 5"
    assert dry[5] == "passes of 4 samples: base8 1, sr16 4; 5 of them still to make"
    # base8: 5 steps; sr16: 4 steps from noise, twice, and 2 from half time, twice.
    assert dry[6] == f"network evaluations still to make: {4 * (5 + 2 * 4 + 2 * 2)}"
    first = done("search", own, *common, *given)
    found = Cascade.from_pretrained(own).defaults["sr16"]
    best = json.loads((here / "out" / "search.json").read_text())["searched"][0]
    settings = next(point for point in best["points"] if point["key"] == best["best"])["settings"]["sr16"]
    assert found.model_dump(mode="json") == settings
    assert done("search", own, *common, *given).out == first.out


def test_no_write(done: Cdm, own: Path, common: list[object]) -> None:
    before = contents(own)
    result = done("search", own, *common, *SHORT, "--no-write")
    assert contents(own) == before
    assert "default" not in result.out


def test_a_dry_run_writes_nothing(
    done: Cdm, own: Path, common: list[object], here: Path, no_sampling: None, eye: Path
) -> None:
    before = contents(here)
    result = done("search", own, *common, "--stage", "sr16", "--s", "0,0.2,0.4", "--dry-run")
    assert contents(here) == before
    assert sorted(path.name for path in here.iterdir()) == ["own"]
    lines = result.out.splitlines()
    assert lines[0] == "sr16: 5 points, 0 of them done"
    assert lines[1:6] == [
        "  s=0",
        "  nontruncated s=0.2",
        "  nontruncated s=0.4",
        "  truncated s=0.2",
        "  truncated s=0.4",
    ]
    assert lines[6] == "passes of 4 samples: base8 3, sr16 5; 8 of them still to make"
    # base8: 5 steps whole, and those of its 5 above 0.2 and 0.4; sr16: 5 times 4 steps.
    assert lines[7] == f"network evaluations still to make: {4 * (5 + 4 + 3 + 5 * 4)}"
    assert lines[8].startswith("sampling takes about ")


def test_a_packaged_cascade_is_not_changed(
    done: Cdm, own: Path, common: list[object], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (find, search):
        monkeypatch.setattr(module, "packaged_cascades", lambda: {"shipped": own})
    before = contents(own)
    for name in ("shipped", own, "shipped"):
        result = done("search", name, *common, *SHORT)
        assert contents(own) == before
        assert result.out.splitlines()[-1].startswith("out/cascade: a copy with the default sr16: ")
        assert result.out.splitlines()[-1].endswith("; the cascade itself is not changed")
    assert Cascade.from_pretrained(here / "out" / "cascade").defaults["sr16"].steps == 2


@pytest.mark.parametrize(
    "options, line",
    [
        ("--stage sr17", "stage: no stage 'sr17' in this cascade; allowed: base8, sr16, sr32 or all"),
        ("--stage sr16 --s 0,0.9", "s: 0.9 for sr16 is out of range; allowed 0 to 0.8"),
        ("--stage sr16 --s -0.1", "--s: Input should be greater than or equal to 0 (given: -0.1)"),
        ("--stage sr16 --s 0,much", "--s: 'much' is not a number"),
        ("--stage sr16 --s 0,,0.1", "--s: '0,,0.1' has an empty entry"),
        ("--stage base8 --s 0.1", "s: cannot be swept: base8 is a base stage and has no s"),
        ("--stage sr32 --s 0.1", "s: cannot be swept: sr32 was trained with augmentation blur and has no s"),
        ("--stage base8", "stage: nothing to sweep for base8; give it steps or guidance"),
        ("--stage sr16 --augmentation none", "--augmentation: 'none' is not known; allowed: truncated, nontruncated"),
        ("--stage base8 --steps 5,21", "steps: 21 is more than the T=20 that the stage was trained with"),
        ("--stage sr16 --steps 5,x", "--steps: 'x' is not allowed; give numbers from 1, or ddimN"),
        ("--stage sr32 --endpoints 1e-4:0.02", "endpoints: cannot be swept: sr32 was trained with cosine T=20"),
        ("--stage sr16 --endpoints 1e-4", "--endpoints: '1e-4' is not a pair FIRST:LAST"),
        ("--stage sr16 --endpoints none", "--endpoints: 'none' is not a pair FIRST:LAST, such as 1e-4:0.18"),
        ("--stage base8 --start 0.5", "start: cannot be swept: base8 is a base stage and has no image to start from"),
        ("--stage sr16 --start 0", "--start: Input should be greater than 0 (given: 0.0)"),
        ("--stage sr16 --start 1,late", "--start: 'late' is not a number"),
        ("--stage sr16 --guide 1,2", "guide: cannot be swept: sr16 has no guide; cdm assemble --guide gives it one"),
        (
            "--stage sr16 --guidance-interval 3",
            "--guidance-interval: '3' is not none or a pair LOW:HIGH, such as 0.3:5",
        ),
        ("--stage sr16 --guidance-interval 0.3:5", "guidance_interval: cannot be swept: sr16 is not guided by default"),
        ("--stage sr16 --grid sigma", "--grid: 'sigma' is not known; allowed: time, edm, log-snr"),
        ("--stage base8 --grid edm", "grid: cannot be swept: base8 was trained with cosine T=20"),
        ("--stage sr16 --guidance 200", "--guidance: Input should be less than or equal to 100 (given: 200.0)"),
        ("--stage sr16 --split test", "no split 'test'"),
        ("--stage sr16 --num 1", "'1'; allowed: whole numbers from 2"),
        ("--stage sr16 --precision fp8", "--precision: 'fp8' is not known"),
        ("--stage sr16 --compile yes", "--compile: 'yes' is not known; allowed: off, auto, on"),
        ("--stage sr16 --batch-size 0", "--batch-size: '0' is not allowed"),
        ("--stage sr16 --features nonsense", "features: 'nonsense' is not an extractor"),
    ],
)
@pytest.mark.parametrize("dry", [False, True])
def test_refused_before_any_work(
    options: str, line: str, dry: bool, refused: Cdm, own: Path, common: list[object], here: Path, no_sampling: None
) -> None:
    before = contents(here)
    assert line in refused("search", own, *common, *options.split(), *(["--dry-run"] if dry else []))
    assert contents(here) == before
    assert not (here / "out").exists()


def test_another_search_in_the_same_folder_is_refused(
    done: Cdm, refused: Cdm, own: Path, common: list[object], here: Path
) -> None:
    done("search", own, *common, "--stage", "sr16", "--s", "0")
    before = contents(here)
    for dry in ([], ["--dry-run"]):
        line = refused("search", own, *common, "--stage", "sr16", "--s", "0", "--seed", "3", *dry)
        assert line == "out: holds another search (seed: 0 there, 3 asked); choose another name for this one"
    assert contents(here) == before
    (here / "file").write_text("")
    assert "--out: file is a file" in refused("search", own, *common, "--stage", "sr16", "--out", "file")
