"""Training the demo's stages side by side, each in a process of its own, as on machines of their own."""

from __future__ import annotations

import multiprocessing
import os
import queue
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from cascaded_diffusion.recipes.recipe import Recipe, stage_config

__all__ = ["StageProgress", "train_stages"]


class StageProgress(NamedTuple):
    """How far a stage has come: images seen, of how many, and the newest loss."""

    stage: str
    images: int
    target: int
    loss: float | None


def _train_one(
    recipe: Recipe, stage: str, data: Path, run: Path, threads: int, seconds: float, messages: object
) -> None:
    import torch

    from cascaded_diffusion.data.prepared import PreparedData
    from cascaded_diffusion.training.loop import Progress, train

    torch.set_num_threads(threads)
    prepared = PreparedData.open(data)
    config = stage_config(
        recipe, stage, channels=prepared.channels, classes=prepared.classes, class_names=prepared.class_names
    )

    def watch(progress: Progress) -> None:
        loss = None if progress.metrics is None else progress.metrics["loss"]
        messages.put(StageProgress(stage, progress.images, progress.target, loss))  # type: ignore[attr-defined]

    train(config, prepared, run, device=torch.device("cpu"), max_seconds=seconds, watch=watch)


def train_stages(
    recipe: Recipe, data: Path, runs: Path, *, seconds: float, watch: Callable[[StageProgress], None]
) -> dict[str, Path]:
    """Train every stage of ``recipe`` at the same time, each for at most ``seconds``.

    Returns:
        Stage name to run folder.

    Raises:
        RuntimeError: a stage's process failed.
    """
    context = multiprocessing.get_context("spawn")
    messages = context.Queue()
    folders = {stage.name: runs / stage.name for stage in recipe.stages}
    threads = max(1, (os.cpu_count() or 1) // len(folders))
    workers = [
        context.Process(target=_train_one, args=(recipe, name, data, run, threads, seconds, messages), daemon=True)
        for name, run in folders.items()
    ]
    for worker in workers:
        worker.start()
    try:
        while any(worker.is_alive() for worker in workers) or not messages.empty():
            try:
                watch(messages.get(timeout=0.2))
            except queue.Empty:
                continue
    finally:
        for worker in workers:
            worker.join(timeout=None if worker.exitcode is not None else 30)
    for worker, name in zip(workers, folders, strict=True):
        if worker.exitcode:
            raise RuntimeError(f"training {name} ended with status {worker.exitcode}")
    return folders
