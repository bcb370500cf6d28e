"""Sample an exported cascade with diffusers alone: ``python load_cascade.py samples.png --seed 1``.

An example to read and change; it is copied into every folder that ``cdm export --format diffusers`` writes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional


def load_stage(folder: Path) -> tuple[Any, Any]:
    """A stage's U-Net and its scheduler."""
    unet = diffusers.UNet2DModel.from_pretrained(folder / "unet", low_cpu_mem_usage=False)
    kind = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())["_class_name"]
    return unet.eval(), getattr(diffusers, kind).from_pretrained(folder / "scheduler")


def predict(unet: Any, stage: dict[str, Any], inputs: Tensor, timestep: Tensor, labels: Tensor | None) -> Tensor:
    """The U-Net's output, guided if the stage is: without class + guidance (with class - without)."""
    if stage["guidance"] == 1 or stage["no_class"] is None or labels is None:
        return unet(inputs, timestep, class_labels=labels).sample
    nobody = torch.full_like(labels, stage["no_class"])
    both = unet(torch.cat([inputs, inputs]), timestep, class_labels=torch.cat([labels, nobody])).sample
    told, untold = both.chunk(2)
    channels = stage["channels"]
    mixed = untold[:, :channels] + stage["guidance"] * (told[:, :channels] - untold[:, :channels])
    return torch.cat([mixed, told[:, channels:]], dim=1)  # a learned variance is that of the class


@torch.no_grad()
def sample_stage(
    unet: Any,
    scheduler: Any,
    stage: dict[str, Any],
    noise: Tensor,
    *,
    labels: Tensor | None,
    low_res: Tensor | None,
    generator: torch.Generator | None,
) -> Tensor:
    """From noise (N, C, R, R) to images in [-1, 1]; a super-resolution stage enlarges ``low_res`` (N, C, r, r)."""
    size = noise.shape[-2:]
    if low_res is not None:
        low_res = functional.interpolate(low_res, size, mode=stage["enlarges_by"], align_corners=False)
    x = noise
    scheduler.set_timesteps(stage["steps"])
    for timestep in scheduler.timesteps:
        inputs = x if low_res is None else torch.cat([x, low_res], dim=1)
        output = predict(unet, stage, inputs, timestep, labels)
        if isinstance(scheduler, diffusers.DDIMScheduler):  # deterministic, and has no use for a learned variance
            output = output[:, : stage["channels"]]
            x = scheduler.step(output, timestep, x, use_clipped_model_output=True).prev_sample
        else:
            x = scheduler.step(output, timestep, x, generator=generator).prev_sample
    return x.clamp(-1, 1)


def sample_cascade(
    folder: Path, labels: Sequence[int], *, seed: int = 0, noise: dict[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """One image for each label, from every stage: uint8 (N, R, R, C) by the stage's name.

    ``noise`` is what each stage starts from; by default it is drawn from ``seed``.
    """
    generator = torch.Generator().manual_seed(seed)
    images: dict[str, Tensor] = {}
    carried: Tensor | None = None
    for stage in json.loads((folder / "stages.json").read_text()):
        shape = (len(labels), stage["channels"], stage["resolution"], stage["resolution"])
        start = torch.randn(shape, generator=generator) if noise is None else noise[stage["name"]]
        told = None if stage["classes"] is None else torch.tensor(labels)
        unet, scheduler = load_stage(folder / stage["name"])
        carried = sample_stage(unet, scheduler, stage, start, labels=told, low_res=carried, generator=generator)
        images[stage["name"]] = ((carried + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
    return images


def main() -> None:
    """Read the command line and write the last stage's images side by side."""
    parser = argparse.ArgumentParser(description="Sample an exported cascade with diffusers.")
    parser.add_argument("out", type=Path, help="a .png file")
    parser.add_argument("--labels", type=int, nargs="+", help="class of each image; default the first four")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    folder = Path(__file__).parent
    known = [stage["classes"] for stage in json.loads((folder / "stages.json").read_text()) if stage["classes"]]
    labels = list(range(min([4, *known]))) if given.labels is None else given.labels
    if known and not all(0 <= label < min(known) for label in labels):
        parser.error(f"--labels: allowed are 0 to {min(known) - 1}")
    images = list(sample_cascade(folder, labels, seed=given.seed).values())[-1]
    strip = torch.cat(list(images), dim=1)
    Image.fromarray(strip.squeeze(-1).numpy()).save(given.out)


if __name__ == "__main__":
    main()
