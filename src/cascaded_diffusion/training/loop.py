"""The training loop of one stage."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from cascaded_diffusion.cascade.stage import StageConfig
from cascaded_diffusion.data.prepared import PreparedData
from cascaded_diffusion.diffusion.denoiser import Diffusion
from cascaded_diffusion.diffusion.grid import sampling_grid
from cascaded_diffusion.diffusion.schedule import Schedule
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.precision import autocast
from cascaded_diffusion.randomness import derive_seed
from cascaded_diffusion.reading.json_text import read_json_lines
from cascaded_diffusion.training.batches import Batch, BatchSource
from cascaded_diffusion.training.checkpoint import prune
from cascaded_diffusion.training.preview import write_preview
from cascaded_diffusion.training.run import METRICS_FILE, open_run, refuse_foreign, run_lock
from cascaded_diffusion.training.state import TrainingState, learning_rate
from cascaded_diffusion.training.tracking.base import check_trackers
from cascaded_diffusion.training.tracking.follow import RunLog, follow

__all__ = ["Progress", "TrainingResult", "read_metrics", "train"]

_BUCKETS = 8


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


class _Interrupt:
    """Remembers SIGTERM or SIGINT until the step is over."""

    def __init__(self) -> None:
        self.received: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.received = number

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        try:
            previous = {number: signal.signal(number, self) for number in (signal.SIGTERM, signal.SIGINT)}
        except ValueError:  # not in the main thread: the caller handles signals
            previous = {}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


class _Window:
    """Sums between two log lines; stays on the device, so that steps need not wait for it."""

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(_BUCKETS, dtype=torch.float64, device=device)
        self.counts = torch.zeros(_BUCKETS, dtype=torch.float64, device=device)
        self.grad_norm = torch.zeros((), dtype=torch.float64, device=device)
        self.steps = 0
        self.waited = 0.0
        self.started = time.perf_counter()

    def add(self, losses: Tensor, times: Tensor) -> None:
        bucket = (times * _BUCKETS).ceil().long().clamp(1, _BUCKETS).to(losses.device) - 1
        self.sums.index_add_(0, bucket, losses.detach().double())
        self.counts.index_add_(0, bucket, torch.ones_like(losses, dtype=torch.float64))

    def summary(self) -> dict[str, Any]:
        elapsed = time.perf_counter() - self.started
        counts = self.counts.clamp(min=1)
        seen = int(self.counts.sum())
        by_time = (self.sums / counts).tolist()
        return {
            "loss": float(self.sums.sum()) / max(seen, 1),
            # From the cleanest eighth of the diffusion time to the noisiest.
            "loss_by_time": [
                value if count else None for value, count in zip(by_time, self.counts.tolist(), strict=True)
            ],
            "grad_norm": float(self.grad_norm) / max(self.steps, 1),
            "images_per_second": seen / elapsed,
            "data_wait": self.waited / elapsed,
        }


class _Trainer:
    """One run in one process."""

    def __init__(self, config: StageConfig, data: PreparedData, run: Path, device: torch.device) -> None:
        self.config, self.data, self.run, self.device = config, data, run, device
        self.source = BatchSource(config, data, device)
        self.diffusion = Diffusion(config.diffusion)
        conditioning = config.conditioning
        low = conditioning.low_schedule if conditioning is not None else None
        self.low_schedule = Schedule(low) if low is not None else None
        self.state = TrainingState.fresh(config, device)
        self.saved_at: Path | None = None

    def micro_batches(self, start: int) -> Iterator[Batch]:
        training = self.config.training
        size = training.micro_batch or training.batch_size
        for first in range(start, start + training.batch_size, size):
            yield self.source.batch(first, first + size, self.diffusion, self.low_schedule)

    def losses(self, batch: Batch) -> Tensor:
        def network(x: Tensor, time_input: Tensor) -> Tensor:
            x = x.contiguous(memory_format=torch.channels_last)
            with autocast(self.config.training.precision, self.device):
                output: Tensor = self.state.network(
                    x, time_input, labels=batch.labels, low_res=batch.low_res, s=batch.s
                )
            return output

        return self.diffusion.training_loss(network, batch.x0, batch.noise, batch.times)

    def step(self, window: _Window) -> None:
        training, state = self.config.training, self.state
        # Dropout alone draws from torch's generator; the key makes a resumed run draw the same.
        torch.manual_seed(derive_seed(training.seed, f"training/dropout/{state.images}") >> 1)
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(training, state.images)
        waiting = time.perf_counter()
        for batch in self.micro_batches(state.images):
            window.waited += time.perf_counter() - waiting
            losses = self.losses(batch)
            (losses.sum() / training.batch_size).backward()
            window.add(losses, batch.times)
            waiting = time.perf_counter()
        limit = training.grad_clip if training.grad_clip is not None else math.inf
        window.grad_norm += torch.nn.utils.clip_grad_norm_(state.network.parameters(), limit).double()
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        state.images += training.batch_size
        state.averages.update(training.batch_size, state.images)
        window.steps += 1

    def metrics(self, window: _Window) -> dict[str, Any]:
        """A line of metrics.jsonl; ``RuntimeError`` if the run has gone wrong."""
        images = self.state.images
        summary = window.summary()
        loss, grad_norm = summary["loss"], summary["grad_norm"]
        if not math.isfinite(loss) or not math.isfinite(grad_norm):
            raise RuntimeError(
                f"{self.config.name}: loss {loss} and gradient norm {grad_norm} at {images} images; the run stops, its "
                "last checkpoint stands. Try a lower learning_rate, a longer warm-up or precision: fp32"
            )
        return {"images": images, "lr": learning_rate(self.config.training, images), **summary}

    def save(self) -> None:
        self.saved_at = self.state.save(self.run)
        prune(self.run, self.config.training.keep_checkpoints)

    def preview(self) -> Path:
        averages = self.state.averages
        weights = averages.weights[averages.half_lives[0]]
        return write_preview(self.run, self.state.images, self.config, self.state.network, weights, self.data)

    def crossed(self, every: int | None) -> bool:
        """Whether the last step passed a multiple of ``every`` images."""
        return every is not None and self.state.images % every < self.config.training.batch_size


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
    trackers: Sequence[str] = (),
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
        trackers: ``tensorboard``, ``wandb``, ``trackio``: where to show the run beside ``metrics.jsonl``. They change
            nothing in the run, and one that fails does not end it.

    Raises:
        UserError: the data or the folder does not fit, or a tracker is not installed.
        RuntimeError: the loss is not finite; the last good checkpoint stands.
    """
    started = time.perf_counter()
    check_trackers(trackers)
    refuse_foreign(run)
    _check_sampling(config)
    trainer = _Trainer(config, data, run, device)
    with run_lock(run):
        checkpoint = open_run(run, config, allow_changes=allow_changes)
        if checkpoint is not None:
            trainer.state.load(checkpoint)
            trainer.saved_at = checkpoint
        interrupt = _Interrupt()
        with interrupt.watch(), follow(run, config, trainer.state.images, trackers) as log:
            target = _target(config, max_images)
            _run(trainer, log, target, interrupt, watch, None if max_seconds is None else started + max_seconds)
            # Still under watch: a second signal must not end the process while it saves.
            if trainer.saved_at is None or int(trainer.saved_at.name) != trainer.state.images:
                trainer.save()
    assert trainer.saved_at is not None
    return TrainingResult(trainer.state.images, trainer.saved_at, interrupt.received)


def _run(
    trainer: _Trainer,
    log: RunLog,
    target: int,
    interrupt: _Interrupt,
    watch: Callable[[Progress], None] | None,
    deadline: float | None,
) -> None:
    training = trainer.config.training
    window = _Window(trainer.device)
    while trainer.state.images < target and interrupt.received is None:
        trainer.step(window)
        done = trainer.state.images >= target
        metrics = None
        if trainer.crossed(training.log_every) or done:
            metrics = trainer.metrics(window)
            log.write(metrics)
            window = _Window(trainer.device)
        if trainer.crossed(training.preview_every):
            log.picture(trainer.state.images, trainer.preview())
        if trainer.crossed(training.checkpoint_every):
            trainer.save()
        if watch is not None:
            watch(Progress(trainer.state.images, target, metrics))
        # After a step, not before: a run that is given little time again and again still gets on.
        if deadline is not None and time.perf_counter() >= deadline:
            break


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """All lines of a run's ``metrics.jsonl``."""
    path = run / METRICS_FILE
    return [row for _, row in read_json_lines(path)] if path.exists() else []
