"""Sampling one stage: the same whatever the batch, stopped exactly at s, with the announced number of network calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from cascaded_diffusion.cascade.generate import sample_stage, stage_evaluations, stage_grids
from cascaded_diffusion.cascade.sampling import SamplingConfig
from cascaded_diffusion.cascade.stage import Stage, StageConfig, build_network
from cascaded_diffusion.diffusion.samplers import SAMPLERS as sampler_functions
from cascaded_diffusion.diffusion.samplers import Denoiser, NoiseSource, SamplerName, Step
from cascaded_diffusion.diffusion.schedule import Level
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.randomness import normal

SAMPLERS = get_args(SamplerName)
NETWORK = {"channels": 8, "multipliers": [1, 2], "blocks": 1, "heads": 2, "middle_attention": False}


def _stage(config: dict[str, Any]) -> Stage:
    whole = StageConfig.model_validate({"channels": 1, "classes": 3, "network": NETWORK, **config})
    torch.manual_seed(0)
    network = build_network(whole)
    for parameter in network.parameters():
        # The outputs of a fresh network are zero; these make it say something, of every input.
        torch.nn.init.normal_(parameter, std=0.15)
    return Stage(whole, network)


@pytest.fixture(scope="module")
def base() -> Stage:
    return _stage({"name": "base4", "resolution": 4, "diffusion": {"noise_schedule": {"timesteps": 40}}})


@pytest.fixture(scope="module")
def learned() -> Stage:
    return _stage(
        {"name": "base4", "resolution": 4, "diffusion": {"noise_schedule": {"timesteps": 40}, "variance": "learned"}}
    )


@pytest.fixture(scope="module")
def enlarger() -> Stage:
    conditioning = {"augmentation": "gaussian", "low_resolution": 4, "low_schedule": {"timesteps": 40}}
    diffusion = {"noise_schedule": {"timesteps": None}, "prediction": "v"}
    return _stage({"name": "sr8", "resolution": 8, "diffusion": diffusion, "conditioning": conditioning})


class _Calls:
    """Counts the images that a stage's network is asked about, and keeps what it is told."""

    def __init__(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: list[dict[str, Any]] = []
        run = stage._run

        def counted(x: Tensor, time: Tensor, **conditions: Any) -> Tensor:
            self.told.append({"x": x, "time": time, **conditions})
            return run(x, time, **conditions)

        monkeypatch.setattr(stage, "_run", counted)


def _settings(**values: Any) -> SamplingConfig:
    return SamplingConfig(**{"steps": 6, **values})


LABELS = torch.tensor([0, 1, 2, 0, 1])
INDEX = torch.tensor([3, 0, 2**32 + 1, 7, 8])


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_samples_are_the_same_in_any_batch(base: Stage, sampler: str, guidance: float) -> None:
    settings = _settings(sampler=sampler, guidance=guidance)
    together = sample_stage(base, settings, index=INDEX, labels=LABELS, seed=5)
    assert together.x.shape == (5, 1, 4, 4)
    assert together.x.std() > 0.05
    for part in (slice(0, 1), slice(1, 3), slice(3, 5)):
        alone = sample_stage(base, settings, index=INDEX[part], labels=LABELS[part], seed=5)
        torch.testing.assert_close(alone.x, together.x[part], rtol=0, atol=1e-5)
        torch.testing.assert_close(alone.x0, together.x0[part], rtol=0, atol=1e-5)
    other = sample_stage(base, settings, index=INDEX, labels=LABELS, seed=6)
    assert (other.x - together.x).abs().max() > 0.01


@pytest.mark.parametrize("mode, s", [("none", 0.0), ("nontruncated", 0.25), ("truncated", 0.25)])
def test_enlarged_samples_are_the_same_in_any_batch(enlarger: Stage, mode: str, s: float) -> None:
    low_res = normal(0, "test", INDEX, (1, 4, 4))
    settings = _settings(sampler="dpmpp-2m", augmentation=mode, s=s)
    together = sample_stage(enlarger, settings, index=INDEX, labels=LABELS, low_res=low_res).x
    assert together.shape == (5, 1, 8, 8)
    for part in (slice(0, 2), slice(2, 5)):
        alone = sample_stage(enlarger, settings, index=INDEX[part], labels=LABELS[part], low_res=low_res[part]).x
        torch.testing.assert_close(alone, together[part], rtol=0, atol=1e-5)


def test_the_network_is_told_the_damaged_image_and_its_s(enlarger: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    low_res = normal(0, "test", INDEX, (1, 4, 4))
    seen = {}
    for mode, s in (("none", 0.0), ("nontruncated", 0.26), ("truncated", 0.26)):
        calls = _Calls(enlarger, monkeypatch)
        settings = _settings(steps=3, sampler="ddim", augmentation=mode, s=s)
        sample_stage(enlarger, settings, index=INDEX, labels=LABELS, low_res=low_res)
        seen[mode] = calls.told
        # The same damage at every step.
        assert all(torch.equal(told["low_res"], calls.told[0]["low_res"]) for told in calls.told)
    assert torch.equal(seen["none"][0]["low_res"], low_res)
    assert torch.equal(seen["truncated"][0]["low_res"], low_res)
    assert not torch.equal(seen["nontruncated"][0]["low_res"], low_res)
    # s = 0.26 means step 10 of the 40 that the stage below has.
    assert [seen[mode][0]["s"].tolist() for mode in seen] == [[0.0] * 5, [0.25] * 5, [0.25] * 5]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("values", [{}, {"steps": 1}, {"steps": "2,3"}, {"steps": "ddim8"}, {"extension": True}])
@pytest.mark.parametrize("stop", [0.0, 1 / 40, 0.33])
def test_the_network_is_called_as_often_as_announced_and_only_above_s(
    base: Stage, monkeypatch: pytest.MonkeyPatch, sampler: str, values: dict[str, Any], stop: float
) -> None:
    settings = _settings(sampler=sampler, **values)
    calls = _Calls(base, monkeypatch)
    steps: list[Step] = []
    output = sample_stage(base, settings, index=INDEX[:2], labels=LABELS[:2], stop=stop, callback=steps.append)
    assert len(calls.told) == stage_evaluations(base, settings, stop)
    total = sum(len(grid) - 1 for grid in stage_grids(base, settings, stop))
    assert [(step.index, step.total) for step in steps] == [(i, total) for i in range(total)]
    assert steps[-1].level == base.diffusion.schedule.level(stop)
    assert torch.equal(steps[-1].x, output.x)
    # Time input (k - 1) 1000/T; the first run of an extension goes down to the image on purpose.
    last_part = calls.told if not settings.extension else calls.told[-1:]
    k_stop = round(stop * 40)
    assert all(round(float(told["time"][0]) * 40 / 1000) + 1 > k_stop for told in last_part)


def test_guidance_runs_both_halves_as_one_call(base: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _Calls(base, monkeypatch)
    settings = _settings(sampler="ddim", guidance=3.0)
    sample_stage(base, settings, index=INDEX, labels=LABELS)
    assert len(calls.told) == stage_evaluations(base, settings) == 6
    assert all(len(told["x"]) == 10 for told in calls.told)
    assert calls.told[0]["labels"].tolist() == [*LABELS.tolist(), *[-1] * 5]


def test_a_finished_stage_returns_one_image(base: Stage) -> None:
    x, x0 = sample_stage(base, _settings(), index=INDEX, labels=LABELS)
    assert torch.equal(x0, x.clamp(-1, 1))
    assert x.abs().max() <= 1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_stopped_stage_returns_z_s_and_a_prediction(base: Stage, sampler: str) -> None:
    """x is noisy, and x0 an image that fits to it: what separates them is about as large as the level's noise."""
    seen: list[Step] = []
    output = sample_stage(base, _settings(sampler=sampler), index=INDEX, labels=LABELS, stop=0.5, callback=seen.append)
    assert torch.equal(output.x0, seen[-1].x0)
    assert output.x0.abs().max() <= 1
    assert not torch.equal(output.x, output.x0)
    level = base.diffusion.schedule.level(0.5)
    noise = (output.x - level.alpha_bar**0.5 * output.x0) / (1 - level.alpha_bar) ** 0.5
    assert 0.3 < float(noise.std()) < 2.5


def test_a_stage_stopped_at_once_hands_on_its_noise_without_a_call(
    base: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = _Calls(base, monkeypatch)
    x, x0 = sample_stage(base, _settings(), index=INDEX, labels=LABELS, seed=2, stop=1.0)
    assert torch.equal(x, normal(2, "sampling/base4/init", INDEX, (1, 4, 4)))
    assert not x0.any()
    assert calls.told == []


def test_the_truncated_path_is_the_whole_paths_beginning(base: Stage) -> None:
    """Above s the steps, their noise and so the images are the same, whether or not the run goes on below."""
    whole: list[Step] = []
    stopped: list[Step] = []
    for stop, seen in ((0.0, whole), (0.3, stopped)):
        sample_stage(base, _settings(sampler="ancestral"), index=INDEX, labels=LABELS, stop=stop, callback=seen.append)
    for a, b in zip(whole, stopped[:-1], strict=False):
        assert a.level == b.level
        assert torch.equal(a.x, b.x)
    assert 0 < len(stopped) < len(whole)


def test_the_extension_runs_the_lower_half_again(base: Stage) -> None:
    plain, again = (
        sample_stage(base, _settings(steps=8, extension=extension), index=INDEX, labels=LABELS)
        for extension in (False, True)
    )
    assert (plain.x - again.x).abs().max() > 0.01
    grids = stage_grids(base, _settings(steps=8, extension=True))
    assert [grid[-1].time for grid in grids] == [0, 0]
    assert grids[1][0].time == 0.5
    # Truncated, only the second run stops at s.
    assert [grid[-1].time for grid in stage_grids(base, _settings(extension=True), 0.25)] == [0, 0.25]
    with pytest.raises(UserError, match=r"s must be below 0\.5"):
        sample_stage(base, _settings(extension=True), index=INDEX, labels=LABELS, stop=0.5)


def test_every_step_of_every_run_has_noise_of_its_own(base: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Tensor] = []

    def listening(denoise: Denoiser, x: Tensor, levels: Sequence[Level], *, noise: NoiseSource, **_: Any) -> Tensor:
        drawn.extend([x, noise(0), noise(1)])
        return x

    monkeypatch.setitem(sampler_functions, "ancestral", listening)
    sample_stage(base, _settings(extension=True), index=torch.arange(400), labels=torch.zeros(400, dtype=torch.int64))
    # The second run starts from the first's result, noised to half time.
    half = base.diffusion.schedule.level(0.5).alpha_bar
    drawn[3] = (drawn[3] - half**0.5 * drawn[0]) / (1 - half) ** 0.5
    n = drawn[0].numel()
    assert all(abs(float(noise.std()) - 1) < 5 * (2 * n) ** -0.5 for noise in drawn)
    correlation = torch.corrcoef(torch.stack([noise.flatten() for noise in drawn])) - torch.eye(6)
    assert correlation.abs().max() < 5 * n**-0.5


def test_a_learned_variance_is_used(learned: Stage) -> None:
    settings = _settings(sampler="ancestral", guidance=2.0)
    together = sample_stage(learned, settings, index=INDEX, labels=LABELS)
    alone = sample_stage(learned, settings, index=INDEX[1:2], labels=LABELS[1:2])
    torch.testing.assert_close(alone.x, together.x[1:2], rtol=0, atol=1e-5)


def test_stages_need_their_low_resolution_images(enlarger: Stage) -> None:
    with pytest.raises(ValueError, match="sr8 needs low-resolution images"):
        sample_stage(enlarger, _settings(), index=INDEX, labels=LABELS)
