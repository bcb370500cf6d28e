"""Steps whose loss or gradient is not finite are skipped, told of and counted; spikes are told of."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from cascaded_diffusion.cascade.stage import StageConfig
from cascaded_diffusion.data.prepared import PreparedData
from cascaded_diffusion.training.batches import BatchSource
from cascaded_diffusion.training.checkpoint import checkpoint_folders
from cascaded_diffusion.training.guard import Guard
from cascaded_diffusion.training.loop import read_metrics, train
from cascaded_diffusion.training.state import TrainingState
from cascaded_diffusion.training.trainer import Trainer

Configure = Callable[..., StageConfig]
CPU = torch.device("cpu")
GOOD = torch.arange(8).float() / 8


def _judge(guard: Guard, loss: float, *, norm: float = 1.0, losses: Tensor = GOOD, start: int = 80) -> bool:
    return guard.judge(loss, norm, start=start, losses=lambda: losses, places=lambda positions: 100 - positions)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_neither_loss_nor_gradient_may_be_infinite(bad: float) -> None:
    guard = Guard()
    assert _judge(guard, 0.5)
    assert not _judge(guard, bad)
    assert not _judge(guard, 0.5, norm=bad)
    assert guard.in_a_row == 2
    assert _judge(guard, 0.5)
    assert guard.in_a_row == 0
    assert guard.skipped == 2


def test_the_bad_examples_are_named_by_position_and_place(caplog: pytest.LogCaptureFixture) -> None:
    guard = Guard()
    losses = GOOD.clone()
    losses[2], losses[7] = math.nan, math.inf
    _judge(guard, math.nan, losses=losses, start=80)
    (line,) = caplog.messages
    assert line == (
        "the step at 80 images skipped, with loss nan and gradient norm 1.0; not finite: positions [82, 87], in the "
        "data [18, 13]"
    )
    event = {"images": 80, "loss": "nan", "examples": 2, "positions": [82, 87], "indices": [18, 13]}
    assert guard.report() == {"skipped": 1, "skipped_steps": [event]}
    assert guard.report() == {"skipped": 0}


def test_a_batch_that_is_bad_throughout_is_not_listed_whole(caplog: pytest.LogCaptureFixture) -> None:
    guard = Guard()
    _judge(guard, math.nan, losses=torch.full((5000,), math.nan))
    assert len(caplog.messages[0]) < 600
    assert "and 4968 more" in caplog.messages[0]
    (event,) = guard.report()["skipped_steps"]
    assert event["examples"] == 5000
    assert event["positions"] == list(range(80, 112))


def test_a_gradient_alone_blames_no_example(caplog: pytest.LogCaptureFixture) -> None:
    _judge(Guard(), 0.5, norm=math.inf)
    assert caplog.messages[0].endswith("with loss 0.5 and gradient norm inf; not finite: no example")


def test_spikes_are_told_with_their_worst_examples(caplog: pytest.LogCaptureFixture) -> None:
    """Against losses of mean 1 and standard deviation 0.1: ten deviations, and never less than twice the median."""
    guard = Guard()
    generator = np.random.default_rng(0)
    for loss in generator.normal(1, 0.1, 200):
        assert _judge(guard, float(loss))
    assert caplog.messages == []
    assert _judge(guard, 1.9)
    assert caplog.messages == []
    assert _judge(guard, 2.6, losses=torch.tensor([0.0, 9.0, 1.0, 5.0]), start=400)
    (line,) = caplog.messages
    assert line.startswith("the step at 400 images has a loss of 2.6, usual is ")
    assert line.endswith("at most; highest: positions [401, 403, 402, 400], in the data [-301, -303, -302, -300]")
    assert [event["images"] for event in guard.report()["spikes"]] == [400]


def test_the_first_steps_are_no_spikes(caplog: pytest.LogCaptureFixture) -> None:
    guard = Guard()
    for loss in [1.0] * 31 + [50.0] + [1.0] * 5:
        assert _judge(guard, loss)
    assert caplog.messages == []


def test_what_it_remembers_survives_a_checkpoint() -> None:
    guard = Guard()
    for loss in [*np.random.default_rng(1).normal(1, 0.1, 150), math.nan]:
        _judge(guard, float(loss))
    again = Guard.from_json(json.loads(json.dumps(guard.to_json(), allow_nan=False)))
    assert again.to_json() == guard.to_json()
    for each in (guard, again):
        _judge(each, 5.0)
    assert again.report() == guard.report()
    assert again.to_json() == guard.to_json()


@pytest.mark.parametrize("value", [[], None, {}, {"in_a_row": 0, "skipped": 0, "recent": 3, "events": {}}])
def test_another_thing_is_not_taken_for_it(value: Any) -> None:
    with pytest.raises(ValueError, match="guard: not what a checkpoint says of it"):
        Guard.from_json(value)


# -- in a run ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``poison([16, 24])``: the steps that begin at these images have a NaN as the loss of their third example."""

    def make(starts: Collection[int], bad: float = math.nan) -> None:
        def losses(trainer: Trainer, batch: Any) -> Tensor:
            values = honest(trainer, batch)
            mask = torch.ones_like(values)
            mask[2] = bad
            return values * mask if trainer.state.images in starts else values

        honest = Trainer.losses
        monkeypatch.setattr(Trainer, "losses", losses)

    return make


