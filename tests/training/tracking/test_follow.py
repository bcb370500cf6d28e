"""Which tracker is told what and when: nothing twice, nothing lost, and no failure of one ends a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from cascaded_diffusion.cascade.stage import StageConfig
from cascaded_diffusion.data.prepared import PreparedData
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.ranks import Ranks
from cascaded_diffusion.training.checkpoint import checkpoint_folders
from cascaded_diffusion.training.loop import Progress, read_metrics, train
from cascaded_diffusion.training.tracking import follow as follow_module
from cascaded_diffusion.training.tracking.follow import Channel, Table, follow, pixels_of
from cascaded_diffusion.training.tracking.memory import read_record

Configure = Callable[..., StageConfig]
CPU = torch.device("cpu")


class Stop(Exception):
    """Stands for a process that dies."""


def _row(images: int, **values: Any) -> dict[str, Any]:
    return {"images": images, "lr": 1e-4, **values}


def _preview(run: Path, images: int) -> Path:
    path = run / "previews" / f"{images:012d}.png"
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.zeros((4, 6), np.uint8)).save(path)
    return path


@pytest.fixture
def notes() -> list[str]:
    """Lines told to a person."""
    return []


def test_lines_and_pictures_reach_the_file_and_the_tracker(
    tmp_path: Path, base_config: Configure, recorder: Any, notes: list[str]
) -> None:
    with follow(tmp_path, base_config(), 0, ["tensorboard"], note=notes.append) as log:
        log.write(_row(8, loss_by_time=[None, 0.5]))
        log.picture(8, _preview(tmp_path, 8))
    assert [kind for kind, *_ in recorder.told] == ["config", "scalars", "image", "close"]
    assert recorder.told[1] == ("scalars", 8, "", {"lr": 1e-4, "loss_by_time/2": 0.5})
    assert recorder.told[2] == ("image", 8, "preview", (4, 6, 3))
    assert read_metrics(tmp_path) == [_row(8, loss_by_time=[None, 0.5])]
    assert notes == []


def test_the_tracker_gets_the_whole_configuration(tmp_path: Path, base_config: Configure, recorder: Any) -> None:
    config = base_config(class_names=["Bag", "Größe", "a b", ""])
    with follow(tmp_path, config, 0, ["tensorboard"]):
        pass
    ((_, _, _, told),) = [entry for entry in recorder.told if entry[0] == "config"]
    assert told["class_names"] == ["Bag", "Größe", "a b", ""]
    assert told["training"]["learning_rate"] == 1e-3
    assert {key: value for key, value in told.items() if key != "class_names"} == {
        key: value for key, value in config.model_dump(mode="json").items() if key != "class_names"
    }


def test_a_tracker_that_comes_late_is_told_all_of_the_run(
    tmp_path: Path, base_config: Configure, recorder: Any
) -> None:
    with follow(tmp_path, base_config(), 0) as log:
        for images in (8, 16):
            log.write(_row(images))
        log.picture(16, _preview(tmp_path, 16))
    _preview(tmp_path, 24)  # of after the checkpoint: it will be drawn again
    assert not (tmp_path / "tracking.json").exists()
    with follow(tmp_path, base_config(), 16, ["tensorboard"]) as log:
        log.write(_row(24))
    assert recorder.images("scalars") == [8, 16, 24]
    assert recorder.images("image") == [16]


@pytest.mark.parametrize("rewinds, told", [(True, [8, 16, 24, 16, 24]), (False, [8, 16, 24])])
def test_what_was_told_after_the_last_checkpoint(
    rewinds: bool, told: list[int], tmp_path: Path, base_config: Configure, recorder: Any
) -> None:
    """Told again to a tracker that has hidden it, and not to one that still shows it."""
    recorder.rewinds = rewinds
    with follow(tmp_path, base_config(), 0, ["wandb"]) as log:
        for images in (8, 16, 24):
            log.write(_row(images))
        log.picture(24, _preview(tmp_path, 24))
    with follow(tmp_path, base_config(), 8, ["wandb"]) as log:
        for images in (16, 24):
            log.write(_row(images))
        log.picture(24, _preview(tmp_path, 24))
    assert recorder.images("scalars") == told
    assert recorder.images("image") == [24, 24] if rewinds else [24]
    first, second = recorder.places
    assert first.identity == second.identity
    assert (first.images, first.is_new, first.is_reconfigured) == (0, True, True)
    assert (second.images, second.is_new, second.is_reconfigured) == (8, False, False)


def test_a_changed_configuration_is_told_of(tmp_path: Path, base_config: Configure, recorder: Any) -> None:
    for rate in (1e-3, 2e-3):
        with follow(tmp_path, base_config(training={"learning_rate": rate}), 0, ["wandb"]):
            pass
    assert [place.is_reconfigured for place in recorder.places] == [True, True]
    assert recorder.told[-2][3]["training"]["learning_rate"] == 2e-3


@pytest.mark.parametrize("broken", ["open", "config", "scalars", "image", "close"])
def test_a_failure_is_one_line_and_the_tracker_s_end(
    broken: str, tmp_path: Path, base_config: Configure, recorder: Any, notes: list[str]
) -> None:
    recorder.broken = broken
    with follow(tmp_path, base_config(), 0, ["tensorboard"], note=notes.append) as log:
        for images in (8, 16):
            log.write(_row(images))
            log.picture(images, _preview(tmp_path, images))
    (line,) = notes
    assert line.startswith("warning: tensorboard: switched off until the next start (")
    assert ("no route to host" if broken == "open" else "No space left on device") in line
    assert line.endswith("metrics.jsonl goes on")
    assert len(read_metrics(tmp_path)) == 2
    recorder.broken = None
    recorder.told.clear()
    with follow(tmp_path, base_config(), 16, ["tensorboard"], note=notes.append):
        pass
    missed = [8, 16] if broken in ("open", "config", "scalars") else [16] if broken == "image" else []
    assert recorder.images("scalars") == missed
    assert len(notes) == 1


def test_a_client_s_own_kind_of_error_is_no_exception(
    tmp_path: Path, base_config: Configure, recorder: Any, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise Stop("quota\nexceeded")

    monkeypatch.setattr(recorder, "scalars", fail)
    with follow(tmp_path, base_config(), 0, ["wandb"], note=notes.append) as log:
        log.write(_row(8))
    assert notes == ["warning: wandb: switched off until the next start (Stop: quota exceeded); metrics.jsonl goes on"]


def test_the_user_s_interrupt_is_not_swallowed(tmp_path: Path, base_config: Configure, recorder: Any) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    recorder.scalars = interrupted
    with pytest.raises(KeyboardInterrupt), follow(tmp_path, base_config(), 0, ["wandb"]) as log:
        log.write(_row(8))
    assert recorder.told[-1][0] == "close"


def test_what_is_no_number_is_told_of_once(
    tmp_path: Path, base_config: Configure, recorder: Any, notes: list[str]
) -> None:
    with follow(tmp_path, base_config(), 0, ["wandb"], note=notes.append) as log:
        log.write(_row(8, event="spike"))
        log.write(_row(16, event="spike"))
    assert notes == ["note: wandb: event is no number and is told in metrics.jsonl alone"]
    assert recorder.images("scalars") == [8, 16]


def test_only_the_main_process_tells(
    tmp_path: Path, base_config: Configure, recorder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow_module, "current_ranks", lambda: Ranks(1, 2))
    with follow(tmp_path, base_config(), 0, ["wandb"]):
        pass
    assert recorder.told == []


def test_tables(tmp_path: Path, recorder: Any) -> None:
    channel = Channel("tensorboard", tmp_path)
    channel.open({})
    for _ in range(2):
        channel.tables(5, {"points": Table(["s", "fd"], [[0, 1.5]])})
    channel.close()
    channel.tables(6, {"points": Table(["s"], [])})  # closed: nobody is told
    assert [entry for entry in recorder.told if entry[0] == "table"] == [
        ("table", 5, "points", (["s", "fd"], [[0, 1.5]]))
    ]


def test_pictures_become_rgb(tmp_path: Path) -> None:
    assert pixels_of(_preview(tmp_path, 1)).shape == (4, 6, 3)


# -- with the training loop -------------------------------------------------------------------------------------------


def test_a_killed_and_resumed_run_is_one_curve(
    tmp_path: Path, base_config: Configure, colour_data: PreparedData, recorder: Any
) -> None:
    recorder.rewinds = False
    config = base_config(training={"log_every": 8, "checkpoint_every": 32, "preview_every": 16, "preview_count": 2})

    def die(progress: Progress) -> None:
        if progress.images == 56:
            raise Stop

    with pytest.raises(Stop):
        train(config, colour_data, tmp_path, device=CPU, trackers=["wandb"], watch=die)
    assert int(checkpoint_folders(tmp_path)[-1].name) == 32
    train(config, colour_data, tmp_path, device=CPU, trackers=["wandb"])
    steps = [8 * i for i in range(1, 9)]
    assert [line["images"] for line in read_metrics(tmp_path)] == steps
    assert recorder.images("scalars") == steps
    assert recorder.images("image") == [16, 32, 48, 64]
    shown = [values["lr"] for what, _, _, values in recorder.told if what == "scalars"]
    assert shown == [line["lr"] for line in read_metrics(tmp_path)] == [1e-3] * 8
    assert {"loss", "loss_by_time/8", "grad_norm", "images_per_second", "data_wait", "lr"} <= {
        name for what, _, _, values in recorder.told if what == "scalars" for name in values
    }


def test_trackers_come_go_and_fail_without_changing_the_run(
    tmp_path: Path, base_config: Configure, colour_data: PreparedData, recorder: Any, capsys: Any
) -> None:
    config = base_config(network={"dropout": 0.2})
    train(config, colour_data, tmp_path / "without", device=CPU)
    train(config, colour_data, tmp_path / "with", device=CPU, trackers=["wandb"], max_images=32)
    recorder.broken = "scalars"
    train(config, colour_data, tmp_path / "with", device=CPU, trackers=["tensorboard", "trackio"], max_images=48)
    # No --allow-changes: a tracker is no setting of the run.
    train(config, colour_data, tmp_path / "with", device=CPU)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[2].partition(":")[0] for line in lines] == [" tensorboard", " trackio"]
    left, right = (checkpoint_folders(tmp_path / name)[-1] for name in ("without", "with"))
    for path in left.glob("*.safetensors"):
        one, other = load_file(path), load_file(right / path.name)
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert json.loads((tmp_path / "with/config.json").read_text()) == config.model_dump(mode="json")
    assert set(read_record(tmp_path / "with").trackers) == {"wandb", "tensorboard", "trackio"}


def test_an_unknown_tracker_is_refused_before_anything_is_written(
    tmp_path: Path, base_config: Configure, colour_data: PreparedData
) -> None:
    with pytest.raises(UserError, match="track: 'mlflow' is not known"):
        train(base_config(), colour_data, tmp_path / "run", device=CPU, trackers=["mlflow"])
    assert not (tmp_path / "run").exists()
