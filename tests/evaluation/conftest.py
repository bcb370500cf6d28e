"""Prepared data with enough variety to learn classes from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cascaded_diffusion.data.prepare import prepare
from cascaded_diffusion.data.prepared import PreparedData


@pytest.fixture(scope="session")
def speckled_data(tmp_path_factory: pytest.TempPathFactory, colours: np.ndarray) -> PreparedData:
    """96 speckled pictures of 4 colours at 4 and 8 pixels, about a third of them for validation."""
    root: Path = tmp_path_factory.mktemp("speckled")
    labels = np.arange(96) % 4
    speckles = np.random.default_rng(0).normal(0, 25, (96, 8, 8, 3))
    images = (colours[labels][:, None, None] + speckles).clip(0, 255).astype(np.uint8)
    np.savez(root / "speckled.npz", arr_0=images, arr_1=labels)
    prepare(str(root / "speckled.npz"), root / "data", resolutions=[4, 8], val=0.33, workers=0)
    return PreparedData.open(root / "data")
