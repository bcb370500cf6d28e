"""diffusers' ``scheduler_config.json`` and our diffusion process: schedule, prediction, variance and sampler."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from pydantic import ValidationError

from cascaded_diffusion.cascade.sampling import SamplingConfig
from cascaded_diffusion.cascade.stage import StageConfig
from cascaded_diffusion.config import explain
from cascaded_diffusion.diffusion.denoiser import Diffusion, DiffusionConfig
from cascaded_diffusion.diffusion.grid import discrete_steps
from cascaded_diffusion.diffusion.schedule import Schedule, ScheduleConfig
from cascaded_diffusion.errors import UserError

__all__ = [
    "export_scheduler",
    "import_scheduler",
    "sampling_faults",
    "scheduler_faults",
    "scheduler_notes",
    "whole_steps",
]

_PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
_VARIANCES = {"beta": "fixed_large", "posterior": "fixed_small", "learned": "learned_range"}
_UNLIMITED = 1e9
"""Dynamic thresholding there has an upper limit, ours has none."""


def sampling_faults(sampling: SamplingConfig) -> Iterator[str]:
    """Every default sampling setting that would have no counterpart in the exported chain, and what would."""
    neutral = {"guide": 1.0, "guidance_interval": None, "start": None}
    for key, allowed in neutral.items():
        value = getattr(sampling, key)
        if value != allowed:
            yield f"sampling.{key}: {value}; allowed: {'null' if allowed is None else '1'}"


def scheduler_faults(config: StageConfig) -> Iterator[str]:
    """Every setting of a stage's diffusion process that diffusers' schedulers cannot express, and what they could."""
    diffusion = config.diffusion
    if diffusion.prediction == "edm":
        yield "diffusion.prediction: edm; allowed: eps, x0, v"
    schedule = diffusion.noise_schedule
    if schedule.is_continuous:
        yield f"diffusion.noise_schedule: {schedule.describe()}; allowed: a number of timesteps, continuous false"
        return
    embedding = Diffusion(diffusion).embedding
    if embedding != "step":
        yield f"diffusion.noise_embedding: {embedding}; allowed: step"
    elif diffusion.rescale_steps and schedule.timesteps != 1000:
        yield f"diffusion.rescale_steps: true with {schedule.timesteps} timesteps; allowed: false, or 1000 timesteps"


def scheduler_notes(config: StageConfig, sampling: SamplingConfig) -> Iterator[str]:
    """What of a stage's default sampling settings a scheduler does otherwise; the stage has no fault."""
    if sampling.sampler not in ("ancestral", "ddim"):
        yield f"sampler {sampling.sampler} becomes DDIM"
    count = whole_steps(sampling)
    if _is_strided(sampling):
        # diffusers takes every (T // N)-th step from the first, whatever that leaves out at the top.
        timesteps = config.diffusion.noise_schedule.timesteps
        assert timesteps is not None  # that would be a fault
        here, there = discrete_steps(timesteps, sampling.steps), range(1, timesteps + 1, timesteps // count)[:count]
        if here != list(there):
            yield f"steps {sampling.steps}, from {here[-1]} down, become every {there.step}-th from {there[-1]} down"
    elif "," in str(sampling.steps):
        yield f"steps {sampling.steps} become {count} even ones"
    if sampling.extension:
        yield "the sampling-step extension is left out"


def _is_strided(sampling: SamplingConfig) -> bool:
    """Whether a scheduler takes its steps by an integer stride: DDIM there knows nothing else."""
    return sampling.sampler != "ancestral" or str(sampling.steps).startswith("ddim")


def whole_steps(sampling: SamplingConfig) -> int:
    """The stage's default steps as the one number that a scheduler takes."""
    return sum(int(word) for word in str(sampling.steps).removeprefix("ddim").split(","))


def export_scheduler(config: StageConfig, sampling: SamplingConfig) -> dict[str, Any]:
    """The content of ``scheduler_config.json``: DDPM for ancestral sampling, DDIM for all else.

    The timesteps are spaced as the stage's default steps are: ``ddimN`` by an integer stride, numbers with both ends
    kept. DDIM there knows the integer stride alone.
    """
    schedule, diffusion = config.diffusion.noise_schedule, config.diffusion
    ancestral = sampling.sampler == "ancestral"
    start, end = schedule.betas
    values: dict[str, Any] = {
        "_class_name": "DDPMScheduler" if ancestral else "DDIMScheduler",
        "num_train_timesteps": schedule.timesteps,
        "beta_start": start,
        "beta_end": end,
        "beta_schedule": "linear" if schedule.kind == "linear" else "squaredcos_cap_v2",
        "trained_betas": _betas(schedule) if schedule.log_snr_shift else None,
        "prediction_type": _PREDICTIONS[diffusion.prediction],
        "clip_sample": sampling.clip and sampling.dynamic_threshold is None,
        "clip_sample_range": 1.0,
        "thresholding": sampling.dynamic_threshold is not None,
        "dynamic_thresholding_ratio": sampling.dynamic_threshold or 0.995,
        "sample_max_value": _UNLIMITED,
        "steps_offset": 0,
        "timestep_spacing": "leading" if _is_strided(sampling) else "linspace",
        "rescale_betas_zero_snr": False,
    }
    if ancestral:
        return values | {"variance_type": _VARIANCES[diffusion.variance]}
    return values | {"set_alpha_to_one": True}


def _betas(schedule: ScheduleConfig) -> list[float]:
    table = Schedule(schedule).alphas_cumprod
    assert table is not None  # of a schedule of discrete steps
    whole = np.concatenate([[1.0], table])
    return [float(beta) for beta in 1 - whole[1:] / whole[:-1]]


def import_scheduler(values: Mapping[str, Any], where: str, *, learned: bool) -> tuple[DiffusionConfig, dict[str, Any]]:
    """The diffusion process of a ``scheduler_config.json``, and what it says of sampling.

    Args:
        values: the file's content; what it leaves out has diffusers' defaults.
        where: its name, for messages.
        learned: whether the network outputs a variance too.

    Raises:
        UserError: naming ``where`` and every key that our process cannot follow.
    """
    kind = values.get("_class_name")
    if kind not in ("DDPMScheduler", "DDIMScheduler"):
        raise UserError(f"{where}: _class_name is {kind!r}; allowed: 'DDPMScheduler', 'DDIMScheduler'")
    ancestral = kind == "DDPMScheduler"
    faults = list(_faults(values, ancestral=ancestral, learned=learned))
    if faults:
        raise UserError(f"{where}: this {kind} has no counterpart here: {'; '.join(faults)}")
    steps = values.get("num_train_timesteps", 1000)
    schedule: dict[str, Any] = {"kind": "cosine", "timesteps": steps}
    if values.get("beta_schedule", "linear") == "linear":
        betas = {"beta_start": values.get("beta_start", 1e-4), "beta_end": values.get("beta_end", 0.02)}
        schedule |= {"kind": "linear"} | betas
    predictions = {theirs: ours for ours, theirs in _PREDICTIONS.items()}
    large = str(values.get("variance_type", "fixed_small")).startswith("fixed_large")
    try:
        diffusion = DiffusionConfig.model_validate(
            {
                "noise_schedule": schedule,
                "prediction": predictions[values.get("prediction_type", "epsilon")],
                "variance": "learned" if learned else "beta" if large else "posterior",
                "rescale_steps": False,
            }
        )
    except ValidationError as error:
        raise UserError(f"{where}: {explain(error)}") from None
    threshold = values.get("dynamic_thresholding_ratio", 0.995) if values.get("thresholding", False) else None
    sampling = {
        "sampler": "ancestral" if ancestral else "ddim",
        "steps": steps if ancestral else _strided(steps),
        "clip": bool(values.get("clip_sample", True)),
        "dynamic_threshold": threshold,
    }
    return diffusion, sampling


def _strided(timesteps: int) -> int | str:
    """diffusers' usual 50 steps of DDIM, in its integer stride where that comes out even."""
    return "ddim50" if timesteps % 50 == 0 else min(50, timesteps)


def _faults(values: Mapping[str, Any], *, ancestral: bool, learned: bool) -> Iterator[str]:
    """Every setting that our diffusion process and samplers do not have."""
    variances = ("learned_range",) if learned else ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log")
    thresholding = values.get("thresholding", False)
    wanted: tuple[tuple[str, Any, tuple[Any, ...]], ...] = (
        ("beta_schedule", "linear", ("linear", "squaredcos_cap_v2")),
        ("trained_betas", None, (None,)),
        ("prediction_type", "epsilon", tuple(_PREDICTIONS.values())),
        ("rescale_betas_zero_snr", False, (False,)),
        ("clip_sample_range", 1.0, (1.0,)),
        ("set_alpha_to_one", True, (True,)),
        ("sample_max_value", 1.0, (_UNLIMITED,) if thresholding else (values.get("sample_max_value", 1.0),)),
        ("variance_type", "fixed_small", variances if ancestral else (values.get("variance_type", "fixed_small"),)),
    )
    for name, default, allowed in wanted:
        value = values.get(name, default)
        if value not in allowed:
            yield f"{name}: {value!r}; allowed: {', '.join(repr(choice) for choice in allowed)}"
    steps = values.get("num_train_timesteps", 1000)
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        yield f"num_train_timesteps: {steps!r}; allowed: a number from 1"
