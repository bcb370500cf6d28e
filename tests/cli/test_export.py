"""``cdm export``: a cascade as diffusers models, back again, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest

from cascaded_diffusion.cascade.chain import Cascade
from cascaded_diffusion.cascade.stage import Stage, StageConfig

Done = Callable[..., Any]


@pytest.fixture(scope="session")
def exportable(tmp_path_factory: pytest.TempPathFactory, random_stage: Callable[..., Stage]) -> Path:
    """A cascade of one stage that diffusers can express."""
    config = StageConfig.model_validate(
        {
            "name": "base8",
            "resolution": 8,
            "network": {"channels": 32, "multipliers": [1, 1], "blocks": 1, "attention": [4], "head_channels": 16},
            "sampling": {"sampler": "dpmpp-2m", "steps": 3},
            "channels": 1,
        }
    )
    folder = tmp_path_factory.mktemp("exportable") / "cascade"
    Cascade([random_stage(config)]).save_pretrained(folder)
    return folder


def test_there_and_back_again(done: Done, exportable: Path, tmp_path: Path) -> None:
    result = done("export", exportable, tmp_path / "out", "--format", "diffusers")
    assert result.out == f"{tmp_path / 'out'}: base8 for diffusers; load_cascade.py there chains them\n"
    assert result.err.splitlines() == [
        f"{tmp_path / 'out'}: base8: sampler dpmpp-2m becomes DDIM",
        f"{tmp_path / 'out'}: base8: steps 3, from 1000 down, become every 333-th from 667 down",
    ]
    diffusers.UNet2DModel.from_pretrained(tmp_path / "out/base8/unet", low_cpu_mem_usage=False)
    result = done("import", "diffusers", tmp_path / "out/base8", tmp_path / "base8")
    assert "base8, 8x8 pixels, no classes, cosine T=1000, dpmpp-2m 3 steps" in result.out
    done("assemble", tmp_path / "again", tmp_path / "base8")
    for name, cascade in (("before", exportable), ("after", tmp_path / "again")):
        done("sample", cascade, "--out", tmp_path / f"{name}.npz", "--num", "2")
    before, after = (np.load(tmp_path / f"{name}.npz")["arr_0"] for name in ("before", "after"))
    assert np.array_equal(before, after)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("demo {out}", ["export: diffusers cannot express base16: ", "sr32: conditioning.augmentation: gaussian"]),
        ("{cascade} {out} --format onnx", ["--format: 'onnx' is not known; allowed: diffusers"]),
        ("{cascade} {root}", ["already there and not an empty folder"]),
        ("{root} {out}", ["not a cascade"]),
        ("{out} {out}", ["is neither a folder nor packaged"]),
        ("{cascade}", ["Missing argument 'OUT'"]),
    ],
)
def test_mistakes_are_one_line(
    refused: Callable[..., str], exportable: Path, tmp_path: Path, command: str, words: list[str]
) -> None:
    places = {"cascade": exportable, "root": exportable.parent, "out": tmp_path / "out"}
    line = refused("export", *(word.format(**places) for word in command.split()))
    for word in words:
        assert word in line
    assert list(tmp_path.iterdir()) == []
