from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from cascaded_diffusion.cascade.stage import StageConfig
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.files import read_json, sha256_of, write_json
from cascaded_diffusion.training.config import TrainingConfig
from cascaded_diffusion.training.state import TrainingState, learning_rate

Configure = Callable[..., StageConfig]
CPU = torch.device("cpu")


def _rate(images: int, **settings: object) -> float:
    raw = {"images": 1000, "batch_size": 10, "learning_rate": 0.1, **settings}
    return learning_rate(TrainingConfig.model_validate(raw), images)


def test_warm_up_is_linear_and_ends_at_the_peak() -> None:
    rates = [_rate(images, warmup_images=100) for images in (0, 10, 50, 90, 100, 900)]
    assert rates == pytest.approx([0.01, 0.02, 0.06, 0.1, 0.1, 0.1])


def test_without_warm_up_or_decay_the_rate_is_constant() -> None:
    assert {_rate(images) for images in (0, 10, 500, 990)} == {0.1}


@pytest.mark.parametrize("images, share", [(0, 1), (500, 1), (600, 0.8), (750, 0.5), (900, 0.2), (1000, 0), (1010, 0)])
def test_linear_decay(images: int, share: float) -> None:
    assert _rate(images, decay="linear", decay_start=0.5) == pytest.approx(0.1 * share, abs=1e-9)


@pytest.mark.parametrize("left", [1.0, 0.75, 0.5, 0.25, 0.0])
def test_cosine_decay(left: float) -> None:
    images = round(1000 - 500 * left)
    expected = 0.1 * 0.5 * (1 - math.cos(math.pi * left))
    assert _rate(images, decay="cosine", decay_start=0.5) == pytest.approx(expected, abs=1e-7)


def test_initial_weights_depend_on_seed_and_stage_alone(base_config: Configure) -> None:
    torch.manual_seed(1)
    first = TrainingState.fresh(base_config(), CPU).network.state_dict()
    torch.manual_seed(2)
    other = base_config(training={"batch_size": 4, "ema_half_lives": [5], "learning_rate": 0.5})
    again = TrainingState.fresh(other, CPU).network.state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    reseeded = TrainingState.fresh(base_config(training={"seed": 1}), CPU).network.state_dict()
    assert any(not torch.equal(first[name], reseeded[name]) for name in first)


def test_drawing_initial_weights_leaves_the_callers_generator_alone(base_config: Configure) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    TrainingState.fresh(base_config(), CPU)
    assert torch.equal(torch.rand(3), expected)


def _stepped(config: StageConfig) -> TrainingState:
    """A state whose optimizer has moments and whose averages differ from the weights."""
    state = TrainingState.fresh(config, CPU)
    for parameter in state.network.parameters():
        parameter.grad = torch.randn_like(parameter)
    state.optimizer.step()
    state.averages.update(8, 8)
    state.images = 8
    return state


def test_a_saved_state_comes_back_bit_equal(base_config: Configure, tmp_path: Path) -> None:
    state = _stepped(base_config())
    folder = state.save(tmp_path)
    back = TrainingState.fresh(base_config(training={"seed": 9}), CPU)
    back.load(folder)
    assert back.images == 8
    assert all(torch.equal(a, b) for a, b in zip(state.network.parameters(), back.network.parameters(), strict=True))
    for half_life, average in state.averages.weights.items():
        assert all(torch.equal(average[name], back.averages.weights[half_life][name]) for name in average)
    old, new = state.optimizer.state_dict(), back.optimizer.state_dict()
    assert old["param_groups"] == new["param_groups"]
    for i, moments in old["state"].items():
        assert all(torch.equal(value, new["state"][i][key]) for key, value in moments.items())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_not_saved(bad: float, base_config: Configure, tmp_path: Path) -> None:
    state = _stepped(base_config())
    good = state.save(tmp_path)
    state.images = 16
    with torch.no_grad():
        next(state.network.parameters()).view(-1)[3] = bad
    with pytest.raises(RuntimeError, match=r"base8: .* is not finite after 16 images; nothing was saved"):
        state.save(tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [good.name]


def test_another_networks_checkpoint_is_refused(base_config: Configure, tmp_path: Path) -> None:
    folder = _stepped(base_config()).save(tmp_path)
    wider = TrainingState.fresh(base_config(network={"channels": 64}), CPU)
    with pytest.raises(UserError, match=r"does not fit this stage's network or optimizer") as caught:
        wider.load(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_new_half_life_starts_from_the_weights(base_config: Configure, tmp_path: Path) -> None:
    state = _stepped(base_config())
    folder = state.save(tmp_path)
    more = TrainingState.fresh(base_config(training={"ema_half_lives": [64, 128]}), CPU)
    more.load(folder)
    for name, parameter in state.network.named_parameters():
        assert torch.equal(more.averages.weights[128][name], parameter)
        assert torch.equal(more.averages.weights[64][name], state.averages.weights[64][name])


def test_changed_optimizer_settings_take_effect_after_a_resume(base_config: Configure, tmp_path: Path) -> None:
    """The checkpoint's settings must not come back with its moments."""
    folder = _stepped(base_config()).save(tmp_path)
    changes = {"optimizer": "adamw", "weight_decay": 0.02, "betas": [0.8, 0.9], "eps": 1e-6}
    state = TrainingState.fresh(base_config(training=changes), CPU)
    state.load(folder)
    group = state.optimizer.param_groups[0]
    assert (group["weight_decay"], tuple(group["betas"]), group["eps"]) == (0.02, (0.8, 0.9), 1e-6)
    assert group["decoupled_weight_decay"]
    assert len(state.optimizer.state_dict()["state"]) == len(list(state.network.parameters()))


def test_weight_decay_without_adamw_is_refused(base_config: Configure) -> None:
    with pytest.raises(ValidationError, match=r"weight_decay: 0.1 needs optimizer: adamw"):
        base_config(training={"weight_decay": 0.1})


def _rehash(folder: Path, name: str) -> None:
    manifest = read_json(folder / "manifest.json")
    manifest["files"][name] = sha256_of(folder / name)
    write_json(folder / "manifest.json", manifest)


def test_a_checkpoint_with_other_tensors_is_refused(base_config: Configure, tmp_path: Path) -> None:
    folder = _stepped(base_config()).save(tmp_path)
    weights = load_file(folder / "model.safetensors")
    weights.pop("stem.weight")
    save_file(weights, folder / "model.safetensors")
    _rehash(folder, "model.safetensors")
    with pytest.raises(UserError, match=r"does not fit .*stem\.weight"):
        TrainingState.fresh(base_config(), CPU).load(folder)


class _Surprise:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("unpickled",)


def test_the_optimizer_file_is_never_unpickled(
    base_config: Configure, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _stepped(base_config()).save(tmp_path)
    torch.load(folder / "optimizer.pt", weights_only=True)
    torch.save({"state": _Surprise()}, folder / "optimizer.pt")
    _rehash(folder, "optimizer.pt")
    with pytest.raises(UserError, match=r"does not fit"):
        TrainingState.fresh(base_config(), CPU).load(folder)
    assert "unpickled" not in capsys.readouterr().out
