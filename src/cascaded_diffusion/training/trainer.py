"""One stage in training: its state, and the step that moves it on."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cascaded_diffusion.cascade.stage import StageConfig
from cascaded_diffusion.data.prepared import PreparedData
from cascaded_diffusion.diffusion.denoiser import Diffusion
from cascaded_diffusion.diffusion.schedule import Schedule
from cascaded_diffusion.precision import autocast
from cascaded_diffusion.randomness import derive_seed
from cascaded_diffusion.training.batches import Batch, BatchSource
from cascaded_diffusion.training.checkpoint import prune
from cascaded_diffusion.training.preview import write_preview
from cascaded_diffusion.training.state import TrainingState, learning_rate
from cascaded_diffusion.training.window import Window

__all__ = ["Trainer"]


class Trainer:
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

    def step(self, window: Window) -> None:
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

    def metrics(self, window: Window) -> dict[str, Any]:
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

    def preview(self) -> None:
        averages = self.state.averages
        weights = averages.weights[averages.half_lives[0]]
        write_preview(self.run, self.state.images, self.config, self.state.network, weights, self.data)

    def crossed(self, every: int | None) -> bool:
        """Whether the last step passed a multiple of ``every`` images."""
        return every is not None and self.state.images % every < self.config.training.batch_size
