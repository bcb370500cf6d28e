"""What is asked of the stages, against what each can do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cascaded_diffusion.cascade.generate import stage_evaluations, stage_passes
from cascaded_diffusion.cascade.guides import default_sampling
from cascaded_diffusion.cascade.sampling import SamplingConfig
from cascaded_diffusion.cascade.settings import Requests, resolve_settings, stop_for
from cascaded_diffusion.cascade.stage import Stage, StageConfig
from cascaded_diffusion.errors import UserError

Configure = Callable[..., StageConfig]
Resolve = Callable[..., dict[str, SamplingConfig]]


@pytest.fixture(scope="module")
def stages(random_stage: Callable[..., Stage], base_config: Configure, sr_config: Configure) -> list[Stage]:
    """base8, sr16 with gaussian noise (s_max 0.5, default nontruncated 0.1), sr32 with blur."""
    blur = sr_config(32, low=16, conditioning={"augmentation": "blur"}, training={"class_dropout": 0.0})
    return [random_stage(config) for config in (base_config(), sr_config(), blur)]


@pytest.fixture(scope="module")
def resolve(stages: list[Stage]) -> Resolve:
    """``resolve(s=0.1, first=0, truncated=True)``: the settings for requests to the stages from ``first`` on."""

    def make(
        *, first: int = 0, truncated: bool = True, defaults: dict[str, dict[str, Any]] | None = None, **requests: Any
    ) -> dict[str, SamplingConfig]:
        used = stages[first:]
        own = {
            stage.name: stage.config.sampling.model_copy(update=(defaults or {}).get(stage.name, {})) for stage in used
        }
        return resolve_settings(used, own, Requests(**requests), truncated={"sr16": truncated})

    return make


def test_without_requests_the_defaults_stand(resolve: Resolve, stages: list[Stage]) -> None:
    assert resolve() == {stage.name: stage.config.sampling for stage in stages}


@pytest.mark.parametrize(
    "requests, words",
    [
        ({"steps": {"sr64": 5}}, ["steps", "'sr64'", "base8, sr16, sr32"]),
        ({"sampler": {"b": "ddim"}}, ["sampler", "'b'", "base8, sr16, sr32"]),
        ({"s": {"sr8": 0.1}}, ["s:", "'sr8'", "base8, sr16, sr32"]),
        ({"guidance": {"sr8": 2}}, ["guidance", "'sr8'"]),
        ({"augmentation": {"sr8": "none"}}, ["augmentation", "'sr8'"]),
        ({"steps": 0}, ["base8", "steps", "0"]),
        ({"steps": 41}, ["steps", "41", "T=40", "1 to 40"]),
        ({"steps": {"sr16": "ddim9"}}, ["steps", "ddim9"]),
        ({"steps": {"sr32": "30,30"}}, ["steps", "section"]),
        ({"sampler": "euler"}, ["sampler", "'euler'", "ancestral, ddim, heun, dpmpp-2m"]),
        ({"s": 0.6}, ["s:", "0.6", "sr16", "0 to 0.5"]),
        ({"s": -0.1}, ["s:", "-0.1", "sr16", "0 to 0.5"]),
        ({"s": float("nan")}, ["s:", "nan"]),
        ({"s": "much"}, ["s:", "'much'", "sr16", "not a number"]),
        ({"s": {"base8": 0.1}}, ["s:", "base8 is a base stage and has no s", "base8=0.1"]),
        ({"s": {"sr32": 0.1}}, ["s:", "sr32 was trained with augmentation blur", "sr32=0.1"]),
        ({"s": {"sr32": 0.0}}, ["s:", "sr32 was trained with augmentation blur"]),
        ({"augmentation": {"sr32": "truncated"}}, ["augmentation", "sr32", "blur"]),
        ({"augmentation": "both"}, ["augmentation", "'both'", "truncated, nontruncated, none"]),
        ({"augmentation": "none", "s": 0.1}, ["s: 0.1", "sr16", "augmentation none", "allowed 0"]),
        ({"augmentation": {"sr16": "none"}, "s": {"sr16": 0.1}}, ["s: 0.1", "sr16", "none"]),
        ({"guidance": {"sr32": 2.0}}, ["guidance", "sr32", "class_dropout 0"]),
        ({"guidance": -1}, ["guidance", "-1", "0 to 100"]),
        ({"guidance": 101}, ["guidance", "101", "0 to 100"]),
        ({"guidance": "strong"}, ["guidance", "'strong'", "not a number"]),
    ],
)
def test_refusals_name_the_value_and_what_is_allowed(
    requests: dict[str, Any], words: list[str], resolve: Resolve
) -> None:
    with pytest.raises(UserError) as caught:
        resolve(**requests)
    line = str(caught.value)
    assert all(word in line for word in words), line
    assert "\n" not in line


def test_one_value_goes_to_the_stages_that_it_means_something_to(resolve: Resolve) -> None:
    settled = resolve(s=0.3, guidance=2.0, augmentation="truncated", steps=3, sampler="heun")
    assert {name: settings.s for name, settings in settled.items()} == {"base8": 0, "sr16": 0.3, "sr32": 0}
    assert [settings.augmentation for settings in settled.values()] == ["none", "truncated", "none"]
    assert [settings.guidance for settings in settled.values()] == [2, 2, 1]
    assert {settings.steps for settings in settled.values()} == {3}
    assert {settings.sampler for settings in settled.values()} == {"heun"}


def test_a_value_by_stage_changes_that_stage_alone(resolve: Resolve, stages: list[Stage]) -> None:
    settled = resolve(steps={"sr16": 7}, guidance={"base8": 3}, sampler={"sr32": "ancestral"})
    assert [settings.steps for settings in settled.values()] == [4, 7, 4]
    assert [settings.guidance for settings in settled.values()] == [3, 1, 1]
    assert [settings.sampler for settings in settled.values()] == ["ddim", "ddim", "ancestral"]


@pytest.mark.parametrize("requests", [{"s": 0.2}, {"augmentation": "truncated"}, {"guidance": 2.0}])
def test_a_value_that_no_stage_in_use_can_take_is_refused(
    requests: dict[str, Any], random_stage: Callable[..., Stage], base_config: Configure
) -> None:
    stage = random_stage(base_config(training={"class_dropout": 0.0}))
    with pytest.raises(UserError, match=r"has no effect here: base8"):
        resolve_settings([stage], {"base8": stage.config.sampling}, Requests(**requests), truncated={})


@pytest.mark.parametrize("requests", [{"augmentation": "none"}, {"guidance": 1.0}, {"guidance": {"base8": 1}}])
def test_values_that_change_nothing_are_always_allowed(
    requests: dict[str, Any], random_stage: Callable[..., Stage], base_config: Configure
) -> None:
    stage = random_stage(base_config(training={"class_dropout": 0.0}))
    own = stage.config.sampling
    assert resolve_settings([stage], {"base8": own}, Requests(**requests), truncated={}) == {"base8": own}


def test_a_stage_without_classes_cannot_be_guided(random_stage: Callable[..., Stage], base_config: Configure) -> None:
    stage = random_stage(base_config(classes=None))
    with pytest.raises(UserError, match=r"base8 has no classes to be guided by"):
        resolve_settings([stage], {"base8": stage.config.sampling}, Requests(guidance={"base8": 2}), truncated={})


def test_a_recipes_guidance_is_none_where_the_data_have_no_classes(
    random_stage: Callable[..., Stage], base_config: Configure
) -> None:
    """What is told and counted is what is done: the network is called once."""
    stage = random_stage(base_config(classes=None, training={"class_dropout": 0.1}, sampling={"guidance": 1.5}))
    settled = resolve_settings([stage], {"base8": stage.config.sampling}, Requests(), truncated={})
    assert settled["base8"].guidance == 1
    assert stage_passes(stage, settled["base8"]) == stage_evaluations(stage, settled["base8"])
    more = {"base8": {"guidance": 2.0}}
    with pytest.raises(UserError, match="guidance: base8 has no classes to be guided by; allowed 1"):
        resolve_settings([stage], {"base8": stage.config.sampling}, Requests(more=more), truncated={})
    with pytest.raises(UserError, match=r"--set: base8\.guidance: 2 needs classes"):
        default_sampling(stage, stage.config.sampling, {"guidance": 2})


def test_s_on_a_stage_whose_default_is_none_acts(resolve: Resolve) -> None:
    plain = {"sr16": {"augmentation": "none", "s": 0.0}}
    settled = resolve(defaults=plain, s=0.2)["sr16"]
    assert (settled.augmentation, settled.s) == ("nontruncated", 0.2)
    settled = resolve(defaults=plain, s=0)["sr16"]
    assert (settled.augmentation, settled.s) == ("none", 0)
    settled = resolve(defaults={"sr16": {"augmentation": "truncated", "s": 0.1}}, s=0.2)["sr16"]
    assert (settled.augmentation, settled.s) == ("truncated", 0.2)


def test_none_forgets_the_default_s(resolve: Resolve) -> None:
    settled = resolve(augmentation="none")["sr16"]
    assert (settled.augmentation, settled.s) == ("none", 0)


def test_truncated_where_the_schedules_differ(resolve: Resolve) -> None:
    with pytest.raises(UserError, match=r"truncated is not available, sr16 was assembled with --no-truncated; allowed"):
        resolve(truncated=False, augmentation="truncated")
    default = {"sr16": {"augmentation": "truncated", "s": 0.1}}
    settled = resolve(truncated=False, defaults=default)["sr16"]
    assert (settled.augmentation, settled.s) == ("nontruncated", 0.1)


def test_truncated_from_given_images(resolve: Resolve) -> None:
    with pytest.raises(UserError, match=r"truncated is not available, sr16 starts from given images"):
        resolve(first=1, augmentation="truncated")
    assert resolve(first=1, defaults={"sr16": {"augmentation": "truncated"}})["sr16"].augmentation == "nontruncated"
    with pytest.raises(UserError, match=r"no stage 'base8' in use; allowed: sr16, sr32"):
        resolve(first=1, steps={"base8": 3})


def test_where_stages_stop(resolve: Resolve, stages: list[Stage]) -> None:
    settled = resolve(augmentation="truncated", s=0.25)
    assert stop_for(stages[1], settled) == 0.25
    assert stop_for(stages[2], settled) == 0
    assert stop_for(None, settled) == 0
    assert stop_for(stages[1], resolve(s=0.25)) == 0


@pytest.mark.parametrize(
    "sampling, told",
    [
        ({"endpoints": (1e-4, 0.2), "steps": 100}, ""),
        (
            {"endpoints": (1e-4, 0.2), "steps": 10},
            "sr16: sampling begins with noise, at a level where the image should",
        ),
        ({"grid": "edm", "sigma_range": (0.002, 80.0)}, ""),
        ({"grid": "edm", "sigma_range": (0.002, 5.0)}, "already have 20% of its size"),
        ({"grid": "edm", "sigma_range": (0.002, 5.0), "start": 0.5}, ""),  # begins with the image in it
    ],
)
def test_noise_where_an_image_should_be_is_warned_of(
    sampling: dict[str, Any],
    told: str,
    random_stage: Callable[..., Stage],
    sr_config: Configure,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stage = random_stage(sr_config(16, diffusion={"noise_schedule": {"timesteps": None}}))
    default = stage.config.sampling.model_copy(update={"augmentation": "none", "s": 0.0, "steps": 8, **sampling})
    resolve_settings([stage], {stage.name: default}, Requests(), truncated={})
    assert told in caplog.text
    assert bool(told) == bool(caplog.text)
