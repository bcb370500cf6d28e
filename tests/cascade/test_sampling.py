from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from cascaded_diffusion.cascade.sampling import SamplingConfig
from cascaded_diffusion.config import explain


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"steps": 0}, ["steps", "0", "10,20,30"]),
        ({"steps": "ten"}, ["steps", "'ten'", "ddimN"]),
        ({"steps": "10,,20"}, ["steps", "10,,20"]),
        ({"steps": "ddim"}, ["steps", "ddim"]),
        ({"steps": "-3"}, ["steps", "-3"]),
        ({"s": 0.2}, ["s: 0.2", "augmentation: none", "allowed 0"]),
        ({"s": 1.5, "augmentation": "truncated"}, ["s", "1.5"]),
        ({"sampler": "euler"}, ["sampler", "euler", "ddim"]),
        ({"guidance": -1}, ["guidance", "-1"]),
        ({"endpoints": (0.1, 0.01)}, ["endpoints", "0 < first <= last < 1"]),
        ({"dynamic_threshold": 0}, ["dynamic_threshold"]),
    ],
)
def test_refusals(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValidationError) as caught:
        SamplingConfig.model_validate(changes)
    line = explain(caught.value)
    assert all(word in line for word in words), line


@pytest.mark.parametrize("given, kept", [(10, 10), ("10", 10), ("10,20,30", "10,20,30"), ("ddim25", "ddim25")])
def test_steps_in_every_form(given: int | str, kept: int | str) -> None:
    assert SamplingConfig(steps=given).steps == kept
