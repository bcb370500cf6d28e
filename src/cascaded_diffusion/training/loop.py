"""The training loop of one stage."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cascaded_diffusion.cascade.stage import StageConfig
from cascaded_diffusion.data.prepared import PreparedData
from cascaded_diffusion.diffusion.grid import sampling_grid
from cascaded_diffusion.diffusion.schedule import Schedule
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.training.interrupt import Interrupt
from cascaded_diffusion.training.run import MetricsLog, open_run, refuse_foreign, run_lock
from cascaded_diffusion.training.trainer import Trainer
from cascaded_diffusion.training.window import Window

__all__ = ["Progress", "TrainingResult", "read_metrics", "train"]


@dataclass(frozen=True)
class Progress:
    """What the loop tells whoever watches, after every step."""

    images: int
    target: int
    metrics: dict[str, Any] | None
    """The line just written to metrics.jsonl, if one was."""


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended. ``signal`` is the signal that ended it early, with everything saved."""

    images: int
    checkpoint: Path
    signal: int | None = None


def _target(config: StageConfig, max_images: int | None) -> int:
    """The run's end in images, rounded up to a whole global batch."""
    batch = config.training.batch_size
    wanted = config.training.images if max_images is None else min(max_images, config.training.images)
    return -(-wanted // batch) * batch


def _check_sampling(config: StageConfig) -> None:
    """Refuse sampling settings that the stage's schedule cannot give, before the first preview asks for them."""
    sampling = config.sampling
    try:
        sampling_grid(Schedule(config.diffusion.noise_schedule), sampling.steps, endpoints=sampling.endpoints)
    except UserError as error:
        raise UserError(f"{config.name}: sampling.{error}") from None


def train(
    config: StageConfig,
    data: PreparedData,
    run: Path,
    *,
    device: torch.device,
    max_images: int | None = None,
    max_seconds: float | None = None,
    allow_changes: bool = False,
    watch: Callable[[Progress], None] | None = None,
) -> TrainingResult:
    """Train one stage in a run folder, from its newest checkpoint if it has one.

    Args:
        config: the stage.
        data: prepared data with the stage's resolutions.
        run: the run folder; made if it is not there.
        device: where to train.
        max_images: stop at this total, rounded up to a whole batch; never beyond the recipe's length.
        max_seconds: stop after this time, but not before one step. The last state is always saved.
        allow_changes: go on although the recorded settings differ.
        watch: called after every step.

    Raises:
        UserError: the data or the folder does not fit.
        RuntimeError: the loss is not finite; the last good checkpoint stands.
    """
    started = time.perf_counter()
    refuse_foreign(run)
    _check_sampling(config)
    trainer = Trainer(config, data, run, device)
    with run_lock(run):
        checkpoint = open_run(run, config, allow_changes=allow_changes)
        if checkpoint is not None:
            trainer.state.load(checkpoint)
            trainer.saved_at = checkpoint
        log = MetricsLog(run, trainer.state.images)
        interrupt = Interrupt()
        with interrupt.watch():
            target = _target(config, max_images)
            _run(trainer, log, target, interrupt, watch, None if max_seconds is None else started + max_seconds)
            # Still under watch: a second signal must not end the process while it saves.
            if trainer.saved_at is None or int(trainer.saved_at.name) != trainer.state.images:
                trainer.save()
    assert trainer.saved_at is not None
    return TrainingResult(trainer.state.images, trainer.saved_at, interrupt.received)


def _run(
    trainer: Trainer,
    log: MetricsLog,
    target: int,
    interrupt: Interrupt,
    watch: Callable[[Progress], None] | None,
    deadline: float | None,
) -> None:
    training = trainer.config.training
    window = Window(trainer.device)
    while trainer.state.images < target and interrupt.received is None:
        trainer.step(window)
        done = trainer.state.images >= target
        metrics = None
        if trainer.crossed(training.log_every) or done:
            metrics = trainer.metrics(window)
            log.write(metrics)
            window = Window(trainer.device)
        if trainer.crossed(training.preview_every):
            trainer.preview()
        if trainer.crossed(training.checkpoint_every):
            trainer.save()
        if watch is not None:
            watch(Progress(trainer.state.images, target, metrics))
        # After a step, not before: a run that is given little time again and again still gets on.
        if deadline is not None and time.perf_counter() >= deadline:
            break


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """All lines of a run's ``metrics.jsonl``."""
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
