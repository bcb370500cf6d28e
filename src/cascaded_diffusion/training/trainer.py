"""One stage in training: its state, and the step that moves it on."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from cascaded_diffusion.cascade.stage import StageConfig
from cascaded_diffusion.data.prepared import PreparedData
from cascaded_diffusion.diffusion.denoiser import Diffusion
from cascaded_diffusion.diffusion.schedule import Schedule
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.memory import is_out_of_memory, release_cached
from cascaded_diffusion.precision import autocast
from cascaded_diffusion.randomness import derive_seed
from cascaded_diffusion.ranks import add_in_place, current_ranks, gather_rows, highest
from cascaded_diffusion.training.batches import Batch, BatchSource, Gathered
from cascaded_diffusion.training.engine import Engine
from cascaded_diffusion.training.feed import Feed
from cascaded_diffusion.training.geometry import AUGMENT_FEATURES
from cascaded_diffusion.training.guard import NotFiniteError
from cascaded_diffusion.training.state import TrainingState, learning_rate
from cascaded_diffusion.training.window import Window

__all__ = ["Trainer"]


class Trainer:
    """One run, or one process's part of it: every process takes its share of each batch, and the same step.

    Attributes:
        state: what moves on.
        is_whole: whether the state is that of a step's end. If not, a step failed half-way and it must not be saved.

    Raises:
        UserError: the data do not fit, or the batch does not divide over the processes.
    """

    def __init__(self, config: StageConfig, data: PreparedData, device: torch.device) -> None:
        self.config, self.device, self.ranks = config, device, current_ranks()
        if config.training.batch_size % self.ranks.world:
            raise UserError(
                f"training.batch_size: {config.training.batch_size} does not divide over {self.ranks.world} processes; "
                "allowed: a multiple of their number"
            )
        self.source = BatchSource(config, data, device)
        self.diffusion = Diffusion(config.diffusion)
        conditioning = config.conditioning
        low = conditioning.low_schedule if conditioning is not None else None
        self.low_schedule = Schedule(low) if low is not None else None
        self.state = TrainingState.fresh(config, device)
        self.state.network.use_fast_path(config.training.fast_path)
        self.state.network.recompute(config.training.checkpoint_activations)
        self.engine = Engine(self.state.network, device, config.training.compile)
        self._fits: int | None = None
        self.is_whole = True

    def parts(self, start: int) -> list[range]:
        """The training positions of this process's forward passes in the step that begins at ``start``."""
        training = self.config.training
        share = self.ranks.share(training.batch_size)
        wanted = self._fits if training.micro_batch == "auto" else training.micro_batch
        size = min(wanted or len(share), len(share))
        return [range(start + i, start + min(i + size, share.stop)) for i in range(share.start, share.stop, size)]

    def warm_up(self) -> None:
        """Passes that do not count, if the run needs any: to find what fits in memory, and to settle the order of sums.

        Every process must call it, before :meth:`feed`.

        Raises:
            RuntimeError: memory runs out with a single image.
        """
        if self.config.training.micro_batch == "auto":
            self._find_micro_batch()
        if self.engine.sorts_buckets:
            # As many images as in a step: a compiled network need not be compiled for another number.
            self._try(len(self.parts(self.state.images)[0]), last=True)

    def _find_micro_batch(self) -> None:
        size = len(self.ranks.share(self.config.training.batch_size))
        while True:
            failed = False
            self._fits = size  # if it is not so, the advice is about what was tried last
            reserve: list[Tensor] = []
            try:
                if not self.state.optimizer.state:
                    # It will want two moments of each parameter, which it does not have before its first step.
                    reserve += [p.new_empty((2, *p.shape)) for p in self._local()]
                self._try(size, last=False)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or size == 1:
                    raise
                failed = True
            reserve.clear()
            if failed:
                self.state.optimizer.zero_grad(set_to_none=True)
                release_cached()
            if not highest(int(failed))[0]:  # what fits must fit everywhere: all make as many passes
                break
            size = -(-size // 2)

    def _local(self) -> list[Tensor]:
        return [laid.to_local() if hasattr(laid, "to_local") else laid for laid in self.state.network.parameters()]

    def _try(self, size: int, *, last: bool) -> None:
        """One forward and backward pass over as many images that are all grey, whose gradient is thrown away."""
        config, device = self.config, self.device
        side = config.training.crop or config.resolution

        def grey(pixels: int) -> Tensor:
            return torch.zeros(size, config.channels, pixels, pixels, device=device)

        low = None if config.conditioning is None else config.conditioning.low_resolution
        low = None if low is None else low * side // config.resolution
        has_s = config.conditioning is not None and config.conditioning.augmentation == "gaussian"
        batch = Batch(
            x0=grey(side),
            labels=None if config.classes is None else torch.zeros(size, dtype=torch.int64, device=device),
            low_res=None if low is None else grey(low),
            s=torch.zeros(size, device=device) if has_s else None,
            noise=grey(side),
            times=torch.full((size,), 0.5, dtype=torch.float64),
            # Every parameter takes part in every pass, which DistributedDataParallel counts on.
            augment=torch.zeros(size, AUGMENT_FEATURES, device=device) if config.training.augment else None,
        )
        with self.engine.accumulating(last=last):
            self.losses(batch).sum().backward()
        self.state.optimizer.zero_grad(set_to_none=True)

    def feed(self, target: int, workers: int) -> Feed[Batch | Gathered]:
        """The forward passes from here to ``target`` images, their batches made ahead by ``workers`` threads."""

        def parts() -> Iterator[range]:
            for start in range(self.state.images, target, self.config.training.batch_size):
                yield from self.parts(start)

        # What an accelerator does is queued by the thread that trains, in the order of its steps.
        ahead = self._batch if self.device.type == "cpu" else self._gather
        return Feed(ahead, parts(), workers)

    def _gather(self, part: range) -> Gathered:
        return self.source.gather(part.start, part.stop)

    def _batch(self, part: range) -> Batch:
        return self._finish(self._gather(part))

    def _finish(self, made: Batch | Gathered) -> Batch:
        if isinstance(made, Batch):
            return made
        return self.source.finish(made, self.diffusion, self.low_schedule)

    def batches(self, start: int) -> Iterable[Batch]:
        """The batches of this process's forward passes in the step that begins at ``start``."""
        return map(self._batch, self.parts(start))

    def losses(self, batch: Batch) -> Tensor:
        """The loss of each example: float32 (N,)."""

        def network(x: Tensor, time_input: Tensor) -> Tensor:
            x = x.contiguous(memory_format=torch.channels_last)
            with autocast(self.config.training.precision, self.device):
                output: Tensor = self.engine.call(
                    x, time_input, labels=batch.labels, low_res=batch.low_res, s=batch.s, augment=batch.augment
                )
            return output

        return self.diffusion.training_loss(network, batch.x0, batch.noise, batch.times)

    def step(self, feed: Feed[Batch | Gathered], window: Window) -> None:
        """Train on one global batch, or skip it if its loss or gradient is not finite.

        Raises:
            NotFiniteError: more steps in a row had to be skipped than training.max_skipped_steps.
            RuntimeError: the data cannot be read, memory ran out, or another process has ended.
        """
        training, state = self.config.training, self.state
        # Dropout alone draws from torch's generator; the key makes a resumed run draw the same.
        rank = f"/{self.ranks.rank}" if self.ranks.rank else ""
        torch.manual_seed(derive_seed(training.seed, f"training/dropout/{state.images}{rank}") >> 1)
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(training, state.images)
        state.optimizer.zero_grad(set_to_none=True)  # also what a step left that failed
        losses = self._backward(feed, window)
        loss, grad_norm = self._sum_and_clip(losses)
        self.is_whole = False
        taken = state.guard.judge(
            loss,
            grad_norm,
            start=state.images,
            losses=lambda: gather_rows(losses.double()).cpu(),
            places=self.source.positions,
        )
        state.images += training.batch_size
        if taken:
            state.optimizer.step()
            state.averages.update(training.batch_size, state.images)
        state.power.update(training.batch_size, state.images)  # also over weights that a skipped step left as they were
        state.optimizer.zero_grad(set_to_none=True)
        window.end_step(training.batch_size, grad_norm if taken else None)
        self.is_whole = True
        self._check_limit(loss, grad_norm)

    def _backward(self, feed: Feed[Batch | Gathered], window: Window) -> Tensor:
        """Add up the gradients of this process's forward passes, and return their losses (N,)."""
        kept, left = [], len(self.parts(self.state.images))
        while left:
            left -= 1
            waiting = time.perf_counter()
            try:
                made = feed.take()
            except (OSError, UserError) as error:
                raise RuntimeError(f"{self.config.name}: the training data cannot be read: {error}") from error
            batch = self._finish(made)
            window.waited += time.perf_counter() - waiting
            with self.engine.accumulating(last=not left):
                losses = self.losses(batch)
                (losses.sum() / self.config.training.batch_size).backward()
            window.add(losses, batch.times)
            kept.append(losses.detach())
        return torch.cat(kept)

    def _sum_and_clip(self, losses: Tensor) -> tuple[float, float]:
        """The loss and the gradient norm of the global batch; every process gets the same, and the same gradient.

        Reading them is the one moment in a step that waits for the device. The optimizer and the averages, which come
        next, keep it busy while the next forward pass is queued.
        """
        mean = (losses.double().sum() / self.config.training.batch_size).float().reshape(1)
        add_in_place([mean])
        limit = self.config.training.grad_clip
        norm = self.engine.clip(math.inf if limit is None else limit)
        loss, grad_norm = torch.cat([mean, norm.float().reshape(1)]).tolist()
        return loss, grad_norm

    def _check_limit(self, loss: float, grad_norm: float) -> None:
        skipped, training = self.state.guard.in_a_row, self.config.training
        if skipped > training.max_skipped_steps:
            raise NotFiniteError(
                f"{self.config.name}: loss {loss} and gradient norm {grad_norm} at {self.state.images} images, "
                f"{skipped} steps in a row; the run stops. Try a lower learning_rate, a longer warm-up or "
                "precision: fp32"
            )

    def memory_advice(self) -> str:
        """What to change if memory ran out: a smaller forward pass that keeps the global batch."""
        training = self.config.training
        size = len(self.parts(0)[0])
        tried = f"{self.config.name}: out of memory with {size} images a forward pass"
        smaller = [n for n in range(1, size // 2 + 1) if training.batch_size % n == 0]
        if not smaller:
            return f"{tried}; the network is too large for this device"
        return (
            f"{tried}; --set training.micro_batch={smaller[-1]} --allow-changes needs less and keeps the global batch "
            f"of {training.batch_size}"
        )

    def check_ranks_agree(self) -> None:
        """``RuntimeError`` if the processes' weights are not the same to the bit: what one saves must be everyone's."""
        if self.ranks.world == 1 or self.state.sharded:  # of what is sharded, each has its own
            return
        parameters = self.state.network.parameters()
        # Sums of the bits themselves, as whole numbers: exact, and blind to no single difference.
        bits = torch.stack([parameter.detach().contiguous().view(torch.int32).sum() for parameter in parameters])
        seen = gather_rows(bits.reshape(1, -1).cpu())
        if bool((seen != seen[0]).any()):
            raise NotFiniteError(
                f"{self.config.name}: the processes' weights have drifted apart after {self.state.images} images; "
                "the run stops. Machines of one kind, with one version of torch, compute the same"
            )

    def metrics(self, window: Window) -> dict[str, Any]:
        """A line of metrics.jsonl; every process must ask for it."""
        images = self.state.images
        rate = learning_rate(self.config.training, images)
        return {"images": images, "lr": rate, **window.summary(), **self.state.guard.report()}

    def crossed(self, every: int | None) -> bool:
        """Whether the last step passed a multiple of ``every`` images."""
        return every is not None and self.state.images % every < self.config.training.batch_size
