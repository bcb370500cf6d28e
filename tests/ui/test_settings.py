"""What comes from the page is checked before anything is done with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cascaded_diffusion.cascade.chain import Cascade
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.ui.limits import PageLimits
from cascaded_diffusion.ui.settings import choices, read_class, read_s, read_settings, with_s

Limits = Callable[[Path | str], PageLimits]
Values = Callable[..., list[Any]]


@pytest.fixture(scope="module")
def demo(limits_of: Limits) -> PageLimits:
    return limits_of("demo")


def test_what_a_new_page_sends_is_what_the_cascade_recommends(demo: PageLimits, values_of: Values) -> None:
    settings = read_settings(demo, values_of(demo))
    cascade = Cascade.from_pretrained("demo")
    assert cascade.plan(**choices(demo, settings)).settings == cascade.plan().settings


@pytest.mark.parametrize(
    "change, words",
    [
        ({"classes": [10]}, "class: 10 is not allowed; give a number from 0 to 9"),
        ({"classes": ["Bag"]}, "class: 'Bag'"),
        ({"classes": [True]}, "class: True"),
        ({"classes": 3}, "not a list of at most 10"),
        ({"classes": [0] * 11}, "not a list of at most 10"),
        ({"num": 65}, "images: 65 is not allowed; give a number from 1 to 64"),
        ({"num": 0}, "images: 0"),
        ({"num": 2.5}, "images: 2.5 is not a whole number"),
        ({"num": None}, "images: None"),
        ({"num": "8"}, "images: '8'"),
        ({"num": float("nan")}, "images: nan"),
        ({"seed": -1}, "seed: -1"),
        ({"seed": 2**31}, "seed: 2147483648 is not allowed; give a number from 0 to 2147483647"),
        ({"base16.steps": 101}, "steps of base16: 101 is not allowed; give a number from 1 to 100"),
        ({"base16.steps": "10,20"}, "steps of base16: '10,20'"),
        ({"base16.sampler": "euler"}, "sampler of base16: 'euler' is not allowed; choose ancestral, ddim"),
        ({"base16.sampler": ["ddim"]}, "sampler of base16: ['ddim']"),
        ({"sr32.augmentation": "blur"}, "augmentation of sr32: 'blur'"),
        ({"sr32.s": 0.61}, "s of sr32: 0.61 is not allowed; give a number from 0 to 0.6"),
        ({"sr32.s": -0.1}, "s of sr32: -0.1"),
        ({"sr32.s": float("inf")}, "s of sr32: inf"),
        ({"sr32.s": 10**400}, "s of sr32: 1000"),
        ({"sr32.guidance": 10.5}, "guidance of sr32: 10.5 is not allowed; give a number from 0 to 10"),
        ({"sr32.guidance": "x" * 500}, "xxx..."),
        ({"sr32.grid": "sigma"}, "grid of sr32: 'sigma' is not allowed; choose time, edm, log-snr"),
        ({"sr32.start": 0}, "start of sr32: 0 is not allowed; give a number from 0.01 to 1"),
        ({"sr32.start": 1.2}, "start of sr32: 1.2"),
        ({"sr32.start": "none"}, "start of sr32: 'none'"),
        ({"sr32.start": float("nan")}, "start of sr32: nan"),
        ({"sr32.interval_low": -1}, "guidance above sigma of sr32: -1 is not allowed; give a number from 0 to 100000"),
        ({"sr32.interval_high": 1e6}, "guidance up to sigma of sr32: 1000000.0"),
        ({"sr32.interval_low": 0.3}, "guidance of sr32: one sigma alone is no interval; give both or neither"),
        (
            {"base16.interval_low": 5, "base16.interval_high": 5},
            "guidance of base16: 5 to 5 is not an interval; give the smaller first",
        ),
    ],
)
def test_a_value_out_of_bounds_is_named(
    demo: PageLimits, values_of: Values, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError) as caught:
        read_settings(demo, values_of(demo, **change))
    assert words in str(caught.value)
    assert len(str(caught.value)) < 250
    assert "\n" not in str(caught.value)


def test_fields_that_are_empty_are_off(demo: PageLimits, values_of: Values) -> None:
    empty = {"sr32.start": "", "sr32.interval_low": None, "sr32.interval_high": ""}
    assert "more" not in choices(demo, read_settings(demo, values_of(demo, **empty)))


def test_start_and_interval_reach_the_cascade(demo: PageLimits, values_of: Values) -> None:
    change = {"sr32.start": 0.6, "base16.interval_low": 0, "base16.interval_high": 5, "base16.grid": "edm"}
    asked = choices(demo, read_settings(demo, values_of(demo, **change)))
    assert asked["more"] == {"base16": {"guidance_interval": (0, 5), "grid": "edm"}, "sr32": {"start": 0.6}}
    found = Cascade.from_pretrained("demo").plan(**asked).settings
    assert (found["base16"].guidance_interval, found["sr32"].start) == ((0, 5), 0.6)


def test_a_truncated_stage_does_not_start_from_its_image(demo: PageLimits, values_of: Values) -> None:
    change = {"sr32.start": 0.6, "sr32.augmentation": "truncated"}
    settings = read_settings(demo, values_of(demo, **change))
    assert settings.stages["sr32"].start is None
    Cascade.from_pretrained("demo").plan(**choices(demo, settings))


def test_what_the_cascade_has_on_can_be_turned_off(later: Path, limits_of: Limits, values_of: Values) -> None:
    limits = limits_of(later)
    cascade = Cascade.from_pretrained(later)
    new = choices(limits, read_settings(limits, values_of(limits)))
    assert cascade.plan(**new).settings == cascade.plan().settings
    off = {"sr8.start": None, "sr8.interval_low": None, "sr8.interval_high": None, "sr8.guide": 1}
    asked = choices(limits, read_settings(limits, values_of(limits, **off)))
    assert asked["more"] == {"sr8": {"guide": 1.0, "start": None, "guidance_interval": None}}
    found = cascade.plan(**asked).settings["sr8"]
    assert (found.start, found.guide, found.guidance_interval) == (None, 1, None)
    with pytest.raises(UserError, match=r"guide of sr8: 10\.5 is not allowed; give a number from 0 to 10"):
        read_settings(limits, values_of(limits, **{"sr8.guide": 10.5}))


def test_too_few_values_are_refused(demo: PageLimits, values_of: Values) -> None:
    with pytest.raises(UserError, match="17 values came from the page; allowed: 18"):
        read_settings(demo, values_of(demo)[:-1])


def test_a_class_named_twice_counts_once(demo: PageLimits, values_of: Values) -> None:
    assert read_settings(demo, values_of(demo, classes=[8, 1, 8])).classes == (8, 1)
    assert read_settings(demo, values_of(demo, classes=None)).classes == ()


def test_s_says_nothing_where_the_augmentation_is_none(demo: PageLimits, values_of: Values) -> None:
    asked = choices(demo, read_settings(demo, values_of(demo, **{"sr32.augmentation": "none"})))
    assert "s" not in asked
    assert Cascade.from_pretrained("demo").plan(**asked).settings["sr32"].s == 0


def test_words_for_steps_go_where_the_cascade_uses_them(base_config: Any, random_stage: Any, values_of: Values) -> None:
    from cascaded_diffusion.ui.limits import page_limits

    limits = page_limits(Cascade([random_stage(base_config(8, sampling={"steps": "10,5"}))]), 8)
    assert read_settings(limits, values_of(limits, **{"base8.steps": " ddim20 "})).stages["base8"].steps == "ddim20"
    for wrong in ("", "x" * 61, None, True, [4]):
        with pytest.raises(UserError, match="steps of base8"):
            read_settings(limits, values_of(limits, **{"base8.steps": wrong}))


def test_comparing_turns_augmentation_on(demo: PageLimits, values_of: Values) -> None:
    settings = read_settings(demo, values_of(demo, **{"sr32.augmentation": "none"}))
    changed = with_s(settings, "sr32", 0.4)
    assert (changed.stages["sr32"].augmentation, changed.stages["sr32"].s) == ("nontruncated", 0.4)
    kept = with_s(read_settings(demo, values_of(demo, **{"sr32.augmentation": "truncated"})), "sr32", 0.4)
    assert kept.stages["sr32"].augmentation == "truncated"


def test_the_class_of_an_own_image(limits_of: Limits, demo: PageLimits, plain: Path) -> None:
    assert read_class(demo, -1, "sr32") is None
    assert read_class(demo, 8, "sr32") == 8
    assert read_class(limits_of(plain), 5, "sr8") is None
    for wrong in (10, "Bag", -2):
        with pytest.raises(UserError, match="class: "):
            read_class(demo, wrong, "sr32")


def test_a_stage_that_must_be_told_the_class_asks_for_it(base_config: Any, sr_config: Any, random_stage: Any) -> None:
    from cascaded_diffusion.ui.limits import page_limits

    stages = [random_stage(base_config(8)), random_stage(sr_config(16, low=8, training={"class_dropout": 0.0}))]
    with pytest.raises(UserError, match="sr16 needs the class"):
        read_class(page_limits(Cascade(stages), 8), None, "sr16")


def test_s_of_a_stage_without_it(limits_of: Limits, plain: Path) -> None:
    with pytest.raises(UserError, match="sr16 has no s"):
        read_s(limits_of(plain).stage("sr16"), 0.1)
