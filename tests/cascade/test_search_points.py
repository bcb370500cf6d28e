from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cascaded_diffusion.cascade.chain import Cascade
from cascaded_diffusion.cascade.search_points import (
    Pass,
    Point,
    count_passes,
    distinct_passes,
    points_of,
)
from cascaded_diffusion.cascade.search_sweep import Sweep, pick_stages
from cascaded_diffusion.cascade.stage import Stage, StageConfig
from cascaded_diffusion.errors import UserError

Configure = Callable[..., StageConfig]
CONTINUOUS = {"noise_schedule": {"kind": "cosine", "timesteps": None}}


@pytest.fixture
def chain(base_config: Configure, sr_config: Configure, random_stage: Callable[..., Stage]) -> Cascade:
    """8 -> 16 -> 32 -> 64: gaussian with s_max 0.5, gaussian with s_max 1 on a continuous schedule, blur."""
    shift = {"s_max": 1.0, "low_schedule": {"kind": "cosine", "timesteps": 40}}
    configs = [
        base_config(8, training={"class_dropout": 0.0}),
        sr_config(16, low=8),
        sr_config(32, low=16, diffusion=CONTINUOUS, conditioning=shift),
        sr_config(64, low=32, conditioning={"augmentation": "blur"}),
    ]
    return Cascade([random_stage(config) for config in configs])


def _points(cascade: Cascade, stage: str, **sweep: Any) -> list[Point]:
    choices = pick_stages(cascade, stage, Sweep.model_validate(sweep))
    return points_of(cascade, stage, choices[stage], cascade.defaults)


def _labels(cascade: Cascade, stage: str, **sweep: Any) -> list[str]:
    return [point.label for point in _points(cascade, stage, **sweep)]


def test_nothing_named_sweeps_s_in_both_modes(chain: Cascade) -> None:
    labels = _labels(chain, "sr16")
    assert labels[:3] == ["s=0", "nontruncated s=0.05", "nontruncated s=0.1"]
    assert labels[11] == "truncated s=0.05"
    assert len(labels) == 21
    assert labels[-1] == "truncated s=0.5"


@pytest.mark.parametrize("s_max, last", [(0.3, 0.3), (0.32, 0.3), (1.0, 0.5), (0.02, 0.02)])
def test_default_strengths_end_at_s_max(
    s_max: float, last: float, base_config: Configure, sr_config: Configure, random_stage: Callable[..., Stage]
) -> None:
    settings = {"s": 0.01}
    configs = [base_config(8), sr_config(16, low=8, conditioning={"s_max": s_max}, sampling=settings)]
    cascade = Cascade([random_stage(config) for config in configs])
    assert _labels(cascade, "sr16", augmentation=["nontruncated"])[-1] == f"nontruncated s={last:g}"


def test_without_truncated_sampling(chain: Cascade) -> None:
    chain.truncated["sr16"] = False
    assert _labels(chain, "sr16", s=[0, 0.1]) == ["s=0", "nontruncated s=0.1"]
    with pytest.raises(UserError, match="truncated is not available, sr16 was assembled with --no-truncated"):
        _labels(chain, "sr16", augmentation=["nontruncated", "truncated"])


def test_combinations(chain: Cascade) -> None:
    points = _points(chain, "sr16", s=[0.2, 0, 0.2], augmentation=["truncated"], steps=["4", 2, 2], guidance=[1, 1.5])
    assert [point.label for point in points][:5] == [
        "s=0, 4 steps, guidance 1",
        "s=0, 4 steps, guidance 1.5",
        "s=0, 2 steps, guidance 1",
        "s=0, 2 steps, guidance 1.5",
        "truncated s=0.2, 4 steps, guidance 1",
    ]
    assert len(points) == 8
    last = points[-1].settings["sr16"]
    assert (last.augmentation, last.s, last.steps, last.guidance) == ("truncated", 0.2, 2, 1.5)
    assert len({point.key for point in points}) == 8
    assert points[-1].key.startswith("sr16-truncated-s0.2-2-steps-guidance-1.5-")


def test_what_is_not_swept_stays(chain: Cascade) -> None:
    (point,) = _points(chain, "sr16", steps=[7])
    assert point.settings["sr16"] == chain.defaults["sr16"].model_copy(update={"steps": 7})
    assert point.settings["base8"] == chain.defaults["base8"]


