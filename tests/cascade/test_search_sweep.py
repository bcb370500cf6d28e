"""What a search tries of the settings that came later: relay start, autoguidance, and guidance in an interval."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cascaded_diffusion.cascade.chain import Cascade
from cascaded_diffusion.cascade.generate import stage_evaluations, stage_passes
from cascaded_diffusion.cascade.search_points import Point, count_passes, points_of
from cascaded_diffusion.cascade.search_sweep import Sweep, pick_stages
from cascaded_diffusion.cascade.stage import Stage, StageConfig
from cascaded_diffusion.errors import UserError

Configure = Callable[..., StageConfig]
CONTINUOUS = {"noise_schedule": {"kind": "cosine", "timesteps": None}}


@pytest.fixture
def chain(base_config: Configure, sr_config: Configure, random_stage: Callable[..., Stage]) -> Cascade:
    """8 -> 16 -> 32: a base with a guide and no class dropout, gaussian with class dropout, blur with neither."""
    no_dropout = {"training": {"class_dropout": 0.0}}
    base = random_stage(base_config(8, **no_dropout))
    base.guided_by(random_stage(base_config(8, **no_dropout), 1))
    blur = sr_config(32, low=16, conditioning={"augmentation": "blur"}, **no_dropout)
    return Cascade([base, random_stage(sr_config(16, low=8, diffusion=CONTINUOUS)), random_stage(blur)])


def _points(cascade: Cascade, stage: str, **sweep: Any) -> list[Point]:
    choices = pick_stages(cascade, stage, Sweep.model_validate(sweep))
    return points_of(cascade, stage, choices[stage], cascade.defaults)


def _labels(cascade: Cascade, stage: str, **sweep: Any) -> list[str]:
    return [point.label for point in _points(cascade, stage, **sweep)]


def _default(cascade: Cascade, stage: str, **changes: Any) -> None:
    cascade.defaults[stage] = cascade.defaults[stage].model_copy(update=changes)


def test_starts(chain: Cascade) -> None:
    points = _points(chain, "sr32", start=[1, 0.5, 1], steps=[4])
    assert [point.label for point in points] == ["4 steps, from noise", "4 steps, from time 0.5"]
    assert [point.settings["sr32"].start for point in points] == [None, 0.5]
    assert points[1].key.startswith("sr32-4-steps-from-time-0.5-")
    # The stages below are the same for all starts, and the stage itself takes fewer steps.
    assert count_passes(points) == {"base8": 1, "sr16": 1, "sr32": 2}
    stage = chain.stages["sr32"]
    assert [stage_evaluations(stage, point.work.settings) for point in points] == [4, 3]


def test_a_truncated_stage_has_no_image_to_start_from(chain: Cascade) -> None:
    assert _labels(chain, "sr16", s=[0, 0.2], start=[1, 0.7]) == [
        "s=0, from noise",
        "s=0, from time 0.7",
        "nontruncated s=0.2, from noise",
        "nontruncated s=0.2, from time 0.7",
        "truncated s=0.2, from noise",
    ]
    assert _labels(chain, "sr16", s=[0.2], start=[0.7]) == ["nontruncated s=0.2, from time 0.7"]
    assert _labels(chain, "sr16", s=[0.2], augmentation=["truncated"], start=[1]) == ["truncated s=0.2, from noise"]


def test_a_default_start_leaves_truncated_out_unless_it_is_swept(chain: Cascade) -> None:
    _default(chain, "sr16", start=0.7)
    assert _labels(chain, "sr16", s=[0, 0.2]) == ["s=0", "nontruncated s=0.2"]
    assert _labels(chain, "sr16", s=[0.2], start=[1]) == [
        "nontruncated s=0.2, from noise",
        "truncated s=0.2, from noise",
    ]
    with pytest.raises(UserError, match=r"sr16: start: 0\.7 needs the whole low-resolution image"):
        _labels(chain, "sr16", s=[0.2], augmentation=["truncated"])


def test_guide(chain: Cascade) -> None:
    points = _points(chain, "base8", guide=[1, 1.5])
    assert [(point.label, point.settings["base8"].guide) for point in points] == [("guide 1", 1.0), ("guide 1.5", 1.5)]
    stage = chain.stages["base8"]
    once, twice = (stage_passes(stage, point.work.settings) for point in points)
    assert twice == 2 * once


def test_an_interval_is_swept_only_where_guidance_acts(chain: Cascade) -> None:
    points = _points(chain, "sr16", guidance=[1, 2], guidance_interval=[None, (0.3, 5), (0, 1)])
    assert [point.label for point in points] == [
        "guidance 1, at every sigma",
        "guidance 2, at every sigma",
        "guidance 2, at sigma 0.3 to 5",
        "guidance 2, at sigma 0 to 1",
    ]
    assert points[2].settings["sr16"].guidance_interval == (0.3, 5.0)
    # No guidance: everywhere stands for every interval, also where it is not among those given.
    labels = _labels(chain, "sr16", guidance=[1, 2], guidance_interval=[(0.3, 5), (0, 1)])
    assert labels[0] == "guidance 1, at every sigma"
    assert len(labels) == 3
    assert _labels(chain, "base8", guide=[2], guidance_interval=[(0.3, 5)]) == ["guide 2, at sigma 0.3 to 5"]


def test_an_interval_of_a_default_guidance(chain: Cascade) -> None:
    _default(chain, "sr16", guidance=1.5)
    assert _labels(chain, "sr16", guidance_interval=[None, (0.3, 5)]) == ["at every sigma", "at sigma 0.3 to 5"]


def test_grids(chain: Cascade) -> None:
    points = _points(chain, "sr16", grid=["time", "edm"], steps=[3])
    assert [point.label for point in points] == ["3 steps, time grid", "3 steps, edm grid"]
    assert [point.settings["sr16"].grid for point in points] == ["time", "edm"]
    assert list(pick_stages(chain, "all", Sweep(grid=("edm",)))) == ["sr16"]


def test_all_leaves_out_the_stages_that_cannot(chain: Cascade) -> None:
    assert list(pick_stages(chain, "all", Sweep(start=(0.5,)))) == ["sr16", "sr32"]
    assert list(pick_stages(chain, "all", Sweep(guide=(2,)))) == ["base8"]
    interval = Sweep(guidance=(2,), guidance_interval=((0.3, 5),))
    assert pick_stages(chain, "all", interval) == {"sr16": [{"guidance": 2.0, "guidance_interval": (0.3, 5.0)}]}
    _default(chain, "base8", guide=2.0)
    assert list(pick_stages(chain, "all", Sweep(guidance_interval=((0.3, 5),)))) == ["base8"]


@pytest.mark.parametrize(
    "stage, sweep, line",
    [
        ("base8", {"start": [0.5]}, "start: cannot be swept: base8 is a base stage and has no image to start from"),
        ("sr16", {"guide": [2]}, "guide: cannot be swept: sr16 has no guide; cdm assemble --guide gives it one"),
        (
            "sr32",
            {"guidance_interval": [(0.3, 5)]},
            "guidance_interval: cannot be swept: sr32 was trained with training.class_dropout 0 and knows no unguided "
            "output, and it has no guide",
        ),
        (
            "sr16",
            {"guidance_interval": [(0.3, 5)]},
            "guidance_interval: cannot be swept: sr16 is not guided by default; give values of --guidance or --guide",
        ),
        ("sr16", {"guidance_interval": [(0.3, 5)], "guidance": [1]}, "sr16 is not guided by default"),
        ("base8", {"guidance_interval": [(0.3, 5)], "guidance": [2]}, "guidance: cannot be swept: base8"),
        (
            "sr16",
            {"guidance_interval": [(5, 0.3)], "guidance": [2]},
            r"sr16: guidance_interval: \[5.0, 0.3\] is not a range; allowed: lowest first",
        ),
        (
            "sr32",
            {"grid": ["edm"]},
            "grid: cannot be swept: sr32 was trained with cosine .* takes no sampling grid",
        ),
        (
            "sr16",
            {"grid": ["edm"], "endpoints": [(1e-4, 0.02)]},
            r"sr16: endpoints: \[0.0001, 0.02\] does not go with grid: edm; choose one",
        ),
        (
            "sr16",
            {"s": [0.2], "augmentation": ["truncated"], "start": [1, 0.7]},
            "start: 0.7 for sr16 needs the whole low-resolution image, which augmentation: truncated does not give; "
            "allowed: 1 alone, or nontruncated among --augmentation",
        ),
        (
            "sr16",
            {"s": [0.2], "augmentation": ["truncated", "nontruncated"], "start": [0.7]},
            "augmentation: truncated for sr16 does not go with a start below 1; allowed: nontruncated, or 1 among",
        ),
    ],
)
def test_refused_in_one_line(stage: str, sweep: dict[str, Any], line: str, chain: Cascade) -> None:
    with pytest.raises(UserError, match=line) as caught:
        _points(chain, stage, **sweep)
    assert "\n" not in str(caught.value)


def test_a_truncated_default_refuses_a_start(chain: Cascade) -> None:
    _default(chain, "sr16", augmentation="truncated", s=0.2)
    with pytest.raises(UserError, match=r"sr16: start: 0\.7 needs the whole .*; allowed: nontruncated, none"):
        _points(chain, "sr16", start=[1, 0.7])
