"""The training loop of one stage."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cascaded_diffusion.cascade.stage import StageConfig
from cascaded_diffusion.data.prepared import PreparedData
from cascaded_diffusion.errors import UserError, one_line
from cascaded_diffusion.memory import is_out_of_memory
from cascaded_diffusion.pixels import to_float
from cascaded_diffusion.ranks import current_ranks, highest
from cascaded_diffusion.reading.json_text import read_json_lines
from cascaded_diffusion.training.batches import Batch, Gathered
from cascaded_diffusion.training.feed import Feed
from cascaded_diffusion.training.guard import NotFiniteError
from cascaded_diffusion.training.interrupt import Interrupt
from cascaded_diffusion.training.keeper import Keeper
from cascaded_diffusion.training.run import METRICS_FILE
from cascaded_diffusion.training.tracking.base import check_trackers
from cascaded_diffusion.training.trainer import Trainer
from cascaded_diffusion.training.window import Window

__all__ = ["Progress", "TrainingResult", "read_metrics", "train"]

_LOG = logging.getLogger(__name__)
_LOOKED_AT = 256
"""Images whose root mean square is compared with ``diffusion.sigma_data``."""
_FAR_OFF = 1.25
"""Ratio of the two from which a person is told."""


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


def _doubt_sigma_data(trainer: Trainer) -> None:
    """Warn of an EDM stage that begins with a ``sigma_data`` that is not its images': nothing is then of unit size."""
    if trainer.config.diffusion.prediction != "edm" or trainer.state.images or not current_ranks().is_main:
        return
    with contextlib.suppress(OSError):  # reading is tried again, and told of, where it is needed
        images = trainer.source.gather(0, _LOOKED_AT).images[trainer.config.resolution]
        found, assumed = (
            to_float(images, torch.device("cpu")).square().mean().sqrt().item(),
            trainer.diffusion.sigma_data,
        )
        if not 1 / _FAR_OFF < found / assumed < _FAR_OFF:
            _LOG.warning(
                "%s: diffusion.sigma_data is %.2g, and the root mean square of these images in [-1, 1] is %.2g",
                trainer.config.name,
                assumed,
                found,
            )


def train(
    config: StageConfig,
    data: PreparedData,
    run: str | Path,
    *,
    device: str | torch.device,
    max_images: int | None = None,
    max_seconds: float | None = None,
    allow_changes: bool = False,
    data_workers: int | None = None,
    watch: Callable[[Progress], None] | None = None,
    trackers: Sequence[str] = (),
) -> TrainingResult:
    """Train one stage in a run folder, from its newest whole checkpoint if it has one.

    Inside :func:`cascaded_diffusion.ranks.launched_ranks` every process calls this with the same arguments.

    Args:
        config: the stage.
        data: prepared data with the stage's resolutions.
        run: the run folder; made if it is not there.
        device: where to train.
        max_images: stop at this total, rounded up to a whole batch; never beyond the recipe's length.
        max_seconds: stop after this time, but not before one step. The last state is always saved.
        allow_changes: go on although the recorded settings differ.
        data_workers: threads that make batches ahead of the step, which changes no result; default 1 for an
            accelerator, and none on a CPU, whose cores the step itself keeps busy.
        watch: called after every step, on rank 0.
        trackers: ``tensorboard``, ``wandb``, ``trackio``: where to show the run beside ``metrics.jsonl``. They change
            nothing in the run, and one that fails does not end it.

    Raises:
        UserError: the data or the folder does not fit, or a tracker is not installed.
        RuntimeError: the run failed; the message says what of it is saved.
    """
    started = time.perf_counter()
    run, device = Path(run), torch.device(device)
    check_trackers(trackers)
    try:
        config.check_sampling_grid()  # before the first preview asks for it
    except UserError as error:
        raise UserError(f"{config.name}: sampling.{error}") from None
    workers = int(device.type != "cpu") if data_workers is None else data_workers
    trainer = Trainer(config, data, device)
    keeper = Keeper(run, trainer.state, data, trackers)
    with contextlib.closing(trainer.engine), keeper.hold(allow_changes=allow_changes):
        _doubt_sigma_data(trainer)
        interrupt = Interrupt()
        with interrupt.watch():
            end = _End(interrupt, None if max_seconds is None else started + max_seconds)
            target = _target(config, max_images)
            with _rescued(trainer, keeper):
                trainer.warm_up()
                with trainer.feed(target, workers) as feed:
                    _run(trainer, keeper, feed, target, end, watch if current_ranks().is_main else None)
            # Still under watch: a second signal must not end the process while it saves.
            trainer.check_ranks_agree()
            checkpoint = keeper.finish()
    return TrainingResult(trainer.state.images, checkpoint, end.signal)


@dataclass
class _End:
    """Whether the run ends before its target: by a signal or by the time. All processes agree on it after a step."""

    interrupt: Interrupt
    deadline: float | None
    signal: int | None = None
    late: bool = False

    def agreed(self) -> bool:
        late = current_ranks().is_main and self.deadline is not None and time.perf_counter() >= self.deadline
        number, any_late = highest(self.interrupt.received or 0, int(late))
        self.signal, self.late = number or None, bool(any_late)
        return bool(number)


def _run(
    trainer: Trainer,
    keeper: Keeper,
    feed: Feed[Batch | Gathered],
    target: int,
    end: _End,
    watch: Callable[[Progress], None] | None,
) -> None:
    training, state = trainer.config.training, trainer.state
    window = Window(trainer.device)

    def preview() -> None:
        if trainer.crossed(training.preview_every):
            keeper.preview(lambda: end.interrupt.received is not None)

    if state.images and keeper.lacks_preview():
        preview()  # what stopped the run may have come between its checkpoint and this
    # The time is asked for after a step, not before: a run that is given little time again and again still gets on.
    stopped = end.agreed()
    while state.images < target and not stopped:
        try:
            trainer.step(feed, window)
        except NotFiniteError:  # on every process alike
            keeper.log(trainer.metrics(window))
            raise
        metrics = None
        if trainer.crossed(training.log_every) or state.images >= target:
            metrics = trainer.metrics(window)
            keeper.log(metrics)
            window = Window(trainer.device)
        if training.power_ema and trainer.crossed(training.snapshot_every or training.checkpoint_every):
            keeper.snapshot()
        if trainer.crossed(training.checkpoint_every):
            trainer.check_ranks_agree()
            keeper.checkpoint()
        preview()  # last, for it takes longest, and a signal ends it
        if watch is not None:
            watch(Progress(state.images, target, metrics))
        stopped = end.agreed() or end.late


@contextlib.contextmanager
def _rescued(trainer: Trainer, keeper: Keeper) -> Iterator[None]:
    """Save the state of the last whole step if the loop fails, and say in the error's one line what is saved."""
    began = trainer.state.images
    try:
        yield
    except NotFiniteError as error:  # the state is not worth keeping
        raise RuntimeError(f"{error}; {keeper.what_stands()}") from error
    except (UserError, RuntimeError, OSError, MemoryError) as error:
        if isinstance(error, UserError) and trainer.state.images == began:
            raise  # nothing is lost, and the person can put it right
        told = trainer.memory_advice() if is_out_of_memory(error) else one_line(error)
        saved = keeper.rescue() if trainer.is_whole else keeper.what_stands()
        raise RuntimeError(f"{told}; {saved}") from error


def read_metrics(run: str | Path) -> list[dict[str, Any]]:
    """All whole lines of a run's ``metrics.jsonl``."""
    path = Path(run) / METRICS_FILE
    return [row for _, row in read_json_lines(path)] if path.exists() else []
