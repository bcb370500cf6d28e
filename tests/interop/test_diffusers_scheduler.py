"""diffusers' schedulers and our diffusion process: equal levels, equal steps, and what neither has is named."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from cascaded_diffusion.cascade.sampling import SamplingConfig
from cascaded_diffusion.cascade.stage import StageConfig
from cascaded_diffusion.diffusion.denoiser import Diffusion
from cascaded_diffusion.diffusion.grid import sampling_grid
from cascaded_diffusion.diffusion.samplers import SAMPLERS
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.interop.diffusers_scheduler import (
    export_scheduler,
    import_scheduler,
    scheduler_faults,
    scheduler_notes,
    whole_steps,
)


def config_of(diffusion: dict[str, Any]) -> StageConfig:
    network = {"channels": 32, "multipliers": [1]}
    return StageConfig.model_validate(
        {"name": "base8", "resolution": 8, "channels": 3, "network": network, "diffusion": diffusion}
    )


def scheduler_of(config: StageConfig, sampling: SamplingConfig) -> Any:
    values = export_scheduler(config, sampling)
    scheduler = getattr(diffusers, values["_class_name"]).from_config(values)
    unknown = values.keys() - scheduler.config.keys() - {"_class_name"}
    assert not unknown
    return scheduler


SCHEDULES: list[dict[str, Any]] = [
    {"kind": "linear", "timesteps": 1000},
    {"kind": "linear", "timesteps": 1000, "beta_start": 1e-5, "beta_end": 0.01},
    {"kind": "cosine", "timesteps": 1000},
    {"kind": "cosine", "timesteps": 4000},
    {"kind": "cosine", "timesteps": 1000, "log_snr_shift": -1.0},
]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sampler", ["ddim", "ancestral"])
def test_levels_are_equal(schedule: dict[str, Any], sampler: str) -> None:
    config = config_of({"noise_schedule": schedule, "rescale_steps": False})
    assert not list(scheduler_faults(config))
    found = scheduler_of(config, SamplingConfig(sampler=sampler)).alphas_cumprod  # type: ignore[arg-type]
    table = Diffusion(config.diffusion).schedule.alphas_cumprod
    assert table is not None
    np.testing.assert_allclose(found, table, rtol=2e-3, atol=1e-7)  # theirs is in float32, rounded step by step
    assert np.abs(found.numpy() - table).max() < 1e-5


def toy(x: Tensor, time: Tensor) -> Tensor:
    return 0.3 * x.flip(1) + 0.2 * torch.sin(time / 300)[:, None, None, None]


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@pytest.mark.parametrize("changes", [{}, {"clip": False}, {"dynamic_threshold": 0.9}])
def test_deterministic_steps_are_equal(prediction: str, changes: dict[str, Any]) -> None:
    config = config_of({"noise_schedule": {"kind": "cosine", "timesteps": 1000}, "prediction": prediction})
    sampling = SamplingConfig(sampler="ddim", steps="ddim10", **changes)
    ours = Diffusion(config.diffusion)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    denoise = ours.denoiser(toy, clip=sampling.clip, percentile=sampling.dynamic_threshold)
    expected = SAMPLERS["ddim"](denoise, x, sampling_grid(ours.schedule, "ddim10"), noise=lambda i: x)
    scheduler = scheduler_of(config, sampling)
    scheduler.set_timesteps(whole_steps(sampling))
    for timestep in scheduler.timesteps:
        output = toy(x, timestep[None].float())
        x = scheduler.step(output, timestep, x, use_clipped_model_output=True).prev_sample
    torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps", ["25", "ddim25"])
@pytest.mark.parametrize("variance", ["beta", "posterior", "learned"])
def test_random_steps_have_equal_means_and_variances(
    variance: str, steps: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of({"noise_schedule": {"kind": "linear", "timesteps": 1000}, "variance": variance})
    sampling = SamplingConfig(sampler="ancestral", steps=steps)
    ours = Diffusion(config.diffusion)
    generator = torch.Generator().manual_seed(0)
    start, noises = torch.randn(2, 3, 8, 8, generator=generator), torch.randn(25, 2, 3, 8, 8, generator=generator)

    def network(x: Tensor, time: Tensor) -> Tensor:
        answer = toy(x, time)
        return torch.cat([answer, torch.tanh(x)], dim=1) if variance == "learned" else answer

    levels = sampling_grid(ours.schedule, sampling.steps)
    expected = SAMPLERS["ancestral"](
        ours.denoiser(network), start, levels, noise=lambda i: noises[i], variance=config.diffusion.variance
    )
    scheduler = scheduler_of(config, sampling)
    scheduler.set_timesteps(whole_steps(sampling))
    x = start
    for i, timestep in enumerate(scheduler.timesteps):
        drawn = noises[i]
        monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *a, drawn=drawn, **b: drawn)
        x = scheduler.step(network(x, timestep[None].float()), timestep, x).prev_sample
    torch.testing.assert_close(x, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("diffusion", "words"),
    [
        ({"noise_schedule": {"timesteps": None}}, "diffusion.noise_schedule: cosine continuous; allowed: a number"),
        ({"noise_schedule": {"continuous": True}}, "diffusion.noise_schedule: cosine T=1000 between steps too"),
        ({"noise_embedding": "angle"}, "diffusion.noise_embedding: angle; allowed: step"),
        ({"noise_schedule": {"timesteps": 4000}}, "diffusion.rescale_steps: true with 4000 timesteps; allowed: false"),
    ],
)
def test_what_the_schedulers_lack_is_named(diffusion: dict[str, Any], words: str) -> None:
    faults = list(scheduler_faults(config_of(diffusion)))
    assert len(faults) == 1
    assert words in faults[0]


def test_sampling_settings_that_become_others_are_told() -> None:
    config = config_of({})
    assert not list(scheduler_notes(config, SamplingConfig(sampler="ddim", steps="ddim25")))
    assert not list(scheduler_notes(config, SamplingConfig(sampler="ancestral", steps=30)))
    assert list(scheduler_notes(config, SamplingConfig(sampler="ancestral", steps="10,20"))) == [
        "steps 10,20 become 30 even ones"
    ]
    notes = list(scheduler_notes(config, SamplingConfig(sampler="heun", steps="10,20", extension=True)))
    assert notes == [
        "sampler heun becomes DDIM",
        "steps 10,20, from 1000 down, become every 33-th from 958 down",
        "the sampling-step extension is left out",
    ]


@pytest.mark.parametrize(
    ("sampler", "steps", "top"), [("ddim", 50, 981), ("ddim", "ddim48", 941), ("ancestral", "ddim48", 941)]
)
def test_steps_that_end_lower_there_are_told(sampler: Any, steps: int | str, top: int) -> None:
    config, sampling = config_of({}), SamplingConfig(sampler=sampler, steps=steps)
    (note,) = scheduler_notes(config, sampling)
    assert note.endswith(f"from {top} down")
    scheduler = scheduler_of(config, sampling)
    scheduler.set_timesteps(whole_steps(sampling))
    assert int(scheduler.timesteps[0]) + 1 == top


DDPM = {"_class_name": "DDPMScheduler", "_diffusers_version": "0.42.1"}
DDIM = {"_class_name": "DDIMScheduler"}


@pytest.mark.parametrize("diffusion", [{}, {"prediction": "v"}, {"variance": "learned"}, {"variance": "beta"}])
@pytest.mark.parametrize("schedule", SCHEDULES[:4])
def test_processes_come_back(schedule: dict[str, Any], diffusion: dict[str, Any]) -> None:
    config = config_of({"noise_schedule": schedule, "rescale_steps": False, **diffusion})
    values = export_scheduler(config, SamplingConfig(sampler="ancestral", clip=False))
    found, sampling = import_scheduler(values, "x", learned=config.diffusion.variance == "learned")
    one, other = Diffusion(found).schedule.alphas_cumprod, Diffusion(config.diffusion).schedule.alphas_cumprod
    assert one is not None
    assert other is not None
    np.testing.assert_array_equal(one, other)
    assert (found.prediction, found.variance) == (config.diffusion.prediction, config.diffusion.variance)
    assert found.rescale_steps is False
    assert sampling == {
        "sampler": "ancestral", "steps": schedule["timesteps"], "clip": False, "dynamic_threshold": None
    }  # fmt: skip


@pytest.mark.parametrize("kind", [DDPM, DDIM])
def test_a_scheduler_left_at_its_defaults(kind: dict[str, str]) -> None:
    values = dict(getattr(diffusers, kind["_class_name"])().config) | kind
    for given in (kind, values):
        diffusion, sampling = import_scheduler(given, "x", learned=False)
        assert diffusion.noise_schedule.describe() == "linear T=1000 beta 0.0001..0.02"
        assert (diffusion.prediction, diffusion.variance) == ("eps", "posterior")
        assert sampling["sampler"] == ("ancestral" if kind == DDPM else "ddim")
        assert sampling["steps"] == (1000 if kind == DDPM else "ddim50")


@pytest.mark.parametrize(
    ("values", "learned", "words"),
    [
        ({"_class_name": "EulerDiscreteScheduler"}, False, "'EulerDiscreteScheduler'; allowed: 'DDPMScheduler', 'DDIM"),
        (DDPM | {"beta_schedule": "scaled_linear"}, False, "beta_schedule: 'scaled_linear'; allowed: 'linear', "),
        (DDPM | {"trained_betas": [0.1]}, False, "trained_betas: [0.1]"),
        (DDPM | {"prediction_type": "flow"}, False, "prediction_type: 'flow'"),
        (DDPM | {"variance_type": "learned_range"}, False, "variance_type: 'learned_range'"),
        (DDPM, True, "variance_type: 'fixed_small'; allowed: 'learned_range'"),
        (DDPM | {"clip_sample_range": 2.0}, False, "clip_sample_range: 2.0; allowed: 1.0"),
        (DDPM | {"thresholding": True}, False, "sample_max_value: 1.0"),
        (DDIM | {"set_alpha_to_one": False}, False, "set_alpha_to_one: False; allowed: True"),
        (DDIM | {"rescale_betas_zero_snr": True}, False, "rescale_betas_zero_snr: True"),
        (DDIM | {"num_train_timesteps": "many"}, False, "num_train_timesteps: 'many'"),
        (DDIM | {"beta_start": 2.0}, False, "a/scheduler_config.json: noise_schedule.beta_start"),
    ],
)
def test_what_our_process_lacks_is_named(values: dict[str, Any], learned: bool, words: str) -> None:
    with pytest.raises(UserError) as caught:
        import_scheduler(values, "a/scheduler_config.json", learned=learned)
    assert str(caught.value).startswith("a/scheduler_config.json: ")
    assert words in str(caught.value)
