"""Making the passes of a search: all samples through one stage at a time, each pass once, on all ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from cascaded_diffusion.cascade.batching import BatchSize
from cascaded_diffusion.cascade.chain import Cascade
from cascaded_diffusion.cascade.generate import sample_stage
from cascaded_diffusion.cascade.search_points import Pass, Point
from cascaded_diffusion.cascade.search_store import SearchStore
from cascaded_diffusion.cascade.walk import in_batches
from cascaded_diffusion.diffusion.samplers import Step
from cascaded_diffusion.pixels import to_uint8
from cascaded_diffusion.precision import Precision, autocast
from cascaded_diffusion.ranks import barrier, current_ranks, gather_rows, on_main

__all__ = ["PassMaker"]

T = TypeVar("T")


class PassMaker:
    """Takes samples from stage to stage, and keeps what comes out in the store.

    On several ranks each makes a contiguous share of the samples; the first one writes, and all read its files.
    """

    def __init__(
        self,
        cascade: Cascade,
        store: SearchStore,
        *,
        num: int,
        seed: int,
        batch_size: BatchSize,
        precision: Precision,
        watch: Callable[[Pass, int], None],
    ) -> None:
        """Prepare; nothing is made yet.

        Args:
            cascade: the chain, on its device.
            store: where outcomes are kept.
            num: samples; sample i has class i mod K.
            seed: of their noise.
            batch_size: samples at once; ``auto`` halves it when memory runs out.
            precision: of the networks.
            watch: called with the pass and how many of this rank's samples are through it.
        """
        self.cascade, self.store = cascade, store
        self.seed, self.batch_size, self.precision, self.watch = seed, batch_size, precision, watch
        self.share = current_ranks().share(num)
        self.labels = cascade.sample_labels(cascade.plan(), num=num)

    def images(self, point: Point) -> np.ndarray:
        """A point's images, those of this rank's share: uint8 (n, R, R, C)."""
        if on_main(self.store.images_path(point).exists()):
            return self.store.load_images(point, self.share)
        images = np.concatenate(self._make(point.work, lambda _, images: images))
        everyone = gather_rows(torch.from_numpy(images)).numpy()
        if current_ranks().is_main:
            self.store.save_images(point, everyone, self.labels)
        return images

    def handed_on(self, work: Pass) -> Tensor:
        """What a pass hands to the stage above, for this rank's share: float32 (n, C, r, r)."""
        if not on_main(self.store.lower_path(work).exists()):
            parts = self._make(work, lambda carried, images: (carried, images))
            carried = gather_rows(torch.cat([part for part, _ in parts])).numpy()
            images = gather_rows(torch.from_numpy(np.concatenate([part for _, part in parts]))).numpy()
            if current_ranks().is_main:
                self.store.save_lower(work, images, self.labels, carried)
            barrier()
        return torch.from_numpy(self.store.load_lower(work, self.share))

    def _make(self, work: Pass, keep: Callable[[Tensor, np.ndarray], T]) -> list[T]:
        """Run a stage on this rank's share: what is kept of each batch.

        ``keep`` gets what the stage hands on, float32 (n, C, R, R), and its images, uint8 NHWC, a quarter as large.
        """
        low_res = None if work.below is None else self.handed_on(work.below)
        return in_batches(
            len(self.share), self.batch_size, lambda start, stop: keep(*self._batch(work, low_res, start, stop))
        )

    def _batch(self, work: Pass, low_res: Tensor | None, start: int, stop: int) -> tuple[Tensor, np.ndarray]:
        stage, device = self.cascade.stages[work.stage], self.cascade.device
        index = torch.arange(self.share.start + start, self.share.start + stop)

        def watch(step: Step) -> None:
            self.watch(work, start + (stop - start) * (step.index + 1) // step.total)

        labels = torch.from_numpy(self.labels[index.numpy()]).to(device)
        with autocast(self.precision, device):
            output = sample_stage(
                stage,
                work.settings,
                index=index,
                labels=labels if stage.config.classes is not None else None,
                low_res=None if low_res is None else low_res[start:stop].to(device),
                seed=self.seed,
                stop=work.stop,
                callback=watch,
            )
        # Only a truncated stage above takes z_s; the others get an image, as in training.
        carried = output.x if work.stop > 0 else output.x0
        return carried.float().cpu(), to_uint8(output.x0)
