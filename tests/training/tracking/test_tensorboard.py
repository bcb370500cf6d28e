"""Real event files, read as TensorBoard reads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cascaded_diffusion.cascade.stage import StageConfig
from cascaded_diffusion.data.prepared import PreparedData
from cascaded_diffusion.training.loop import Progress, read_metrics, train
from cascaded_diffusion.training.tracking.base import Place
from cascaded_diffusion.training.tracking.tensorboard import TensorBoardTracker

Configure = Callable[..., StageConfig]
Shown = Callable[[Path], Any]
CPU = torch.device("cpu")


def test_a_killed_and_resumed_run_is_one_curve(
    tmp_path: Path, base_config: Configure, colour_data: PreparedData, shown: Shown
) -> None:
    settings = {"log_every": 8, "checkpoint_every": 32, "preview_every": 16, "preview_count": 2, "decay": "linear"}
    config = base_config(training=settings, class_names=["Bag", "<b>|", "Größe", "a b"])

    def die(progress: Progress) -> None:
        if progress.images == 56:
            raise KeyboardInterrupt  # no failure that the loop would save after

    with pytest.raises(KeyboardInterrupt):
        train(config, colour_data, tmp_path, device=CPU, trackers=["tensorboard"], watch=die)
    train(config, colour_data, tmp_path, device=CPU, trackers=["tensorboard"])
    found = shown(tmp_path / "tensorboard")
    lines = read_metrics(tmp_path)
    for name in ("lr", "loss", "grad_norm", "images_per_second", "data_wait"):
        assert found.scalars(name) == [(line["images"], pytest.approx(line[name], rel=1e-6)) for line in lines], name
    for bucket in range(8):
        values = [(line["images"], line["loss_by_time"][bucket]) for line in lines]
        told = found.scalars(f"loss_by_time/{bucket + 1}")
        assert told == [(images, pytest.approx(value, rel=1e-6)) for images, value in values if value is not None]
    pictures = found.images("preview")
    assert [step for step, _ in pictures] == [16, 32, 48, 64]
    assert all(png.startswith(b"\x89PNG") for _, png in pictures)
    ((step, text),) = found.texts("config")
    assert step == 0
    told_config = json.loads("".join(line.removeprefix("    ") for line in text.splitlines(keepends=True)))
    names = ["Bag", "<b>|", "Größe", "a b"]
    assert told_config == {**config.model_dump(mode="json"), "class_names": names}
    hparams = found.hparams()
    assert hparams["training.learning_rate"] == 1e-3
    assert json.loads(hparams["class_names"]) == names
    assert hparams["conditioning"] == "null"


def test_a_changed_configuration_is_shown_where_it_begins(tmp_path: Path, shown: Shown) -> None:
    for images, rate in ((0, 1e-3), (32, 5e-4)):
        tracker = TensorBoardTracker(Place(tmp_path, "abcd", images=images, is_new=images == 0))
        tracker.config({"training": {"learning_rate": rate}})
        tracker.close()
    tracker = TensorBoardTracker(Place(tmp_path, "abcd", images=64, is_new=False, is_reconfigured=False))
    tracker.config({"training": {"learning_rate": 5e-4}})
    tracker.close()
    found = shown(tmp_path / "tensorboard")
    assert [step for step, _ in found.texts("config")] == [0, 32]
    assert "0.0005" in found.texts("config")[1][1]
    assert found.hparams() == {"training.learning_rate": 1e-3}


def test_a_forgotten_run_is_shown_anew(tmp_path: Path, shown: Shown) -> None:
    """As after tracking.json was deleted: what lies there is told a second time, and shown once."""
    for _ in range(2):
        tracker = TensorBoardTracker(Place(tmp_path, "abcd", images=32))
        for images in (8, 16):
            tracker.scalars(images, {"loss": 0.5})
        tracker.close()
    assert shown(tmp_path / "tensorboard").scalars("loss") == [(8, 0.5), (16, 0.5)]


def test_a_line_is_on_disk_before_the_next_checkpoint(tmp_path: Path, shown: Shown) -> None:
    tracker = TensorBoardTracker(Place(tmp_path, "abcd"))
    tracker.scalars(8, {"loss": 0.5})
    tracker.image(8, "preview", np.zeros((4, 6, 3), np.uint8))
    found = shown(tmp_path / "tensorboard")  # the writer is still open, and may be killed
    assert found.scalars("loss") == [(8, 0.5)]
    assert [step for step, _ in found.images("preview")] == [8]
    tracker.close()


def test_tables_are_markdown(tmp_path: Path, shown: Shown) -> None:
    tracker = TensorBoardTracker(Place(tmp_path, "abcd"))
    tracker.table(6, "points/sr16", ["point", "fd"], [["s=0 | x", 1.5]])
    tracker.close()
    assert shown(tmp_path / "tensorboard").texts("points/sr16") == [
        (6, "| point | fd |\n| --- | --- |\n| s=0 \\| x | 1.5 |")
    ]


def test_a_disk_that_is_full_does_not_end_the_run(
    tmp_path: Path, base_config: Configure, colour_data: PreparedData, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(EventFileWriter, "flush", full)
    result = train(base_config(), colour_data, tmp_path, device=CPU, trackers=["tensorboard"])
    assert result.images == 64
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: tensorboard: switched off until the next start (OSError: [Errno 28] No space")
    assert [line["images"] for line in read_metrics(tmp_path)] == [16, 32, 48, 64]
