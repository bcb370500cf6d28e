"""The demo from end to end."""

from __future__ import annotations

import os
import platform
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import torch

from cascaded_diffusion.cascade.chain import Cascade
from cascaded_diffusion.cascade.show import class_grid
from cascaded_diffusion.data.prepare import prepare
from cascaded_diffusion.demo.figures import denoising_strips, s_effect, stages_side_by_side
from cascaded_diffusion.demo.report import image_tag, loss_curves, render
from cascaded_diffusion.demo.training import StageProgress, train_stages
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.files import atomic_write
from cascaded_diffusion.pictures import save_png
from cascaded_diffusion.recipes.recipe import Recipe, load_recipe
from cascaded_diffusion.training.export import stage_from_run
from cascaded_diffusion.training.loop import read_metrics
from cascaded_diffusion.version import VERSION

__all__ = ["IMAGES", "run_demo"]

IMAGES = Path(__file__).with_name("images.npz")
"""A few thousand real Fashion-MNIST images at 32x32."""
_MARK = ".cdm-demo"
_MADE = ("data", "runs", "tiny-cascade", "grid.png", "report.html")
"""Everything that the demo puts into its folder, beside the mark."""
_LEFT = r"\.(preparing|partial|(partial\.)?[a-z0-9_]{8})"
"""What stands behind one of these names, and a dot before it, where a process died while it wrote."""
_STRENGTHS = [0.0, 0.1, 0.2, 0.4, 0.6]


def _is_ours(name: str) -> bool:
    return name == _MARK or any(
        name == made or re.fullmatch(rf"\.{re.escape(made)}{_LEFT}", name) is not None for made in _MADE
    )


def _clear(out: Path) -> None:
    """Make way for a new demo: what an earlier one made goes, and a folder that holds anything else is refused."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out: {out} is a file; give a folder")
    parts = sorted(out.iterdir()) if out.is_dir() else []
    if parts and not (out / _MARK).exists():
        raise UserError(f"--out: {out} holds something that is not an earlier demo; choose another folder")
    for part in parts:
        if not _is_ours(part.name):
            raise UserError(
                f"--out: {out} holds {part.name}, which no demo made; move it away or choose another folder"
            )
    for part in parts:
        # The mark stays: what is deleted only half is still an earlier demo.
        if part.name != _MARK:
            shutil.rmtree(part) if part.is_dir() and not part.is_symlink() else part.unlink()
    out.mkdir(parents=True, exist_ok=True)
    (out / _MARK).touch()


def _hardware() -> str:
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"


def run_demo(
    out: Path,
    *,
    note: Callable[[str], None],
    watch: Callable[[StageProgress], None],
    seconds: float = 40.0,
    per_class: int = 10,
    cascade: Cascade | None = None,
) -> Path:
    """Train the recipe ``demo`` for a short while, sample the packaged cascade, write ``report.html`` and ``grid.png``.

    Args:
        out: the demo's folder; what an earlier demo made in it is replaced.
        note: shows a line.
        watch: shows the training's progress.
        seconds: training time of each stage; the stages train side by side.
        per_class: samples of each class.
        cascade: sampled instead of the packaged one.

    Returns:
        The report.

    Raises:
        UserError: ``out`` holds anything else; nothing in it is touched then.
    """
    started = time.perf_counter()
    _clear(out)
    recipe = load_recipe("demo")
    note(f"1/3 Training {' and '.join(stage.name for stage in recipe.stages)} on packaged images, side by side")
    prepare(
        str(IMAGES), out / "data", resolutions=[s.resolution for s in recipe.stages], workers=0, note=lambda line: None
    )
    runs = train_stages(recipe, out / "data", out / "runs", seconds=seconds, watch=watch)
    tiny = Cascade([stage_from_run(run)[0] for run in runs.values()])
    tiny.save_pretrained(out / "tiny-cascade")
    trained = time.perf_counter() - started
    shipped = cascade or Cascade.from_pretrained("demo")
    note(f"2/3 Sampling the packaged cascade ({' -> '.join(shipped.stages)})")
    values = _sampled(shipped, per_class, out) | _trained(recipe, runs, tiny)
    total = time.perf_counter() - started
    values["facts"] = (
        f"cascaded-diffusion {VERSION}; {_hardware()}; {total:.0f} s, {trained:.0f} of them preparing and training"
    )
    report = out / "report.html"
    with atomic_write(report) as file:
        file.write(render(values).encode())
    note(f"3/3 Open {report} ({total:.0f} s in all)")
    return report


def _sampled(cascade: Cascade, per_class: int, out: Path) -> dict[str, str]:
    classes = cascade.class_ids(None) or [0]
    count = per_class * len(classes)
    plan = cascade.plan()
    began = time.perf_counter()
    stages = cascade.sample(count, return_stages=True)
    took = time.perf_counter() - began
    assert isinstance(stages, dict)
    labels = cascade.sample_labels(plan, num=count)
    grid = class_grid(stages[plan.stages[-1].name], labels, cascade.class_names, columns=per_class)
    save_png(grid, out / "grid.png")
    first = len(classes)
    low = next(iter(stages.values()))[:first]
    strips = [denoising_strips(cascade, label, seed=1) for label in (classes[-1], classes[len(classes) // 3])]
    return {
        "chain": f"{count} samples of the packaged cascade, {' then '.join(cascade.stages)}, in {took:.0f} seconds",
        "settings": plan.describe(),
        "grid": image_tag(grid, "Samples in rows by class"),
        "stages": image_tag(stages_side_by_side(stages, min(10, first)), "Samples after each stage"),
        "strips": "\n".join(image_tag(strip, "Denoising from left to right") for strip in strips),
        "s_effect": image_tag(
            s_effect(cascade, low[:8], [int(label) for label in labels[:8]], _STRENGTHS), "Outputs for several s"
        ),
    }


def _trained(recipe: Recipe, runs: dict[str, Path], tiny: Cascade) -> dict[str, str]:
    metrics = {name: read_metrics(run) for name, run in runs.items()}
    seen = ", ".join(f"{name} {rows[-1]['images']:,} images" for name, rows in metrics.items() if rows)
    stages = tiny.sample(10, return_stages=True)
    assert isinstance(stages, dict)
    return {
        "trained": f"The recipe <code>{recipe.name}</code> on {len(runs)} processes at the same time: {seen}.",
        "curves": loss_curves(metrics),
        "tiny": image_tag(stages_side_by_side(stages, 10), "Samples of the tiny cascade"),
    }
