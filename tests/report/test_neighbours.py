"""The nearest training images of samples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from cascaded_diffusion.cascade.stage import StageConfig
from cascaded_diffusion.data.prepared import PreparedData
from cascaded_diffusion.evaluation.features import Features
from cascaded_diffusion.report.neighbours import find_neighbours, neighbours_html, why_unfit


class Pixels:
    """An extractor whose features are the pixels."""

    name, content_hash, resize, dtype, class_names = "pixels", "00" * 32, "none", "fp32", None

    def __call__(self, images: np.ndarray) -> Features:
        """The pixels."""
        return Features(torch.from_numpy(images.reshape(len(images), -1).astype(np.float32)), None)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CASCADED_DIFFUSION_CACHE", str(tmp_path / "cache"))


def test_a_copy_is_found_and_comes_first(colour_data: PreparedData) -> None:
    train = colour_data.split("train")
    copy = np.array(train.images(8)[5])
    noise = np.random.default_rng(0).integers(0, 256, (11, 8, 8, 3)).astype(np.uint8)
    images, labels = np.concatenate([noise, copy[None]]), np.full(12, 2)
    said: list[str] = []
    found = find_neighbours(images, labels, colour_data, Pixels(), watch=lambda what, done, total: said.append(what))
    first = found.pairs[0]
    assert first.distance == 0
    assert np.array_equal(first.real, copy)
    assert np.array_equal(first.sample, copy)
    assert first.real_label == train.labels[5]
    assert len(found.pairs) == 10
    assert [pair.distance for pair in found.pairs] == sorted(pair.distance for pair in found.pairs)
    assert said == ["features of train images", "features of val images"]
    made = neighbours_html(found, ["a", "b", "<c>", "d"])
    assert made.count("data:image/png;base64,") == 20
    assert "&lt;c&gt;" in made
    assert f"{len(train)} training images" in made


def test_without_held_out_images_training_images_are_compared_with_each_other(grey_data: PreparedData) -> None:
    images = np.array(grey_data.split("train").images(16)[:3])
    found = find_neighbours(images, np.full(3, -1), grey_data, Pixels(), watch=lambda *said: None)
    assert not isinstance(found.summary, str)
    assert found.summary.median_ratio == 0
    assert "each compared with the others" in neighbours_html(found, None)


def test_why_there_are_none_is_said() -> None:
    assert "--data DIR" in neighbours_html(None, None)
    assert "Not searched: no &lt;classifier&gt;." in neighbours_html("no <classifier>", None)


def test_data_that_do_not_fit_are_told_apart(
    colour_data: PreparedData, grey_data: PreparedData, base_config: Callable[..., StageConfig]
) -> None:
    assert why_unfit(base_config(8), colour_data) is None
    assert "1 image channels" in (why_unfit(base_config(8), grey_data) or "")
    assert "makes 64" in (why_unfit(base_config(64), colour_data) or "")
