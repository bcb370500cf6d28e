"""Settings as a command line and as a link."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from cascaded_diffusion.cascade.chain import Cascade
from cascaded_diffusion.cli.values import stage_settings
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.ui.command import Origin, enlarge_command, link_query, read_link, sample_command
from cascaded_diffusion.ui.limits import PageLimits
from cascaded_diffusion.ui.settings import choices, read_settings

Limits = Callable[[Path | str], PageLimits]
Values = Callable[..., list[Any]]


def words(command: str) -> list[str]:
    return shlex.split(command.replace("\\\n", " "))


def test_the_command_names_everything(limits_of: Limits, values_of: Values) -> None:
    demo = limits_of("demo")
    settings = read_settings(demo, values_of(demo, classes=[8, 0], num=5, seed=7, **{"sr32.s": 0.35}))
    given = words(sample_command(Origin("demo", "cpu"), demo, settings))
    assert given == [
        *("cdm", "sample", "demo", "--out", "samples.npz", "--classes", "Bag,T-shirt/top", "--num", "5"),
        *("--seed", "7", "--steps", "base16=12,sr32=6", "--sampler", "dpmpp-2m", "--augmentation", "nontruncated"),
        *("--s", "0.35", "--guidance", "base16=1.5,sr32=1", "--device", "cpu"),
    ]


def test_what_has_no_option_is_set(limits_of: Limits, values_of: Values, later: Path) -> None:
    limits = limits_of(later)
    cascade = Cascade.from_pretrained(later)
    off: dict[str, Any] = {"sr8.start": None, "sr8.guide": 1, "sr8.interval_low": None, "sr8.interval_high": None}
    for change, sets in (
        ({}, ["sr8.guide=2", "sr8.start=0.7", "sr8.guidance_interval=[1e-05,5]"]),
        (off, ["sr8.guide=1", "sr8.start=null", "sr8.guidance_interval=null"]),
    ):
        settings = read_settings(limits, values_of(limits, **change))
        given = words(sample_command(Origin("x"), limits, settings))
        found = [word for option, word in pairwise(given) if option == "--set"]
        assert found == sets
        assert "--more" not in given
        chosen = cascade.plan(more=stage_settings(found)).settings
        assert chosen == cascade.plan(**choices(limits, settings)).settings


def test_a_class_that_a_command_line_would_tear_apart_is_numbered(
    limits_of: Limits, values_of: Values, named: Path
) -> None:
    limits = limits_of(named)

    def option(*ids: int) -> str:
        settings = read_settings(limits, values_of(limits, classes=list(ids)))
        given = words(sample_command(Origin(str(named)), limits, settings))
        assert given[2] == str(named)
        return given[given.index("--classes") + 1]

    assert option(0, 1, 3) == "Red,1,Yellow/gold"
    assert option(2) == "3"


def test_a_class_that_no_word_means_is_said(limits_of: Limits, values_of: Values, named: Path) -> None:
    from dataclasses import replace

    limits = replace(limits_of(named), class_names=("Red", "a,b", "1", "x"))
    with pytest.raises(UserError, match="'a,b' cannot be named"):
        sample_command(Origin("x"), limits, read_settings(limits, values_of(limits, classes=[1])))


def test_one_value_is_given_only_where_all_stages_have_it(limits_of: Limits, values_of: Values, plain: Path) -> None:
    limits = limits_of(plain)
    given = words(sample_command(Origin("x"), limits, read_settings(limits, values_of(limits))))
    assert given[given.index("--steps") + 1] == "4"
    changed = read_settings(limits, values_of(limits, **{"sr8.steps": 5, "sr8.augmentation": "none"}))
    given = words(sample_command(Origin("x"), limits, changed))
    assert given[given.index("--steps") + 1] == "base4=4,sr8=5,sr16=4"
    assert "--s" not in given


def test_a_file_that_looks_like_an_option_does_not_become_one(limits_of: Limits, values_of: Values) -> None:
    from dataclasses import replace

    demo = limits_of("demo")
    settings = read_settings(demo, values_of(demo))
    settings = replace(settings, stages={"sr32": settings.stages["sr32"]})
    command = enlarge_command(Origin("demo"), demo, settings, start="sr32", file="-o my $(x).png", label=8)
    given = words(command)
    assert given[given.index("--from-images") + 1] == "./-o my $(x).png"
    assert given[given.index("--start-stage") + 1] == "sr32"
    assert given[given.index("--classes") + 1] == "Bag"
    assert given[given.index("--steps") + 1] == "6"


def test_a_link_carries_every_setting_back(limits_of: Limits, values_of: Values, plain: Path, later: Path) -> None:
    changes: dict[str, Any] = {"num": 3, "seed": 2**31 - 1, "sr32.s": 0.05, "sr32.augmentation": "truncated"}
    changes |= {"classes": [8, 1], "base16.steps": 7, "base16.guidance": 2.5, "sr32.sampler": "heun"}
    changes |= {"base16.interval_low": 0.25, "base16.interval_high": 5}
    off: dict[str, Any] = {"sr8.start": None, "sr8.interval_low": None, "sr8.interval_high": None, "sr8.guide": 1.5}
    cases: list[tuple[Path | str, dict[str, Any]]] = [("demo", changes), (plain, {"seed": 4, "sr8.s": 0.0})]
    for folder, change in (
        *cases,
        ("demo", {"sr32.start": 0.6}),
        (later, off),
        (later, {"sr8.start": 0.3, "base4.grid": "log-snr"}),
    ):
        limits = limits_of(folder)
        settings = read_settings(limits, values_of(limits, **change))
        query = link_query(limits, settings)
        found = read_link(limits, query)
        assert found is not None
        assert read_settings(limits, found) == settings


def test_an_address_without_settings_changes_nothing(limits_of: Limits) -> None:
    assert read_link(limits_of("demo"), "") is None
    assert read_link(limits_of("demo"), "?__theme=dark&utm=x") is None


@pytest.mark.parametrize(
    "query, words",
    [
        ("?num=1000", "images: 1000"),
        ("?num=many", "images: 'many'"),
        ("?seed=inf", "seed: inf"),
        ("?classes=1,x", "class: 'x'"),
        ("?sr32.start=0", "start of sr32: 0"),
        ("?sr32.interval_low=3", "guidance of sr32: one sigma alone"),
        ("?sr32.steps=none", "steps of sr32: 'none'"),
        ("?sr32.s=0.9", "s of sr32: 0.9"),
        ("?sr32.sampler=%3Cscript%3E", "sampler of sr32: '<script>'"),
        ("?" + "&".join(f"a{i}=1" for i in range(300)), "more than 200"),
        ("?" + "x" * 9000, "at most 8000"),
        (None, "at most 8000"),
        ({"a": 1}, "at most 8000"),
    ],
)
def test_a_wrong_link_is_refused(limits_of: Limits, query: Any, words: str) -> None:
    with pytest.raises(UserError) as caught:
        read_link(limits_of("demo"), query)
    assert words in str(caught.value)
