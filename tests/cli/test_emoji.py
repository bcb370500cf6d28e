"""The whole path of emoji-256 at a size for tests: three narrow stages, a few pictures, two steps each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Done = Callable[..., Any]

NARROW = {
    "base32": ("training.batch_size=4", "network.channels=24", "network.blocks=1"),
    "sr64": ("training.batch_size=2", "network.channels=8", "network.blocks=1"),
    "sr256": ("training.batch_size=2", "network.channels=8", "network.blocks=1"),
}


def test_three_stages_from_pictures_to_a_sample_and_an_enlarged_icon(done: Done, here: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (9, 256, 256, 3)).astype(np.uint8)
    np.savez(here / "pictures.npz", arr_0=pictures, arr_1=np.arange(9))
    done("prepare", "pictures.npz", "data", "--resolutions", "32,64,256")
    for stage, changes in NARROW.items():
        settings = [word for change in changes for word in ("--set", change)]
        few = [*settings, "--set", "training.warmup_images=2", "--set", "training.preview_every=100"]
        done(
            "train",
            "emoji-256",
            "--stage",
            stage,
            "--data",
            "data",
            "--out",
            f"runs/{stage}",
            *few,
            "--max-images",
            "4",
        )
    done("assemble", "cascade", *(f"runs/{stage}" for stage in NARROW))
    steps = ("--steps", "base32=2,sr64=4,sr256=4")
    done("sample", "cascade", "--out", "samples.npz", "--num", "1", "--classes", "4", *steps)
    with np.load("samples.npz") as file:
        assert file["arr_0"].shape == (1, 256, 256, 3)
        assert file["arr_1"].tolist() == [4]
    np.savez(here / "icon.npz", arr_0=pictures[:1, ::4, ::4])
    enlarge = ("--from-images", "icon.npz", "--start-stage", "sr256", "--steps", "4", "--classes", "4")
    done("sample", "cascade", "--out", "enlarged.npz", *enlarge)
    with np.load("enlarged.npz") as file:
        assert file["arr_0"].shape == (1, 256, 256, 3)
