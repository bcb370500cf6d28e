"""The demo from end to end, at a fraction of its length."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cascaded_diffusion.cascade.chain import Cascade
from cascaded_diffusion.demo.run import IMAGES, _clear, run_demo
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
    # A demo makes nothing that the next one does not clear away.
    _clear(out)
    assert [path.name for path in out.iterdir()] == [".cdm-demo"]


def test_other_peoples_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="not an earlier demo"):
        run_demo(tmp_path, note=str, watch=lambda progress: None)
    assert (tmp_path / "letter.txt").read_text() == "dear"


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """A folder with an earlier demo, one that died while it wrote."""
    out = tmp_path / "demo"
    for name in ("data/manifest.json", "runs/base8/config.json", "tiny-cascade/cascade.json", "grid.png", ".cdm-demo"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).touch()
    for folder in (".data.preparing", ".tiny-cascade.partial", ".tiny-cascade.partial.x1y2z3_4"):
        (out / folder).mkdir()
    for name in (".report.html.partial", ".grid.png.x1y2z3_4"):
        (out / name).touch()
    return out


def _listed(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_an_earlier_demo_makes_way(earlier: Path) -> None:
    _clear(earlier)
    assert _listed(earlier) == [".cdm-demo"]


@pytest.mark.parametrize("name", ["mine/precious", "notes.txt", ".hidden", "report.html.old", ".grid.png", "data2/x"])
def test_what_was_put_beside_an_earlier_demo_is_left_alone(name: str, earlier: Path) -> None:
    (earlier / name).parent.mkdir(exist_ok=True)
    (earlier / name).write_text("precious")
    before = _listed(earlier)
    with pytest.raises(UserError, match=rf"holds {Path(name).parts[0]}, which no demo made"):
        run_demo(earlier, note=str, watch=lambda progress: None)
    assert _listed(earlier) == before


def test_links_in_place_of_an_earlier_demos_parts_are_not_followed(earlier: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/precious").touch()
    shutil.rmtree(earlier / "runs")
    (earlier / "runs").symlink_to(tmp_path / "elsewhere")
    (earlier / "report.html").symlink_to(tmp_path / "nowhere")
    _clear(earlier)
    assert _listed(earlier) == [".cdm-demo"]
    assert _listed(tmp_path / "elsewhere") == ["precious"]


def test_clearing_that_stopped_half_way_can_be_done_again(earlier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, *_: Any) -> None:
        if path.name == "tiny-cascade":  # the last of its names
            raise OSError("busy")
        honest(path)

    honest = shutil.rmtree
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", fail)
        with pytest.raises(OSError, match="busy"):
            _clear(earlier)
    _clear(earlier)
    assert _listed(earlier) == [".cdm-demo"]
