from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cascaded_diffusion.cascade import judge
from cascaded_diffusion.cascade.chain import Cascade
from cascaded_diffusion.cascade.judge import (
    Request,
    best_checkpoint,
    cascade_source,
    judge_cascade,
    judge_run,
    judge_samples,
    judge_stage,
    stage_source,
)
from cascaded_diffusion.cascade.sampling import SamplingConfig
from cascaded_diffusion.cascade.stage import Stage
from cascaded_diffusion.data.prepared import PreparedData
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.evaluation.scores import Origin
from cascaded_diffusion.ranks import Ranks
from cascaded_diffusion.samples import write_npz
from cascaded_diffusion.training.checkpoint import checkpoint_folders
from cascaded_diffusion.training.export import load_part, stage_from_run

SOURCE = {"kind": "cascade", "name": "tiny", "sha256": "0" * 64}


@pytest.fixture
def request_for(colour_data: PreparedData, colour_eye: Any, tmp_path: Path) -> Callable[..., Request]:
    """``request_for("fd", num=8)``: 8 samples against both splits of ``colour_data``."""

    def make(metrics: str = "fd", **changes: Any) -> Request:
        shared = {"splits": ("train", "val"), "num": 8, "cache": tmp_path / "cache"} | changes
        return Request(colour_data, colour_eye, tuple(metrics.split(",")), **shared)

    return make


@pytest.fixture
def no_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if a test samples anything."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("sampled")

    monkeypatch.setattr(judge, "sample_batches", refuse)


def test_provenance_has_every_sampling_setting() -> None:
    assert set(SamplingConfig.model_fields) <= set(Origin.model_fields)


# -- cascades ---------------------------------------------------------------------------------------------------------


def test_a_cascade_is_sampled_as_ever_and_scored(
    tiny_cascade: Cascade, request_for: Callable[..., Request], tmp_path: Path
) -> None:
    told: list[tuple[str, int, int]] = []
    choices = {"s": {"sr16": 0.25}, "steps": 3}
    request = request_for(
        "fd,is,recognition,drift",
        seed=5,
        batch_size=3,
        choices=choices,
        keep=tmp_path / "kept.npz",
        watch=lambda *what: told.append(what),
    )
    scores = judge_cascade(tiny_cascade, request, source=SOURCE)
    assert list(scores) == ["fd_eye", "fd_eye_val", "is_eye", "recognition_eye", "drift_sr16"]
    with np.load(tmp_path / "kept.npz") as kept:
        expected = tiny_cascade.sample(8, seed=5, s={"sr16": 0.25}, steps=3)
        assert np.array_equal(kept["arr_0"], expected)
        assert kept["arr_1"].tolist() == [0, 1, 2, 3] * 2
    about = scores["fd_eye"].provenance
    assert (about.n, about.resolution, about.seed, about.precision) == (8, 16, 5, "fp32")
    assert about.source == SOURCE
    assert about.steps == {"base8": 3, "sr16": 3}
    assert about.s == {"base8": 0, "sr16": 0.25}
    assert about.augmentation == {"base8": "none", "sr16": "nontruncated"}
    assert about.evaluations == {"base8": 3, "sr16": 3}
    assert ("samples", 8, 8) in told
    again = judge_samples(tmp_path / "kept.npz", request_for("fd"))
    assert again["fd_eye"].value == scores["fd_eye"].value
    assert again["fd_eye"].provenance.sampler is None


