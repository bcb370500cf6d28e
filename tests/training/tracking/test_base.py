from __future__ import annotations

import json
import sys

import pytest

from cascaded_diffusion.errors import UserError
from cascaded_diffusion.training.tracking.base import (
    TRACKERS,
    check_trackers,
    flat_config,
    opener,
    scalars_of,
    tellable,
)


def test_names_are_kept_once_and_in_order() -> None:
    assert check_trackers(["tensorboard", "tensorboard"]) == ("tensorboard",)
    assert check_trackers([]) == ()


@pytest.mark.parametrize(
    "name, words",
    [
        ("tensorbord", "track: 'tensorbord' is not known; allowed: tensorboard, wandb, trackio; did you mean tensorb"),
        ("mlflow", "track: 'mlflow' is not known; allowed: tensorboard, wandb, trackio"),
        ("", "track: '' is not known"),
    ],
)
def test_other_names_are_refused(name: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        check_trackers([name])
    assert str(caught.value).startswith(words)


@pytest.mark.parametrize("name", TRACKERS)
def test_a_missing_package_is_told_with_its_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError) as caught:
        check_trackers([name])
    assert str(caught.value) == f"track: {name} is not installed; pip install 'cascaded-diffusion[{name}]'"


@pytest.mark.parametrize("name", TRACKERS)
def test_every_name_has_a_tracker(name: str) -> None:
    assert isinstance(opener(name), type)


def test_no_setting_is_lost_when_a_configuration_is_flattened() -> None:
    config = {
        "training": {"learning_rate": 1e-4, "micro_batch": None, "betas": [0.9, 0.999]},
        "class_names": ["Bag", "Größe|a", "<b>"],
        "flip": False,
        "conditioning": None,
        "provenance": {},
        "name": "base8",
    }
    assert flat_config(config) == {
        "training.learning_rate": 1e-4,
        "training.micro_batch": "null",
        "training.betas": "[0.9, 0.999]",
        "class_names": '["Bag", "Größe|a", "<b>"]',
        "flip": "false",
        "conditioning": "null",
        "provenance": "{}",
        "name": "base8",
    }


def test_what_utf_8_cannot_hold_is_written_out() -> None:
    value = {"names": ("a\udc80", "ü"), "n": 3, "k\udcff": [None, True, 0.5]}
    assert tellable(value) == {"names": ["a\\udc80", "ü"], "n": 3, "k\\udcff": [None, True, 0.5]}
    json.dumps(tellable(value), ensure_ascii=False).encode()


def test_numbers_of_a_line_of_metrics() -> None:
    row = {
        "images": 16,
        "lr": 1e-4,
        "loss": 0.5,
        "loss_by_time": [0.1, None, 0.3],
        "skipped": {"steps": 2, "why": "nan"},
        "note": "x",
        "ended": True,
        "nothing": None,
    }
    numbers, others = scalars_of(row)
    assert numbers == {
        "lr": 1e-4,
        "loss": 0.5,
        "loss_by_time/1": 0.1,
        "loss_by_time/3": 0.3,
        "skipped/steps": 2.0,
        "ended": 1.0,
    }
    assert others == ["skipped/why", "note"]
