"""The example that is copied into exports: with diffusers alone it makes the images that we make."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cascaded_diffusion.cascade.chain import Cascade
from cascaded_diffusion.cascade.stage import Stage, StageConfig
from cascaded_diffusion.interop.diffusers_folder import export_diffusers
from cascaded_diffusion.randomness import normal

# Widths and attention that a person with one GPU would choose, only narrower; see docs/importing-and-exporting.md.
BASE: dict[str, Any] = {
    "name": "base8",
    "resolution": 8,
    "network": {"channels": 32, "multipliers": [1, 2], "blocks": 1, "attention": [4], "head_channels": 32},
    "diffusion": {"noise_schedule": {"kind": "cosine", "timesteps": 1000}, "prediction": "v"},
    "training": {"class_dropout": 0.1},
    "sampling": {"sampler": "ddim", "steps": "ddim5", "guidance": 1.5},
    "channels": 3,
    "classes": 3,
}
SR = BASE | {
    "name": "sr16",
    "resolution": 16,
    "diffusion": {"noise_schedule": {"kind": "cosine", "timesteps": 1000}, "variance": "learned"},
    "conditioning": {"augmentation": "blur", "low_resolution": 8, "upsample": "bicubic"},
    "network": {"channels": 32, "multipliers": [1, 2], "blocks": 1, "attention": [8], "head_channels": 32},
    "sampling": {"sampler": "ddim", "steps": "ddim4"},
}


def cascade_of(random_stage: Callable[..., Stage], **changes: Any) -> Cascade:
    configs = [StageConfig.model_validate(raw | changes) for raw in (BASE, SR)]
    return Cascade([random_stage(config, seed) for seed, config in enumerate(configs)])


def example_in(folder: Path) -> Any:
    spec = importlib.util.spec_from_file_location("load_cascade", folder / "load_cascade.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("changes", [{}, {"classes": None, "training": {}, "sampling": {"sampler": "ddim"}}])
def test_deterministic_images_are_ours(
    changes: dict[str, Any], random_stage: Callable[..., Stage], tmp_path: Path
) -> None:
    if changes:
        changes = changes | {"sampling": {"sampler": "ddim", "steps": "ddim5"}, "channels": 1}
    cascade = cascade_of(random_stage, **changes)
    export_diffusers(cascade, tmp_path / "out")
    labels = [0, 1, 2, 0]
    ours = cascade.sample(4, seed=9, return_stages=True)
    assert isinstance(ours, dict)
    noise = {
        name: normal(
            9, f"sampling/{name}/init", torch.arange(4), (stage.config.channels, *[stage.config.resolution] * 2)
        )
        for name, stage in cascade.stages.items()
    }
    theirs = example_in(tmp_path / "out").sample_cascade(tmp_path / "out", labels, noise=noise)
    assert list(theirs) == list(ours)
    for name, images in ours.items():
        assert images.std() > 10
        difference = np.abs(images.astype(int) - theirs[name].numpy().astype(int))
        assert difference.max() <= 1  # both round to 256 levels
        assert (difference > 0).mean() < 0.02


def test_the_example_runs_as_it_stands(
    random_stage: Callable[..., Stage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cascade = cascade_of(random_stage, sampling={"sampler": "ancestral", "steps": 3})
    export_diffusers(cascade, tmp_path / "out")
    assert "cascaded_diffusion" not in (tmp_path / "out/load_cascade.py").read_text()
    command = ["load_cascade.py", str(tmp_path / "samples.png"), "--labels", "0", "2", "--seed", "1"]
    monkeypatch.setattr(sys, "argv", command)
    example_in(tmp_path / "out").main()
    with Image.open(tmp_path / "samples.png") as picture:
        assert picture.size == (32, 16)
        assert np.asarray(picture).std() > 10
    classes = cascade.classes
    assert classes is not None
    monkeypatch.setattr(sys, "argv", command[:2])  # as the README has it, however few classes there are
    example_in(tmp_path / "out").main()
    with Image.open(tmp_path / "samples.png") as picture:
        assert picture.size == (16 * min(4, classes), 16)
    monkeypatch.setattr(sys, "argv", [*command[:3], str(classes)])
    with pytest.raises(SystemExit):
        example_in(tmp_path / "out").main()