def test_each_rank_samples_its_share(
    tiny_cascade: Cascade, request_for: Callable[..., Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tiny_cascade.sample(7, return_stages=True)
    plan = tiny_cascade.plan()
    labels = tiny_cascade.sample_labels(plan, num=7)
    made = judge.Prepared(plan, labels, None, None, Origin(source={}))
    parts = []
    for rank in range(3):
        monkeypatch.setattr(judge, "current_ranks", lambda rank=rank: Ranks(rank, 3))
        parts.append(judge.sample_over_ranks(made, request_for(), every=True))
    for name, images in whole.items():
        assert np.array_equal(np.concatenate([part[name] for part in parts]), images)
    monkeypatch.setattr(judge, "current_ranks", lambda: Ranks(0, 8))
    with pytest.raises(UserError, match="num: 7 samples for 8 processes"):
        judge.sample_over_ranks(made, request_for())


@pytest.mark.usefixtures("no_sampling")
@pytest.mark.parametrize(
    "metrics, changes, message",
    [
        ("pr", {"num": 3}, "pr: 3 samples; at least 4"),
        ("fd", {"choices": {"s": 0.9}}, "s: 0.9 for sr16 is out of range"),
        ("fd", {"batch_size": 0}, "batch_size: 0 is not allowed"),
        ("fd", {"num": 0}, "num: 0 is not allowed"),
    ],
)
def test_refused_before_sampling(
    metrics: str, changes: dict[str, Any], message: str, tiny_cascade: Cascade, request_for: Callable[..., Request]
) -> None:
    with pytest.raises(UserError, match=message):
        judge_cascade(tiny_cascade, request_for(metrics, **changes), source=SOURCE)


@pytest.mark.usefixtures("no_sampling")
def test_classes_that_are_not_the_datas(
    random_stage: Callable[..., Stage], base_config: Callable[..., Any], request_for: Callable[..., Request]
) -> None:
    cascade = Cascade([random_stage(base_config(class_names=["a", "b", "c", "d"]))])
    with pytest.raises(UserError, match=r"recognition: the samples' maker has the classes a, b, c, \.\.\."):
        judge_cascade(cascade, request_for("fd,recognition"), source=SOURCE)
    without = Cascade([random_stage(base_config(classes=None))])
    with pytest.raises(UserError, match=r"cas: needs the class of every sample, these have none \(label -1\)"):
        judge_cascade(without, request_for("fd,cas"), source=SOURCE)


def test_a_cascade_is_known_by_its_files(tiny_cascade_folder: Path, tiny_cascade: Cascade, tmp_path: Path) -> None:
    source = cascade_source("tiny", tiny_cascade_folder)
    assert (source["kind"], source["name"], len(source["sha256"])) == ("cascade", "tiny", 64)
    tiny_cascade.defaults["base8"] = tiny_cascade.defaults["base8"].model_copy(update={"steps": 9})
    tiny_cascade.save_pretrained(tmp_path / "other-defaults")
    assert cascade_source("tiny", tmp_path / "other-defaults") == source
    next(tiny_cascade.stages["sr16"].network.parameters()).data.add_(1)
    tiny_cascade.save_pretrained(tmp_path / "other-weights")
    assert cascade_source("tiny", tmp_path / "other-weights")["sha256"] != source["sha256"]


# -- stages and runs --------------------------------------------------------------------------------------------------


def test_a_base_run_is_sampled_from_noise(
    tiny_runs: dict[str, Path], request_for: Callable[..., Request], tmp_path: Path
) -> None:
    (only,) = judge_run(tiny_runs["base8"], request_for(keep=tmp_path / "kept.npz"), ema="16")
    assert (only.images, only.ema) == (64, "16")
    stage, _ = stage_from_run(tiny_runs["base8"], ema="16")
    with np.load(tmp_path / "kept.npz") as kept:
        assert np.array_equal(kept["arr_0"], Cascade([stage]).sample(8))
    about = only.scores["fd_eye"].provenance
    assert about.low_res is None
    assert {key: about.source[key] for key in ("kind", "name", "stage", "images", "ema")} == {
        **{"kind": "run", "name": "base8", "stage": "base8", "images": 64, "ema": "16"},
    }


def test_an_sr_run_enlarges_real_images(
    tiny_runs: dict[str, Path], request_for: Callable[..., Request], tmp_path: Path, colour_data: PreparedData
) -> None:
    request = request_for("fd,recognition,drift", splits=("val", "train"), keep=tmp_path / "kept.npz")
    (only,) = judge_run(tiny_runs["sr16"], request)
    assert list(only.scores) == ["fd_eye", "fd_eye_train", "recognition_eye", "drift_sr16"]
    about = only.scores["fd_eye"].provenance
    assert about.low_res == "real val images of 8x8, not made by a stage below"
    assert only.scores["drift_sr16"].extra["below"] == "real images"
    with np.load(tmp_path / "kept.npz") as kept:
        images, labels = kept["arr_0"], kept["arr_1"]
    val = colour_data.split("val")
    assert images.shape == (8, 16, 16, 3)
    # Each sample has the class of the real image it enlarges, and those are of the split, each once.
    order = judge.permutation(0, "evaluation/low-res", len(val))[:8].numpy()
    assert labels.tolist() == val.labels[order].tolist()
    with pytest.raises(UserError, match=f"num: 99 is more than the {len(val)} val images"):
        judge_run(tiny_runs["sr16"], replace(request, num=99))


def test_a_truncated_default_means_nontruncated_on_real_images(
    random_stage: Callable[..., Stage], sr_config: Callable[..., Any], request_for: Callable[..., Request]
) -> None:
    stage = random_stage(sr_config(sampling={"augmentation": "truncated", "s": 0.2}))
    scores = judge_stage(stage, stage.config.sampling, request_for(num=4), source=SOURCE)
    assert scores["fd_eye"].provenance.augmentation == {"sr16": "nontruncated"}


def test_a_stage_folder(tiny_cascade_folder: Path, request_for: Callable[..., Request]) -> None:
    folder = tiny_cascade_folder / "base8"
    stage, sampling, _ = load_part(folder)
    source = stage_source(folder, stage.name)
    assert (source["kind"], source["name"], source["stage"]) == ("stage", "base8", "base8")
    scores = judge_stage(stage, sampling, request_for(), source=source)
    assert scores["fd_eye"].provenance.resolution == 8


@pytest.mark.usefixtures("no_sampling")
def test_a_stage_that_does_not_fit_the_data(
    random_stage: Callable[..., Stage], sr_config: Callable[..., Any], request_for: Callable[..., Request]
) -> None:
    for changes, message in (
        ({"classes": 3}, "sr16 has 3 classes, .* has 4 classes, or others"),
        ({"channels": 1}, "sr16 enlarges images of 1 channels, .* has 3"),
        ({"conditioning": {"low_resolution": 2}}, "no images of resolution 2"),
    ):
        stage = random_stage(sr_config(**changes))
        with pytest.raises(UserError, match=message):
            judge_stage(stage, stage.config.sampling, request_for(), source=SOURCE)


def test_every_checkpoint(tiny_runs: dict[str, Path], request_for: Callable[..., Request]) -> None:
    run = tiny_runs["base8"]
    told: list[str] = []
    request = request_for("kid,fd", watch=lambda what, *_: told.append(what))
    found = judge_run(run, request, every=True)
    assert [each.images for each in found] == [int(f.name) for f in checkpoint_folders(run) if int(f.name)] == [32, 64]
    alone = judge_run(run, request_for(), images=32)
    assert alone[0].scores["fd_eye"].value == found[0].scores["fd_eye"].value
    assert (
        found[0].scores["fd_eye"].provenance.source["sha256"] != found[1].scores["fd_eye"].provenance.source["sha256"]
    )
    best = best_checkpoint(found, request)
    assert best.scores["fd_eye"].value == min(each.scores["fd_eye"].value for each in found)
    assert {"32: samples", "64: samples"} <= set(told)


def test_a_checkpoint_that_cannot_be_read_leaves_the_others(
    tiny_runs: dict[str, Path], request_for: Callable[..., Request], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_runs["base8"], run)

    def damage(images: int) -> None:
        weights = run / f"checkpoints/{images:012d}/model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1])

    damage(64)
    assert [each.images for each in judge_run(run, request_for(), every=True)] == [32]
    assert caplog.messages[0].endswith("(its SHA-256 is not the manifest's); the other checkpoints are scored")
    damage(32)
    with pytest.raises(UserError, match="damaged"):
        judge_run(run, request_for(), every=True)


def test_samples_that_cannot_be_kept_are_scored(
    tiny_cascade: Cascade,
    request_for: Callable[..., Request],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(judge, "write_npz", full)
    scores = judge_cascade(tiny_cascade, request_for(keep=tmp_path / "kept.npz"), source=SOURCE)
    assert list(scores) == ["fd_eye", "fd_eye_val"]
    assert "No space left on device); the samples are scored and not kept" in caplog.text


@pytest.mark.usefixtures("no_sampling")
def test_checkpoints_that_cannot_be_compared(tiny_runs: dict[str, Path], request_for: Callable[..., Request]) -> None:
    with pytest.raises(UserError, match="--all-checkpoints: pr, is does not choose the best; add fd or kid"):
        judge_run(tiny_runs["base8"], request_for("pr,is"), every=True)
    with pytest.raises(UserError, match="--all-checkpoints: does not go with --checkpoint 32"):
        judge_run(tiny_runs["base8"], request_for(), images=32, every=True)
    with pytest.raises(UserError, match=r"no checkpoint at 33 images; allowed: .*32, 64"):
        judge_run(tiny_runs["base8"], request_for(), images=33)


# -- files ------------------------------------------------------------------------------------------------------------


def test_some_of_a_file(request_for: Callable[..., Request], tmp_path: Path, colour_data: PreparedData) -> None:
    split = colour_data.split("train")
    order = np.argsort(split.labels, kind="stable")
    write_npz(tmp_path / "sorted.npz", np.array(split.images(16))[order], split.labels[order])
    scores = judge_samples(tmp_path / "sorted.npz", request_for("recognition", num=20, seed=1))
    seen = scores["recognition_eye"]
    assert seen.value == 1
    assert all(share == 1 for share in seen.extra["per_class"])  # a sorted file's first 20 would lack classes
    assert (seen.provenance.n, seen.provenance.seed) == (20, 1)
    whole = judge_samples(tmp_path / "sorted.npz", request_for("recognition", num=None))["recognition_eye"]
    # No image is drawn of a whole file, but scores such as the kernel distance draw among its features.
    assert (whole.provenance.n, whole.provenance.seed) == (len(split), 0)
    assert whole.provenance.source["name"] == "sorted.npz"
    with pytest.raises(UserError, match=r"num: 999 is more than the \d+ images of"):
        judge_samples(tmp_path / "sorted.npz", request_for(num=999))


def test_a_file_of_fewer_images_than_processes(
    request_for: Callable[..., Request], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_npz(tmp_path / "few.npz", np.zeros((3, 16, 16, 3), np.uint8), np.zeros(3, np.int64))
    monkeypatch.setattr(judge, "current_ranks", lambda: Ranks(0, 4))
    with pytest.raises(UserError, match="num: 3 samples for 4 processes"):
        judge_samples(tmp_path / "few.npz", request_for(num=None))
