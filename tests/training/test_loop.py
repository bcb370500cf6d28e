from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from cascaded_diffusion.cascade.stage import StageConfig
from cascaded_diffusion.data.prepare import prepare
from cascaded_diffusion.data.prepared import PreparedData
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.training import run as run_module
from cascaded_diffusion.training.checkpoint import checkpoint_folders
from cascaded_diffusion.training.loop import Progress, read_metrics, train
from cascaded_diffusion.training.state import Parts, TrainingState, learning_rate
from cascaded_diffusion.training.trainer import Trainer
from cascaded_diffusion.training.window import Window

Configure = Callable[..., StageConfig]
CPU = torch.device("cpu")


def _weights(run: Path) -> dict[str, Tensor]:
    folder = checkpoint_folders(run)[-1]
    return {
        f"{path.name}/{name}": value
        for path in folder.glob("*.safetensors")
        for name, value in load_file(folder / path.name).items()
    }


def _assert_equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def _step(trainer: Trainer) -> Window:
    """One step, and what the log would say of it."""
    window = Window(CPU)
    with trainer.feed(trainer.state.images + trainer.config.training.batch_size, workers=0) as feed:
        trainer.step(feed, window)
    return window


@pytest.fixture
def trainer(colour_data: PreparedData) -> Callable[[StageConfig], Trainer]:
    """A trainer whose weights are all drawn: a fresh network's zero output would hide most gradients."""

    def make(config: StageConfig, data: PreparedData = colour_data) -> Trainer:
        trainer = Trainer(config, data, CPU)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in trainer.state.network.parameters():
                fan = parameter[0].numel() if parameter.dim() > 1 else 4
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan**0.5)
        return trainer

    return make


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "base": ("base", {}),
    "base without classes": ("base", {"classes": None}),
    "base, learned variance": ("base", {"diffusion": {"variance": "learned", "prediction": "eps"}}),
    "base, attention and dropout": ("base", {"network": {"attention": [8], "middle_attention": True, "dropout": 0.1}}),
    "gaussian": ("sr", {}),
    "gaussian, continuous": ("sr", {"diffusion": {"noise_schedule": {"timesteps": None}}}),
    "blur": ("sr", {"conditioning": {"augmentation": "blur"}}),
    "none, without classes": ("sr", {"classes": None, "conditioning": {"augmentation": "none"}}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_is_trained(
    kind: str, trainer: Callable[..., Trainer], base_config: Configure, sr_config: Configure
) -> None:
    which, changes = KINDS[kind]
    made = trainer((base_config if which == "base" else sr_config)(**changes))
    for batch in made.batches(0):
        made.losses(batch).sum().backward()
    without = [
        name
        for name, parameter in made.state.network.named_parameters()
        if parameter.grad is None or not bool(parameter.grad.abs().sum() > 0)
    ]
    assert without == []


@pytest.mark.parametrize("kind", ["base, learned variance", "gaussian", "blur"])
@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_accumulated_steps_equal_whole_ones(
    kind: str, micro_batch: int, trainer: Callable[..., Trainer], base_config: Configure, sr_config: Configure
) -> None:
    """The gradient itself, in float32, with clipping off so that nothing rescales it."""
    which, changes = KINDS[kind]
    gradients = []
    for size in (None, micro_batch):
        settings = {**changes, "training": {"micro_batch": size, "grad_clip": None}}
        made = trainer((base_config if which == "base" else sr_config)(**settings))
        kept: dict[str, Tensor] = {}
        made.state.optimizer.register_step_pre_hook(
            lambda *_, made=made, kept=kept: kept.update(
                {name: p.grad.clone() for name, p in made.state.network.named_parameters() if p.grad is not None}
            )
        )
        _step(made)
        gradients.append(kept)
        assert made.state.images == 8
    whole, accumulated = gradients
    # Rounding is measured against the largest gradient: biases in front of a normalisation have none of their own.
    largest = max(float(gradient.abs().max()) for gradient in whole.values())
    for name, gradient in whole.items():
        torch.testing.assert_close(accumulated[name], gradient, rtol=1e-4, atol=1e-6 * largest)


def test_gradients_are_clipped_to_the_norm_and_the_norm_is_logged_before(
    trainer: Callable[..., Trainer], base_config: Configure
) -> None:
    made = trainer(base_config(training={"grad_clip": 0.01}))
    norms: list[float] = []
    made.state.optimizer.register_step_pre_hook(
        lambda *_: norms.append(
            math.sqrt(sum(float(p.grad.square().sum()) for p in made.state.network.parameters() if p.grad is not None))
        )
    )
    window = _step(made)
    assert norms == [pytest.approx(0.01, rel=1e-3)]
    assert window.summary()["grad_norm"] > 0.1


def test_a_run_of_small_steps_writes_what_it_should(
    tmp_path: Path, base_config: Configure, colour_data: PreparedData
) -> None:
    """Lengths that the batch does not divide: the end is rounded up, every multiple that a step passes counts."""
    config = base_config(
        training={
            "images": 60,
            "log_every": 20,
            "checkpoint_every": 24,
            "preview_every": 32,
            "preview_count": 2,
            "keep_checkpoints": None,
        }
    )
    seen: list[Progress] = []
    result = train(config, colour_data, tmp_path / "run", device=CPU, watch=seen.append)
    run = tmp_path / "run"
    assert result.images == 64
    assert result.signal is None
    assert result.checkpoint == checkpoint_folders(run)[-1]
    assert [int(path.name) for path in checkpoint_folders(run)] == [24, 48, 64]
    assert [line["images"] for line in read_metrics(run)] == [24, 40, 64]
    assert sorted(int(path.stem) for path in (run / "previews").iterdir()) == [32, 64]
    assert [progress.images for progress in seen] == list(range(8, 65, 8))
    assert {progress.target for progress in seen} == {64}
    assert [progress.metrics for progress in seen if progress.metrics] == read_metrics(run)
    assert StageConfig.load(run / "config.json") == config


def test_metrics_hold_finite_numbers_and_the_loss_by_time(
    tmp_path: Path, base_config: Configure, colour_data: PreparedData
) -> None:
    train(base_config(training={"decay": "linear"}), colour_data, tmp_path, device=CPU)
    for line in read_metrics(tmp_path):
        assert len(line["loss_by_time"]) == 8
        assert all(value is None or math.isfinite(value) for value in line["loss_by_time"])
        assert math.isfinite(line["loss"])
        assert line["grad_norm"] > 0
        assert line["images_per_second"] > 0
        assert 0 <= line["data_wait"] < 1
    assert read_metrics(tmp_path)[-1]["lr"] == 0
    assert read_metrics(tmp_path / "nothing") == []


def test_a_sigma_data_that_is_not_the_images_is_told_once(
    tmp_path: Path, base_config: Configure, colour_data: PreparedData, caplog: pytest.LogCaptureFixture
) -> None:
    images = colour_data.split("train").images(8)[:] / 127.5 - 1
    found = float(np.sqrt(np.mean(images**2)))
    for sigma_data, told in ((found, False), (found / 1.2, False), (found / 1.3, True), (None, False)):
        edm: dict[str, Any] = {"prediction": "edm", "sigma_data": sigma_data} if sigma_data else {"prediction": "v"}
        config = base_config(diffusion={**edm, "noise_schedule": {"timesteps": None}})
        caplog.clear()
        for images_in_all in (16, 32):
            train(config, colour_data, tmp_path / f"{sigma_data}", device=CPU, max_images=images_in_all)
        assert [" is " in record.getMessage() for record in caplog.records] == [True] * told
        assert f"the root mean square of these images in [-1, 1] is {found:.2g}" in caplog.text or not told


def test_the_loss_goes_down(tmp_path: Path, base_config: Configure, colour_data: PreparedData) -> None:
    config = base_config(training={"images": 400, "log_every": 80, "learning_rate": 3e-3})
    train(config, colour_data, tmp_path, device=CPU)
    losses = [line["loss"] for line in read_metrics(tmp_path)]
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("kind", ["base", "sr"])
def test_previews_do_not_disturb_training(
    kind: str, tmp_path: Path, base_config: Configure, sr_config: Configure, colour_data: PreparedData
) -> None:
    """With dropout, whose generator a preview must not advance, and averages, which it must not mix in."""
    configure = base_config if kind == "base" else sr_config
    for every, name in ((None, "without"), (8, "with")):
        settings = {"images": 40, "preview_every": every, "preview_count": 3}
        config = configure(network={"dropout": 0.3}, training=settings)
        train(config, colour_data, tmp_path / name, device=CPU)
    assert len(list((tmp_path / "with" / "previews").iterdir())) == 5
    assert not (tmp_path / "without" / "previews").exists()
    _assert_equal(_weights(tmp_path / "with"), _weights(tmp_path / "without"))


def test_averages_never_leak_into_the_weights(
    tmp_path: Path, base_config: Configure, colour_data: PreparedData
) -> None:
    for half_lives, name in (([1], "one"), ([10_000, 30], "others")):
        config = base_config(training={"ema_half_lives": half_lives, "images": 40})
        train(config, colour_data, tmp_path / name, device=CPU)
    one, others = _weights(tmp_path / "one"), _weights(tmp_path / "others")
    raw = [name for name in one if name.startswith("model.safetensors")]
    assert raw
    assert all(torch.equal(one[name], others[name]) for name in raw)
    name = raw[0].partition("/")[2]
    assert not torch.equal(others[f"ema-10000.safetensors/{name}"], others[f"ema-30.safetensors/{name}"])


def test_batch_size_changes_the_steps_and_not_the_schedule(base_config: Configure) -> None:
    for batch in (8, 32):
        settings = {"batch_size": batch, "decay": "linear", "images": 640}
        assert learning_rate(base_config(training=settings).training, 320) == pytest.approx(0.0005)


def test_max_images_moves_no_learning_rate(tmp_path: Path, base_config: Configure, colour_data: PreparedData) -> None:
    config = base_config(training={"decay": "cosine", "warmup_images": 24, "log_every": 8})
    train(config, colour_data, tmp_path / "short", device=CPU, max_images=30)
    train(config, colour_data, tmp_path / "long", device=CPU)
    short, long = ([line["lr"] for line in read_metrics(tmp_path / name)] for name in ("short", "long"))
    assert len(short) == 4
    assert short == long[:4]


def test_a_finished_run_stays_as_it_is(tmp_path: Path, base_config: Configure, colour_data: PreparedData) -> None:
    train(base_config(), colour_data, tmp_path, device=CPU)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "checkpoints").rglob("*")}
    result = train(base_config(), colour_data, tmp_path, device=CPU, max_images=8)
    assert result.images == 64
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "checkpoints").rglob("*")} == before
    assert [line["images"] for line in read_metrics(tmp_path)] == [16, 32, 48, 64]