def test_endpoints(chain: Cascade) -> None:
    points = _points(chain, "sr32", endpoints=[(1e-4, 0.02), (1e-6, 0.1)])
    assert [point.settings["sr32"].endpoints for point in points] == [(1e-4, 0.02), (1e-6, 0.1)]
    assert points[0].label == "endpoints 0.0001:0.02"


def test_stages_come_in_the_order_of_the_cascade(chain: Cascade) -> None:
    assert list(pick_stages(chain, "sr32,sr16", Sweep())) == ["sr16", "sr32"]
    assert list(pick_stages(chain, "all", Sweep())) == ["sr16", "sr32"]
    mixed = pick_stages(chain, "all", Sweep(s=(0.1,), steps=(3,)))
    assert list(mixed) == ["base8", "sr16", "sr32", "sr64"]
    assert mixed["base8"] == [{"steps": 3}]
    assert list(pick_stages(chain, "all", Sweep(guidance=(1, 2)))) == ["sr16", "sr32", "sr64"]


@pytest.mark.parametrize(
    "stage, sweep, line",
    [
        ("sr17", {}, "stage: no stage 'sr17' in this cascade; allowed: base8, sr16, sr32, sr64 or all; did you mean"),
        ("sr16,", {}, "stage: no stage ''"),
        ("sr16,sr16", {}, "stage: 'sr16,sr16' names sr16 twice"),
        ("base8", {"s": [0.1]}, "s: cannot be swept: base8 is a base stage and has no s"),
        ("sr64", {"s": [0]}, "s: cannot be swept: sr64 was trained with augmentation blur and has no s"),
        ("base8", {}, "stage: nothing to sweep for base8"),
        ("base8,sr16", {"s": [0.1]}, "stage: nothing to sweep for base8"),
        ("base8", {"guidance": [1]}, "guidance: cannot be swept: base8 was trained with training.class_dropout 0"),
        ("sr16", {"endpoints": [(0.1, 0.2)]}, "endpoints: cannot be swept: sr16 was trained with cosine T=40"),
        ("sr16", {"s": [0, 0.6]}, "s: 0.6 for sr16 is out of range; allowed 0 to 0.5"),
        ("sr16", {"steps": [41]}, "steps: 41 is more than the T=40 that the stage was trained with"),
        ("sr32", {"steps": ["ddim5"]}, "steps: 'ddim5' needs a discrete stage"),
        ("sr32", {"endpoints": [(0.2, 0.1)]}, r"sr32: endpoints: \[0.2, 0.1\] is not a pair 0 < first <= last < 1"),
    ],
)
def test_refused_in_one_line(stage: str, sweep: dict[str, Any], line: str, chain: Cascade) -> None:
    with pytest.raises(UserError, match=line) as caught:
        _points(chain, stage, **sweep)
    assert "\n" not in str(caught.value)


def test_non_truncated_points_share_one_pass_below(chain: Cascade) -> None:
    points = _points(chain, "sr16", s=[0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5], augmentation=["nontruncated"])
    assert count_passes(points) == {"base8": 1, "sr16": 7}


def test_truncated_points_need_the_stage_below_once_for_each_s(chain: Cascade) -> None:
    points = _points(chain, "sr32", s=[0, 0.1, 0.2], augmentation=["nontruncated", "truncated"], steps=[3, 4])
    # sr16 finishes once, and stops at 0.1 and at 0.2; the number of steps above makes no difference to it.
    assert count_passes(points) == {"base8": 1, "sr16": 3, "sr32": 10}


def test_passes_come_after_those_they_stand_on(chain: Cascade) -> None:
    seen: list[Pass] = []
    for work in distinct_passes(_points(chain, "sr32", s=[0, 0.1])):
        assert work.below is None or work.below in seen
        seen.append(work)


def test_a_truncated_point_stops_the_stage_below(chain: Cascade) -> None:
    (point,) = _points(chain, "sr16", s=[0.2], augmentation=["truncated"])
    below = point.work.below
    assert below is not None
    assert (below.stage, below.stop, point.work.stop) == ("base8", 0.2, 0.0)


def test_keys_tell_everything_below_apart(chain: Cascade) -> None:
    (point,) = _points(chain, "sr16", steps=[7])
    chain.defaults["base8"] = chain.defaults["base8"].model_copy(update={"steps": 5})
    (other,) = _points(chain, "sr16", steps=[7])
    assert point.label == other.label
    assert point.key != other.key
