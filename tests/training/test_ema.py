from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from cascaded_diffusion.cascade.stage import StageConfig
from cascaded_diffusion.data.prepared import PreparedData
from cascaded_diffusion.training.checkpoint import checkpoint_folders
from cascaded_diffusion.training.ema import Averages, ema_decay
from cascaded_diffusion.training.loop import train
from cascaded_diffusion.training.state import TrainingState


def _filled(value: float) -> nn.Linear:
    network = nn.Linear(3, 2)
    _fill(network, value)
    return network


@torch.no_grad()
def _fill(network: nn.Module, value: float) -> None:
    for parameter in network.parameters():
        parameter.fill_(value)


def test_decay_halves_over_a_half_life() -> None:
    decay = ema_decay(1000, 10, images_seen=10**9, rampup=None)
    assert decay**100 == pytest.approx(0.5)


def test_decay_of_the_paper() -> None:
    """0.9999 at batch 2048 is a half-life of 14.2 million images."""
    assert ema_decay(14.195e6, 2048, 10**12, None) == pytest.approx(0.9999, abs=1e-7)


@pytest.mark.parametrize("seen, expected", [(100, 0.5 ** (10 / 5)), (10_000, 0.5 ** (10 / 500)), (10**8, 0.5**0.01)])
def test_rampup_caps_the_half_life(seen: int, expected: float) -> None:
    assert ema_decay(1000, 10, seen, 0.05) == pytest.approx(expected)


def test_averages_follow_their_closed_form() -> None:
    """After weights w_1..w_n the average is d^n w_0 + (1-d) sum_i d^(n-i) w_i, for each half-life by itself."""
    network = _filled(1.0)
    averages = Averages(network, (100, 25, 400), None)
    values = [2.0, -1.0, 0.5, 3.0, 3.0, -2.0]
    for i, value in enumerate(values):
        _fill(network, value)
        averages.update(10, 10 * (i + 1))
    for half_life in (100, 25, 400):
        d = 0.5 ** (10 / half_life)
        n = len(values)
        expected = d**n + (1 - d) * sum(d ** (n - 1 - i) * value for i, value in enumerate(values))
        for tensor in averages.weights[half_life].values():
            torch.testing.assert_close(tensor, torch.full_like(tensor, expected))


def test_rampup_makes_early_averages_forget_the_initial_weights() -> None:
    averages = Averages(network := _filled(1.0), (10**9,), 0.05)
    _fill(network, 0.0)
    for i in range(20):
        averages.update(10, 10 * (i + 1))
    # Half-lives 0.5, 1, ... 10 images at 10 images a step: 2^-(20/1 + 20/2 + ... + 20/20).
    expected = 0.5 ** (20 * sum(1 / i for i in range(1, 21)))
    for tensor in averages.weights[10**9].values():
        torch.testing.assert_close(tensor, torch.full_like(tensor, expected), rtol=1e-4, atol=0)


def test_averages_share_no_memory_with_the_network_or_each_other() -> None:
    network = _filled(1.0)
    averages = Averages(network, (10, 20), None)
    _fill(network, 5.0)
    assert all(bool((tensor == 1).all()) for average in averages.weights.values() for tensor in average.values())
    averages.update(10, 10)
    assert all(bool((parameter == 5).all()) for parameter in network.parameters())
    tens, twenties = averages.weights[10], averages.weights[20]
    assert all(not torch.equal(tens[name], twenties[name]) for name in tens)


def test_averages_of_16_bit_weights_are_kept_in_float32() -> None:
    averages = Averages(nn.Linear(3, 2).half(), (10,), None)
    assert {tensor.dtype for tensor in averages.weights[10].values()} == {torch.float32}


def test_load_copies() -> None:
    averages = Averages(network := _filled(1.0), (10, 20), None)
    saved = {name: torch.full_like(parameter, 7.0) for name, parameter in network.named_parameters()}
    averages.load(20, saved)
    saved["weight"].zero_()
    assert bool((averages.weights[20]["weight"] == 7).all())
    assert bool((averages.weights[10]["weight"] == 1).all())


def test_a_constant_weight_is_reached_by_half_in_every_half_life() -> None:
    """From 1 to 0: after k half-lives 2^-k is left, for each average by its own clock."""
    averages = Averages(network := _filled(1.0), (40, 120), None)
    _fill(network, 0.0)
    for step in range(1, 31):
        averages.update(8, 8 * step)
        for half_life in (40, 120):
            left = torch.full((2, 3), 0.5 ** (8 * step / half_life))
            torch.testing.assert_close(averages.weights[half_life]["weight"], left, rtol=1e-5, atol=0)


@pytest.mark.parametrize("rampup", [None, 0.5])
def test_averages_of_a_resumed_run_have_the_closed_form(
    rampup: float | None,
    tmp_path: Path,
    colour_data: PreparedData,
    base_config: Callable[..., StageConfig],
) -> None:
    """The weights after every step of a real run, stopped and resumed twice, averaged here in float64.

    12 steps of 8 images are from 12 half-lives to half of one.
    """
    half_lives = (8, 24, 192)
    settings = {
        "images": 96,
        "checkpoint_every": 8,
        "keep_checkpoints": None,
        "ema_half_lives": list(half_lives),
        "ema_rampup": rampup,
    }
    config = base_config(4, training=settings)
    cpu = torch.device("cpu")
    for most in (40, 48, None):
        train(config, colour_data, tmp_path, device=cpu, max_images=most)
    folders = checkpoint_folders(tmp_path)
    assert [int(folder.name) for folder in folders] == list(range(8, 97, 8))
    fresh = TrainingState.fresh(config, cpu).network.state_dict()
    expected = {half_life: {name: value.double() for name, value in fresh.items()} for half_life in half_lives}
    for step, folder in enumerate(folders, start=1):
        weights = load_file(folder / "model.safetensors")
        for half_life, average in expected.items():
            capped = half_life if rampup is None else min(half_life, rampup * 8 * step)
            decay = 0.5 ** (8 / capped)
            for name in average:
                average[name] = decay * average[name] + (1 - decay) * weights[name].double()
            found = load_file(folder / f"ema-{half_life}.safetensors")
            assert found
            for name, value in found.items():
                torch.testing.assert_close(value.double(), average[name], rtol=0, atol=1e-6)


def test_many_steps_follow_the_closed_form() -> None:
    """The sum (1 - d) d^(n - 1 - i) w_i + d^n w_0 over all parameters at once, as one would write it."""
    network = _filled(2.0)
    averages = Averages(network, [100], None)
    values = [0.5, -1.0, 3.0, 7.0]
    decay = ema_decay(100, 10, images_seen=0, rampup=None)
    expected = 2.0 * decay ** len(values)
    for i, value in enumerate(values):
        _fill(network, value)
        averages.update(10, 10 * (i + 1))
        expected += (1 - decay) * decay ** (len(values) - 1 - i) * value
    for average in averages.weights[100].values():
        torch.testing.assert_close(average, torch.full_like(average, expected))
