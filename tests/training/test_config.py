from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from cascaded_diffusion.config import explain
from cascaded_diffusion.training.config import TrainingConfig


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"weight_decay": 0.01}, ["weight_decay", "0.01", "adamw"]),
        ({"batch_size": 8, "micro_batch": 3}, ["micro_batch", "3", "8"]),
        ({"micro_batch": "auto", "sharding": "full"}, ["micro_batch", "auto", "sharding"]),
        ({"ema_half_lives": (100, 0)}, ["ema_half_lives.1", "given: 0", "equal to 1"]),
        ({"ema_half_lives": (100, 100)}, ["ema_half_lives", "twice"]),
        ({"ema_half_lives": ()}, ["ema_half_lives", "at least 1"]),
        ({"batch_size": 0}, ["batch_size", "0"]),
        ({"learning_rate": float("nan")}, ["learning_rate", "nan"]),
        ({"decay_start": 1.0}, ["decay_start", "1.0"]),
        ({"class_dropout": 1.0}, ["class_dropout", "1.0"]),
        ({"learning_rat": 1e-3}, ["learning_rat", "learning_rate"]),
        ({"optimizer": "sgd"}, ["optimizer", "adamw", "sgd"]),
    ],
)
def test_refusals_name_the_key_the_value_and_what_is_allowed(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValidationError) as caught:
        TrainingConfig.model_validate(changes)
    line = explain(caught.value)
    assert all(word in line for word in words), line


def test_weight_decay_goes_with_adamw() -> None:
    assert TrainingConfig(optimizer="adamw", weight_decay=0.01).weight_decay == 0.01


def test_every_field_is_described() -> None:
    assert all(field.description for field in TrainingConfig.model_fields.values())
