"""The demo from end to end, at a fraction of its length."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cascaded_diffusion.cascade.chain import Cascade
from cascaded_diffusion.demo.run import IMAGES, run_demo
from cascaded_diffusion.demo.training import StageProgress
from cascaded_diffusion.errors import UserError


def test_the_packaged_images_are_few_and_balanced() -> None:
    assert IMAGES.stat().st_size <= 2 * 2**20
    with np.load(IMAGES, allow_pickle=False) as file:
        images, labels = file["arr_0"], file["arr_1"]
    assert images.shape == (4000, 32, 32, 1)
    assert images.dtype == np.uint8
    assert np.array_equal(np.bincount(labels), np.full(10, 400))
    assert not images[:, :2].any()  # the margin around 28x28


def test_the_packaged_cascade_is_small_and_whole() -> None:
    cascade = Cascade.from_pretrained("demo")
    assert cascade.classes == 10
    folder = IMAGES.parents[1] / "pretrained" / "demo"
    assert sum(path.stat().st_size for path in folder.rglob("*.safetensors")) <= 16 * 2**20
    last = list(cascade.stages.values())[-1]
    assert last.config.resolution == 32
    assert last.config.conditioning is not None
    assert last.config.conditioning.augmentation == "gaussian"


def test_a_short_demo_writes_its_report(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    notes: list[str] = []
    seen: list[StageProgress] = []
    report = run_demo(out, note=notes.append, watch=seen.append, seconds=0.1, per_class=1)
    page = report.read_text()
    assert page.count("data:image/png;base64,") >= 6
    assert {progress.stage for progress in seen} == {"base8", "sr32"}
    with Image.open(out / "grid.png") as grid:
        assert grid.width > 100
    assert Cascade.from_pretrained(out / "tiny-cascade").classes == 10
    assert len(notes) == 3


def test_other_peoples_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="not an earlier demo"):
        run_demo(tmp_path, note=str, watch=lambda progress: None)
    assert (tmp_path / "letter.txt").read_text() == "dear"