def test_max_seconds_stops_and_saves(tmp_path: Path, base_config: Configure, colour_data: PreparedData) -> None:
    result = train(base_config(training={"images": 10**8}), colour_data, tmp_path, device=CPU, max_seconds=0.3)
    assert 8 <= result.images < 10**6
    assert int(result.checkpoint.name) == result.images
    again = train(base_config(training={"images": 10**8}), colour_data, tmp_path, device=CPU, max_seconds=0)
    assert again.images == result.images + 8  # however little time, it gets on


def test_losses_that_stay_not_finite_end_the_run_and_its_last_checkpoint_stands(
    tmp_path: Path, base_config: Configure, colour_data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poisoned(trainer: Trainer, batch: Any) -> Tensor:
        losses = honest(trainer, batch)
        return losses * math.nan if trainer.state.images >= 40 else losses

    honest = Trainer.losses
    monkeypatch.setattr(Trainer, "losses", poisoned)
    words = r"base8: loss nan .* 2 steps in a row; the run stops.* learning_rate.*; the checkpoint at 32 images"
    with pytest.raises(RuntimeError, match=words):
        train(base_config(training={"max_skipped_steps": 1}), colour_data, tmp_path, device=CPU)
    assert [int(path.name) for path in checkpoint_folders(tmp_path)] == [32]
    lines = read_metrics(tmp_path)
    assert [line["images"] for line in lines] == [16, 32, 48, 56]
    skipped = [event["images"] for line in lines for event in line.get("skipped_steps", [])]
    assert skipped == [40, 48]  # the second after the last line that was due


def test_a_step_that_is_not_finite_is_skipped_counted_and_told(
    tmp_path: Path,
    base_config: Configure,
    colour_data: PreparedData,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def poisoned(trainer: Trainer, batch: Any) -> Tensor:
        losses = honest(trainer, batch)
        bad = torch.zeros_like(losses)
        bad[2] = math.inf if trainer.state.images == 40 else 0
        return losses + bad

    honest = Trainer.losses
    monkeypatch.setattr(Trainer, "losses", poisoned)
    assert train(base_config(), colour_data, tmp_path, device=CPU).images == 64
    lines = read_metrics(tmp_path)
    assert [line["skipped"] for line in lines] == [0, 0, 1, 0]
    (event,) = lines[2]["skipped_steps"]
    assert (event["images"], event["positions"], event["examples"]) == (40, [42], 1)
    assert "the step at 40 images skipped" in caplog.text
    assert lines[2]["loss"] is not None
    for name, value in read_checkpoint_tensors(tmp_path).items():
        assert bool(value.isfinite().all()), name


def read_checkpoint_tensors(run: Path) -> dict[str, Tensor]:
    """Weights and averages of a run's newest checkpoint."""
    files = sorted(checkpoint_folders(run)[-1].glob("*.safetensors"))
    return {f"{file.name}/{name}": value for file in files for name, value in load_file(file).items()}


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(
    tmp_path: Path, base_config: Configure, colour_data: PreparedData, caplog: pytest.LogCaptureFixture
) -> None:
    train(base_config(), colour_data, tmp_path, device=CPU, max_images=40)
    path = checkpoint_folders(tmp_path)[-1] / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    train(base_config(), colour_data, tmp_path, device=CPU)
    assert "model.safetensors: damaged" in caplog.text
    # From the good one at 32 images, and to the very same end.
    train(base_config(), colour_data, tmp_path.parent / "whole", device=CPU)
    whole = read_checkpoint_tensors(tmp_path.parent / "whole")
    assert all(torch.equal(value, whole[name]) for name, value in read_checkpoint_tensors(tmp_path).items())


def test_changes_are_refused_or_allowed(tmp_path: Path, base_config: Configure, colour_data: PreparedData) -> None:
    train(base_config(), colour_data, tmp_path, device=CPU, max_images=16)
    changed = base_config(training={"learning_rate": 2e-3})
    with pytest.raises(UserError, match=r"training\.learning_rate: 0\.001 -> 0\.002"):
        train(changed, colour_data, tmp_path, device=CPU)
    result = train(changed, colour_data, tmp_path, device=CPU, max_images=32, allow_changes=True)
    assert result.images == 32
    assert read_metrics(tmp_path)[-1]["lr"] == 2e-3


def test_a_resume_that_cannot_be_leaves_the_run_as_it_was(
    tmp_path: Path, base_config: Configure, colour_data: PreparedData
) -> None:
    """Settings are recorded once the checkpoint is known to fit them."""
    train(base_config(), colour_data, tmp_path, device=CPU, max_images=16)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    wider = base_config(network={"channels": 24})
    with pytest.raises(UserError, match="does not fit this stage's network"):
        train(wider, colour_data, tmp_path, device=CPU, allow_changes=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert train(base_config(), colour_data, tmp_path, device=CPU, max_images=24).images == 24


def test_other_images_are_refused_or_allowed(
    tmp_path: Path, base_config: Configure, colour_data: PreparedData, colour_folder: Path
) -> None:
    """Of the same channels and classes: without the hash, every training position would silently mean another image."""
    train(base_config(), colour_data, tmp_path / "run", device=CPU, max_images=16)
    images = 255 - np.load(colour_folder / "train/images_32.npy")
    labels = np.load(colour_folder / "train/labels.npy")
    np.savez(tmp_path / "others.npz", arr_0=images, arr_1=labels)
    prepare(str(tmp_path / "others.npz"), tmp_path / "data", resolutions=[8], workers=0)
    others = PreparedData.open(tmp_path / "data")
    with pytest.raises(UserError, match="holds other training images than the run was trained on so far, or the same"):
        train(base_config(), others, tmp_path / "run", device=CPU)
    # What else was prepared with them does not matter.
    np.savez(tmp_path / "same.npz", arr_0=255 - images, arr_1=labels)
    prepare(str(tmp_path / "same.npz"), tmp_path / "same", resolutions=[8, 16], workers=0)
    train(base_config(), PreparedData.open(tmp_path / "same"), tmp_path / "run", device=CPU, max_images=24)
    result = train(base_config(), others, tmp_path / "run", device=CPU, max_images=32, allow_changes=True)
    assert result.images == 32
    # A run from before the hash was recorded goes on.
    manifest = checkpoint_folders(tmp_path / "run")[-1] / "manifest.json"
    told = json.loads(manifest.read_text())
    del told["data"]
    manifest.write_text(json.dumps(told))
    assert train(base_config(), colour_data, tmp_path / "run", device=CPU, max_images=40).images == 40


def _flip_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("kind, name", [("base", "images_8.npy"), ("sr", "images_8.npy"), ("sr", "labels.npy")])
def test_images_that_changed_on_disk_are_refused_or_allowed(
    kind: str,
    name: str,
    tmp_path: Path,
    base_config: Configure,
    sr_config: Configure,
    colour_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The manifest, and with it the hash in the checkpoint, is as it was."""
    config = base_config() if kind == "base" else sr_config()
    shutil.copytree(colour_folder, tmp_path / "data")
    data, run = PreparedData.open(tmp_path / "data"), tmp_path / "run"
    train(config, data, run, device=CPU, max_images=8)
    # Not what the stage is trained on.
    for other in ("train/images_32.npy", "val/images_8.npy"):
        _flip_last_byte(tmp_path / "data" / other)
    train(config, data, run, device=CPU, max_images=16)
    path = tmp_path / "data/train" / name
    values = np.load(path)
    np.save(path, (values + 1) % 4 if name == "labels.npy" else values ^ 1)
    data = PreparedData.open(tmp_path / "data")
    with pytest.raises(UserError, match=rf"{name}: not as it was prepared .*another folder, or pass --allow-changes"):
        train(config, data, run, device=CPU, max_images=24)
    assert [int(folder.name) for folder in checkpoint_folders(run)] == [8, 16]
    # Neither a new run nor one of more than can be read in a moment waits for it.
    assert train(config, data, tmp_path / "new", device=CPU, max_images=8).images == 8
    assert train(config, data, run, device=CPU, max_images=24, allow_changes=True).images == 24
    monkeypatch.setattr(run_module, "MOST_VERIFIED", 1000)
    assert train(config, data, run, device=CPU, max_images=32).images == 32


def test_what_does_not_fit_is_refused_before_anything_is_written(
    tmp_path: Path, base_config: Configure, colour_data: PreparedData, grey_data: PreparedData
) -> None:
    with pytest.raises(UserError, match=r"channels: the stage has 3, the data 1"):
        train(base_config(), grey_data, tmp_path / "run", device=CPU)
    with pytest.raises(UserError, match=r"base8: sampling\.steps: 41 is more than the T=40"):
        train(base_config(sampling={"steps": 41}), colour_data, tmp_path / "run", device=CPU)
    assert not (tmp_path / "run").exists()
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(UserError, match=r"not a run folder and not empty"):
        train(base_config(), colour_data, tmp_path, device=CPU)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_it_trains_outside_the_main_thread(tmp_path: Path, base_config: Configure, colour_data: PreparedData) -> None:
    """Where Python allows no signal handlers, the caller deals with signals."""
    import threading

    results: list[int] = []
    work = threading.Thread(
        target=lambda: results.append(train(base_config(), colour_data, tmp_path, device=CPU, max_images=8).images)
    )
    work.start()
    work.join()
    assert results == [8]


def test_a_second_signal_does_not_stop_the_last_save(
    tmp_path: Path, base_config: Configure, colour_data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os
    import signal

    def save(state: TrainingState, run: Path, parts: Parts | None = None, **told: Any) -> Path:
        os.kill(os.getpid(), signal.SIGINT)
        return honest(state, run, parts, **told)

    honest = TrainingState.save
    monkeypatch.setattr(TrainingState, "save", save)

    def impatient(progress: Progress) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    result = train(base_config(), colour_data, tmp_path, device=CPU, watch=impatient)
    assert result.images == 8
    assert result.signal == signal.SIGTERM  # the one that ended it
    assert [int(path.name) for path in checkpoint_folders(tmp_path)] == [8]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