def _contents(folder: Path) -> dict[str, Tensor]:
    tensors = {f"{p.name}/{k}": v for p in folder.glob("*.safetensors") for k, v in load_file(p).items()}
    moments = torch.load(folder / "optimizer.pt", weights_only=True)["state"]
    return tensors | {f"{i}/{key}": value for i, state in moments.items() for key, value in state.items()}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_skipped_step_moves_nothing_but_the_count(
    bad: float, tmp_path: Path, base_config: Configure, colour_data: PreparedData, poison: Callable[..., None]
) -> None:
    """Weights, averages and moments, Adam's count of steps among them; the images are counted."""
    config = base_config(training={"checkpoint_every": 8, "keep_checkpoints": None})
    poison([16, 24], bad)
    train(config, colour_data, tmp_path, device=CPU, max_images=40)
    before, first, second, after = (_contents(folder) for folder in checkpoint_folders(tmp_path)[1:5])
    assert all(torch.equal(before[name], first[name]) for name in before)
    assert all(torch.equal(before[name], second[name]) for name in before)
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(moved) > 0.9 * len(before)


def test_the_log_names_what_was_skipped(
    tmp_path: Path,
    base_config: Configure,
    colour_data: PreparedData,
    poison: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = base_config()
    poison([16, 40])
    train(config, colour_data, tmp_path, device=CPU)
    lines = read_metrics(tmp_path)
    assert [line["skipped"] for line in lines] == [0, 1, 1, 0]
    assert all(math.isfinite(line["loss"]) and math.isfinite(line["grad_norm"]) for line in lines)
    (event,) = lines[1]["skipped_steps"]
    assert event["positions"] == [18]
    assert event["indices"] == BatchSource(config, colour_data, CPU).positions(np.array([18])).tolist()
    assert [message.partition(" skipped")[0] for message in caplog.messages] == [
        "the step at 16 images",
        "the step at 40 images",
    ]


def test_a_line_of_skipped_steps_alone_has_no_loss(
    tmp_path: Path, base_config: Configure, colour_data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Trainer.losses
    monkeypatch.setattr(
        Trainer,
        "losses",
        lambda trainer, batch: honest(trainer, batch) * (math.nan if trainer.state.images < 16 else 1),
    )
    train(base_config(), colour_data, tmp_path, device=CPU, max_images=32)
    first, second = read_metrics(tmp_path)
    assert (first["loss"], first["grad_norm"], first["skipped"]) == (None, None, 2)
    assert second["loss"] > 0


@pytest.mark.parametrize("micro_batch, workers", [(None, 0), (4, 2)])
def test_a_run_that_skips_resumes_to_the_bit(
    micro_batch: int | None,
    workers: int,
    tmp_path: Path,
    base_config: Configure,
    colour_data: PreparedData,
    poison: Callable[..., None],
) -> None:
    """Also what it reports, although the interruptions fall between a skipped step and the log's next line."""
    training = {"micro_batch": micro_batch, "log_every": 32, "max_skipped_steps": 3}
    config = base_config(network={"dropout": 0.2}, training=training)
    poison([8, 16, 24, 40])
    train(config, colour_data, tmp_path / "whole", device=CPU)
    for most in (16, 24, 48, 64):
        train(config, colour_data, tmp_path / "parts", device=CPU, max_images=most, data_workers=workers)
    one, two = (_contents(checkpoint_folders(tmp_path / name)[-1]) for name in ("whole", "parts"))
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []
    reported = [
        [event["positions"] for line in read_metrics(tmp_path / name) for event in line.get("skipped_steps", ())]
        for name in ("whole", "parts")
    ]
    size = micro_batch or 8
    expected = [[start + i + 2 for i in range(0, 8, size)] for start in (8, 16, 24, 40)]
    assert reported == [expected, expected]


def test_too_many_in_a_row_end_the_run_and_its_last_checkpoint_stands(
    tmp_path: Path, base_config: Configure, colour_data: PreparedData, poison: Callable[..., None]
) -> None:
    config = base_config(training={"max_skipped_steps": 2, "images": 400})
    poison([8, 16, *range(40, 400, 8)])
    with pytest.raises(RuntimeError) as caught:
        train(config, colour_data, tmp_path, device=CPU)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith("base8: loss nan and gradient norm nan at 64 images, 3 steps in a row; the run stops. Try a")
    assert line.endswith("; the checkpoint at 32 images stands, 32 images of training are not in it")
    assert [int(path.name) for path in checkpoint_folders(tmp_path)] == [32]


def test_the_count_in_a_row_goes_on_after_an_interruption(
    tmp_path: Path, base_config: Configure, colour_data: PreparedData, poison: Callable[..., None]
) -> None:
    config = base_config(training={"max_skipped_steps": 2, "images": 400})
    poison(range(8, 400, 8))
    train(config, colour_data, tmp_path, device=CPU, max_images=24)
    with pytest.raises(RuntimeError, match=r"at 32 images, 3 steps in a row"):
        train(config, colour_data, tmp_path, device=CPU)


@pytest.mark.parametrize("where", ["weight", "average", "moment"])
def test_nothing_that_is_not_finite_is_saved(
    where: str, tmp_path: Path, base_config: Configure, colour_data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it comes about by other ways than the gradient, as by a broken device."""
    honest = Trainer.step

    def step(trainer: Trainer, *args: Any) -> None:
        honest(trainer, *args)
        state: TrainingState = trainer.state
        parameter = next(iter(state.network.parameters()))
        tensor = {
            "weight": parameter.data,
            "average": next(iter(state.averages.weights[64].values())),
            "moment": state.optimizer.state[parameter]["exp_avg_sq"],
        }[where]
        if state.images == 48:
            tensor.view(-1)[1] = math.inf

    monkeypatch.setattr(Trainer, "step", step)
    config = base_config(training={"checkpoint_every": 16})
    words = {
        "weight": r"\w+\.\S+",
        "average": r"the average 64 of \w+\.\S+",
        "moment": r"the optimizer's exp_avg_sq of",
    }
    with pytest.raises(RuntimeError, match=rf"base8: {words[where]}.* is not finite after 48 images") as caught:
        train(config, colour_data, tmp_path, device=CPU)
    assert str(caught.value).endswith("the checkpoint at 32 images stands, 16 images of training are not in it")
    assert [int(path.name) for path in checkpoint_folders(tmp_path)] == [16, 32]


def test_warnings_are_one_line_each(
    tmp_path: Path,
    base_config: Configure,
    colour_data: PreparedData,
    poison: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    poison([8])
    with caplog.at_level(logging.WARNING):
        train(base_config(), colour_data, tmp_path, device=CPU, max_images=16)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "\n" not in caplog.messages[0]
