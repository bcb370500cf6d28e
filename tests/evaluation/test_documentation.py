"""The worked example in docs/evaluation.md runs as it stands, and what the page says of the code is so."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cascaded_diffusion.evaluation.extractors.inception import WEIGHTS_SHA256
from cascaded_diffusion.evaluation.request import METRICS
from cascaded_diffusion.evaluation.scores import Provenance

PAGE = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")


def test_the_example_of_an_exported_extractor_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    np.savez("samples.npz", images, np.zeros(3, np.int64))
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "docs/evaluation.md", "exec"), names)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    expected = torch.cat([pixels.mean((2, 3)), pixels.std((2, 3))], dim=1)
    torch.testing.assert_close(names["features"], expected)
    assert names["extractor"].name == "palette"


def test_every_metric_is_explained() -> None:
    explained = re.findall(r"^\| `(\w+)`(?: \(or `fid`\))? \|", PAGE, flags=re.MULTILINE)
    assert sorted(explained) == sorted(METRICS)


def test_the_fields_named_are_those_of_a_score() -> None:
    fields = PAGE[PAGE.index("| field | meaning |") : PAGE.index("Some scores have more")]
    named = {name for row in fields.splitlines()[2:-1] for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert named <= {*Provenance.model_fields, "standard_error", "note"}


def test_the_hash_of_the_weights_is_told() -> None:
    assert WEIGHTS_SHA256 in PAGE
