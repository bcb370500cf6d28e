"""examples/emoji/showcase.py on a cascade of random weights."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cascaded_diffusion.errors import UserError

EMOJI = Path(__file__).parents[2] / "examples" / "emoji"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(EMOJI)
    return importlib.import_module("showcase")


def test_every_image_is_where_it_is_told_to_be(script: ModuleType) -> None:
    """Four samples, each of one colour in all its images but the neighbour's: two rows of cells."""
    shades = np.array([10, 60, 110, 160], np.uint8)
    stages = {
        name: np.broadcast_to(shades[:, None, None, None], (4, side, side, 3)).copy()
        for name, side in (("base16", 16), ("sr32", 32), ("sr128", 128))
    }
    pixels = np.asarray(script.showcase(stages, 255 - stages["sr128"]))
    small = 128 // 3 - script.FONT_SIZE - script.GAP
    assert pixels.shape[0] == 2 * (128 + 2 * script.GAP)
    for i, shade in enumerate(shades):
        column, row = i % 3, i // 3
        left, top = column * (pixels.shape[1] // 3) + script.GAP, row * (pixels.shape[0] // 2) + script.GAP
        assert (pixels[top : top + 128, left : left + 128] == shade).all()
        beside = pixels[top : top + 128, left + 128 + script.GAP + 2]
        assert [int((beside == value).all(axis=1).sum()) for value in (shade, 255 - shade)] == [2 * small, small]


def test_numbers_go_through_one_class_after_the_other(script: ModuleType) -> None:
    assert script.chosen(None, 9, 4) == [0, 1, 2, 3]
    # Of three a class, sample 4 is the second of the second class, which comes after one of each of four.
    assert script.chosen("4,0", 3, 4) == [5, 0]
    for wrong in ("12", "-1", "a", ""):
        with pytest.raises(UserError, match="numbers from 0 to 11"):
            script.chosen(wrong, 3, 4)


def test_half_size_is_the_mean_of_four(script: ModuleType) -> None:
    image = np.array([[0, 10], [20, 31]], np.uint8).reshape(1, 2, 2, 1)
    assert script.halved(image).tolist() == [[[[15]]]]


def test_both_pictures_are_written(
    script: ModuleType,
    tiny_cascade_folder: Path,
    colour_folder: Path,
    colour_eye: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def loaded(name: str, *, device: torch.device) -> Any:
        return colour_eye

    monkeypatch.setattr(script, "load_extractor", loaded)
    words = [*map(str, (tiny_cascade_folder, colour_folder, tmp_path / "out")), "--per-class", "2"]
    assert script.main([*words, "--show", "7"]) == 0
    with Image.open(tmp_path / "out/showcase.png") as picture:
        assert picture.height == 16 + 2 * script.GAP
    with Image.open(tmp_path / "out/all.png") as picture:
        assert picture.height >= 4 * 8
    assert script.main([*words, "--show", "8"]) == 2
    assert capsys.readouterr().err == "showcase: --show: '8' is not allowed; numbers from 0 to 7\n"
