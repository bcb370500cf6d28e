from __future__ import annotations

import errno
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cascaded_diffusion.cascade import judge
from cascaded_diffusion.cli.evaluate import _kind
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.evaluation import scores
from cascaded_diffusion.evaluation.classifier import Classifier, ClassifierConfig, save_classifier
from cascaded_diffusion.evaluation.scores import read_scores

Cdm = Callable[..., Any]
NAMES = ("Bag", "Hat", "Shoe")


@pytest.fixture(scope="module")
def eye(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of the data's classes that has learned nothing; its features differ all the same."""
    folder = tmp_path_factory.mktemp("classifier") / "eye"
    config = ClassifierConfig(architecture="small", resolution=8, channels=1, classes=3, class_names=NAMES)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_classifier(Classifier(config).eval(), folder)
    return folder


@pytest.fixture(scope="module")
def blind(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An extractor that gives features and nothing else."""

    class Halves(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([x.mean(dim=(2, 3)), x.std(dim=(2, 3))], dim=1)

    path = tmp_path_factory.mktemp("exported") / "halves.pt2"
    batch = torch.export.Dim("batch", min=1, max=4096)
    torch.export.save(torch.export.export(Halves(), (torch.rand(2, 1, 8, 8),), dynamic_shapes=({0: batch},)), path)
    return path


@pytest.fixture(scope="module")
def common(data: Path, eye: Path) -> list[object]:
    """Options of every evaluation here."""
    return ["--data", data, "--features", eye, "--num", "6", "--device", "cpu"]


def test_a_cascade(done: Cdm, cascade: Path, common: list[object], here: Path) -> None:
    options = ("--metrics", "fid,kid,is,pr,recognition,drift", "--json", "scores.json", "--keep", "kept.npz")
    result = done("evaluate", cascade, *common, *options, "--s", "sr16=0.4", "--steps", "3", "--seed", "2")
    lines = result.out.splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[0].split() == ["score", "value", "samples", "split", "real", "features", "real", "hash"]
    assert any(line.startswith("fd_eye ") and "±" in line for line in lines)
    assert any(line.startswith("fd_eye_val ") for line in lines)
    assert "sr16 ddim 3 steps, nontruncated s=0.4" in result.out
    assert "few for features of 128 dimensions" in result.err
    assert "samples: 6 of 6" in result.err
    scores = read_scores(here / "scores.json")
    assert {"fd_eye", "kid_eye_val", "is_eye", "recall_eye", "recognition_eye", "drift_sr16", "drift_sr32"} <= set(
        scores
    )
    about = scores["fd_eye"].provenance
    assert (about.n, about.seed, about.resolution, about.extractor, about.data) == (6, 2, 32, "eye", "pictures")
    assert (about.source["kind"], about.source["name"]) == ("cascade", "three")
    with np.load(here / "kept.npz") as kept:
        assert (kept["arr_0"].shape, kept["arr_1"].tolist()) == ((6, 32, 32, 1), [0, 1, 2, 0, 1, 2])
    again = done("evaluate", "kept.npz", *common[:4], "--metrics", "fd", "--split", "train", "--json", "again.json")
    assert "kept.npz (samples, hash" in again.out
    other = json.loads((here / "again.json").read_text())["scores"]
    assert list(other) == ["fd_eye"]
    assert other["fd_eye"]["value"] == scores["fd_eye"].value
    assert other["fd_eye"]["sampler"] is None


def test_every_checkpoint_of_a_run(done: Cdm, runs: Path, common: list[object], here: Path) -> None:
    result = done(
        *("evaluate", runs / "base8", *common, "--all-checkpoints"),
        *("--ema", "raw", "--metrics", "fd", "--split", "train", "--json", "s.json"),
    )
    content = json.loads((here / "s.json").read_text())
    values = {each["images"]: each["scores"]["fd_eye"]["value"] for each in content["checkpoints"]}
    assert list(values) == [16, 32]
    assert content["scores"]["fd_eye"]["value"] == min(values.values())
    assert content["images"] == content["scores"]["fd_eye"]["source"]["images"] == min(values, key=values.__getitem__)
    assert [line.endswith("best") for line in result.out.splitlines()[1:3]] == [
        values[16] <= values[32],
        values[32] < values[16],
    ]


def test_an_interrupted_scoring_of_checkpoints_keeps_what_is_scored(
    cdm: Cdm, runs: Path, common: list[object], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored = judge.judge_stage

    def until_the_second(*args: Any, source: dict[str, Any], **more: Any) -> Any:
        if source["images"] == 32:
            raise KeyboardInterrupt
        return scored(*args, source=source, **more)

    monkeypatch.setattr(judge, "judge_stage", until_the_second)
    options = ("--all-checkpoints", "--ema", "raw", "--metrics", "fd", "--split", "train", "--json", "s.json")
    assert cdm("evaluate", runs / "base8", *common, *options).status == 130
    assert [path.name for path in here.iterdir()] == ["s.unfinished.json"]
    content = json.loads((here / "s.unfinished.json").read_text())
    assert [each["images"] for each in content["checkpoints"]] == [content["images"]] == [16]
    monkeypatch.undo()
    assert cdm("evaluate", runs / "base8", *common, *options[:-1], here / "s.json").status == 0
    assert [path.name for path in here.iterdir()] == ["s.json"]


def test_scores_are_shown_where_no_file_can_be_written(
    cdm: Cdm, cascade: Path, common: list[object], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(scores, "write_scores", full)
    result = cdm("evaluate", cascade, *common, "--metrics", "fd", "--split", "train", "--json", "s.json")
    assert result.status == 1
    assert "No space left on device" in result.err
    assert "fd_eye" in result.out


def test_one_checkpoint_of_an_sr_run_and_a_stage_folder(
    done: Cdm, runs: Path, cascade: Path, common: list[object]
) -> None:
    run = done("evaluate", runs / "sr16", *common, "--metrics", "fd", "--checkpoint", "16", "--ema", "4")
    assert "sr16 (run, sr16, 16 images, ema 4, hash" in run.out
    assert "enlarged   real train images of 8x8" in run.out
    stage = done("evaluate", cascade / "sr16", *common, "--metrics", "fd")
    assert "sr16 (stage, sr16, hash" in stage.out


def test_without_a_classifier_there_is_no_inception_score(
    done: Cdm, refused: Cdm, cascade: Path, data: Path, blind: Path, here: Path
) -> None:
    options = ("--data", data, "--features", blind, "--num", "6", "--steps", "2")
    result = done("evaluate", cascade, *options, "--split", "train", "--cache", here / "cache")
    assert "halves has no classifier, so there is no Inception score" in result.err
    assert [line.split()[0] for line in result.out.splitlines()[1:5]] == [
        *("fd_halves", "kid_halves", "precision_halves", "recall_halves"),
    ]
    assert [path.name.partition("-")[0] for path in (here / "cache").iterdir()] == ["reference"]
    assert "is: halves gives features and no classifier's answers" in refused(
        *("evaluate", cascade, *options, "--metrics", "is")
    )


@pytest.mark.parametrize(
    "options, message",
    [
        (["--metrics", "fd,foo"], "metrics: 'foo' is not known; allowed: fd, kid"),
        (["--split", "test"], "no split 'test'; it has train, val"),
        (["--features", "fashion"], "features: 'fashion' is not an extractor"),
        (["--json", "x.txt"], "--json: x.txt is not the name of a .json file"),
        (["--keep", "x"], "--keep: x is not the name of a .npz file"),
        (["--batch-size", "0"], "--batch-size: '0' is not allowed"),
        (["--precision", "fp8"], "--precision: 'fp8' is not known"),
        (["--compile", "yes"], "--compile: 'yes' is not known; allowed: off, auto, on"),
        (["--cas-epochs", "many"], "--cas-epochs: 'many' is not a number"),
        (["--cas-epochs", "0"], "--cas-epochs: 0 is not allowed; give a number above 0, up to 1000000"),
        (["--cas-classifiers", "0"], "'0'; allowed: whole numbers from 1"),
        (["--cas-classifiers", "2000"], "--cas-classifiers: 2000 is not allowed; give a number from 1 to 1000"),
        (["--cas-epochs", "60"], "--cas-epochs: has no effect without cas; add it to --metrics"),
        (["--cas-classifiers", "3"], "--cas-classifiers: has no effect without cas; add it to --metrics"),
        (["--s", "0.9"], "s: 0.9 for sr16 is out of range"),
        (["--set", "sr16.start=2"], "sr16: start: "),
        (["--set", "sr16=2"], "--set: 'sr16' is not of the form STAGE.KEY=VALUE"),
        (["--set", "sr9.start=0.5"], "set: no stage 'sr9' in use; allowed: base8, sr16, sr32"),
        (["--all-checkpoints"], "--all-checkpoints: has no effect on a cascade; it is for a run folder"),
        (["--ema", "raw"], "--ema: has no effect on a cascade"),
        (["--num", "0"], "'0'; allowed: whole numbers from 1"),
        (["--metrics", "pr", "--num", "3"], "pr: 3 samples; at least 4 are needed"),
        (["--device", "meta"], "--device: 'meta' is not available here"),
    ],
)
def test_what_a_cascade_cannot_be_asked(
    options: list[str], message: str, refused: Cdm, cascade: Path, common: list[object], here: Path
) -> None:
    assert message in refused("evaluate", cascade, *common, *options)
    assert list(here.iterdir()) == []


def test_what_a_file_cannot_be_asked(refused: Cdm, common: list[object], here: Path) -> None:
    np.savez(here / "x.npz", np.zeros((8, 32, 32, 1), np.uint8))
    options = [
        ("--steps", "3"),
        ("--keep", "y.npz"),
        ("--precision", "fp32"),
        ("--compile", "on"),
        ("--checkpoint", "3"),
    ]
    options += [("--set", "base8.clip=false")]
    for option, value in options:
        message = refused("evaluate", "x.npz", *common, option, value)
        assert message.startswith(f"{option}: has no effect on a file of samples; it is for ")
    assert "recognition: needs the class" in refused("evaluate", "x.npz", *common, "--metrics", "recognition")
    assert "num: 9 is more than the 8 images" in refused("evaluate", "x.npz", *common, "--num", "9")
    np.savez(here / "x.npz", np.zeros((8, 32, 32, 1), np.float32))
    assert "x.npz: arr_0.npy is float32 (8, 32, 32, 1); give uint8" in refused("evaluate", "x.npz", *common)
    (here / "x.npz").write_text("no archive")
    assert "x.npz: not a whole .npz file" in refused("evaluate", "x.npz", *common)


def test_what_a_run_cannot_be_asked(refused: Cdm, runs: Path, common: list[object], here: Path) -> None:
    both = refused("evaluate", runs / "base8", *common, "--all-checkpoints", "--keep", "x.npz")
    assert both.startswith("--keep: x.npz cannot hold the samples of --all-checkpoints")
    assert "--ema: '5' is not kept by this run; allowed: 16, 4, raw" in refused(
        *("evaluate", runs / "base8", *common, "--ema", "5")
    )


def test_a_packaged_feature_network_wins_and_says_so(
    done: Cdm, data: Path, tmp_path: Path, cascade: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fashion-mnist").mkdir()
    monkeypatch.chdir(tmp_path)
    options = ("--features", "fashion-mnist", "--num", 8, "--metrics", "fd", "--split", "train", "--device", "cpu")
    told = done("evaluate", cascade, "--data", data, *options).err
    assert "fashion-mnist: the packaged feature network is used, not what has this name here" in told


def test_what_is_nothing_to_score(cascade: Path, runs: Path, data: Path, here: Path) -> None:
    assert [_kind(str(path), None) for path in ("demo", cascade, cascade / "sr16", runs / "sr16", "x.npz")] == [
        *("cascade", "cascade", "stage", "run", "samples"),
    ]
    (here / "x.txt").write_text("")
    for subject, why in (("nowhere", "not there"), (data, "nothing to score"), ("x.txt", "a file, but not an .npz")):
        with pytest.raises(UserError, match=f"{subject}: {why}; allowed: demo, a cascade folder"):
            _kind(str(subject), None)


@pytest.mark.parametrize("options", [["--all-checkpoints"], ["--checkpoint", "64"], ["--ema", "raw"]])
def test_a_run_that_is_not_there_is_no_repository(options: list[str], refused: Cdm, common: list[object]) -> None:
    """``a/b`` could be a name on the hub; with these options a folder was meant."""
    told = refused("evaluate", "runs/typo", *common, *options)
    assert told == f"runs/typo: not there; {options[0]} is for a run folder"


def test_a_missing_file(refused: Cdm, common: list[object], here: Path) -> None:
    assert refused("evaluate", "x.npz", *common) == "x.npz: no such file"
    assert "--data" in refused("evaluate", "demo")


@pytest.mark.slow
def test_two_processes_score_like_one(
    done: Cdm, cdm_process: Any, cascade: Path, common: list[object], here: Path
) -> None:
    options = ["--metrics", "fd,kid,is,pr,nn,drift", "--keep"]
    done("evaluate", cascade, *common, *options, "one.npz", "--json", "one.json", "--cache", here / "one")
    command, environment = cdm_process
    # Without the --, torchrun takes --num for an unclear abbreviation of an option of its own.
    launch = [command[0], "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--"]
    given = [*common, *options, "two.npz", "--json", "two.json", "--cache", here / "two"]
    result = subprocess.run(
        [*launch, command[-1], "evaluate", *map(str, [cascade, *given])],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("samples  split") == 1  # one process reports
    with np.load(here / "one.npz") as one, np.load(here / "two.npz") as two:
        assert np.array_equal(one["arr_0"], two["arr_0"])
        assert np.array_equal(one["arr_1"], two["arr_1"])
    first, second = read_scores(here / "one.json"), read_scores(here / "two.json")
    assert list(first) == list(second)
    for key, score in first.items():
        assert second[key].value == pytest.approx(score.value, rel=1e-6, abs=1e-9)
        assert second[key].provenance == score.provenance
