"""What the page offers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cascaded_diffusion.cascade.chain import Cascade
from cascaded_diffusion.ui.limits import PageLimits, page_limits

Limits = Callable[[Path | str], PageLimits]
Make = Callable[..., Any]


def test_each_stage_has_the_controls_that_mean_something_to_it(limits_of: Limits, plain: Path) -> None:
    base, gaussian, blur = limits_of(plain).stages
    assert base.controls == ("steps", "sampler")
    assert gaussian.controls == ("steps", "sampler", "augmentation", "s", "start")
    assert blur.controls == ("steps", "sampler", "start")


def test_guidance_is_there_where_class_dropout_was(limits_of: Limits, named: Path) -> None:
    base, high = limits_of(named).stages
    interval = ("interval_low", "interval_high")
    assert base.controls == ("steps", "sampler", "guidance", *interval)
    assert high.controls == ("steps", "sampler", "augmentation", "s", "guidance", "start", *interval)


def test_a_guide_has_a_weight_and_an_interval(limits_of: Limits, later: Path) -> None:
    base, high = limits_of(later).stages
    assert base.controls == ("steps", "sampler", "grid")
    last = ("guide", "start", "interval_low", "interval_high")
    assert high.controls == ("steps", "sampler", "augmentation", "s", *last)
    assert [high.default(control) for control in high.controls[4:]] == [2.0, 0.7, 1e-05, 5.0]
    assert (high.most_guide, high.least_start) == (10.0, 0.01)


def test_grids_that_other_settings_contradict_are_not_offered(limits_of: Limits, later: Path) -> None:
    base, high = limits_of(later).stages
    assert base.grids == ("time", "edm", "log-snr")
    # Its rho is of the grid edm alone.
    assert (high.grid, high.grids) == ("edm", ("edm",))
    cascade = Cascade.from_pretrained(later)
    cascade.defaults["base4"] = cascade.defaults["base4"].model_copy(update={"endpoints": (1e-4, 0.02)})
    assert "grid" not in page_limits(cascade, 8).stage("base4").controls


def test_s_ends_at_s_max(limits_of: Limits) -> None:
    _, high = limits_of("demo").stages
    assert (high.s, high.s_max) == (0.2, 0.6)
    assert high.augmentations == ("truncated", "nontruncated", "none")


def test_truncated_is_offered_only_where_it_is_available(named: Path) -> None:
    cascade = Cascade.from_pretrained(named)
    cascade.truncated["sr16"] = False
    assert page_limits(cascade, 8).stage("sr16").augmentations == ("nontruncated", "none")


def test_a_truncated_default_that_is_not_available_becomes_nontruncated(plain: Path) -> None:
    cascade = Cascade.from_pretrained(plain)
    assert page_limits(cascade, 8).stage("sr8").augmentation == "truncated"
    cascade.truncated["sr8"] = False
    assert page_limits(cascade, 8).stage("sr8").augmentation == "nontruncated"


@pytest.mark.parametrize(
    "steps, timesteps, most", [(4, 40, 40), (12, None, 100), (100, 4000, 400), (2000, 4000, 2000), ("10,5", 40, 40)]
)
def test_steps_are_bounded(
    base_config: Make, random_stage: Make, steps: int | str, timesteps: int | None, most: int
) -> None:
    schedule = {"noise_schedule": {"kind": "cosine", "timesteps": timesteps}}
    stage = random_stage(base_config(8, diffusion=schedule, sampling={"steps": steps}))
    assert page_limits(Cascade([stage]), 8).stage("base8").most_steps == most


def test_a_new_page_asks_for_one_of_each_class_within_bounds(limits_of: Limits, plain: Path) -> None:
    assert limits_of("demo").count == 10
    assert limits_of(plain).count == 8
    assert page_limits(Cascade.from_pretrained(plain), 3).count == 3


def test_classes_without_names_are_numbered(base_config: Make, random_stage: Make) -> None:
    limits = page_limits(Cascade([random_stage(base_config(8))]), 8)
    assert limits.class_names == ("class 0", "class 1", "class 2", "class 3")
