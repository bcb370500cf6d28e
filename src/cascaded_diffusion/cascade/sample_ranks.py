"""One sampling done by several processes: each makes whole batches, and their store brings them together.

A batch holds the same samples whoever makes it, so that the images are those of a single process, and a launch of
another number of processes takes up what one has left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from cascaded_diffusion.cascade.batching import BatchSizes, block_size
from cascaded_diffusion.cascade.offload import OffloadedStages
from cascaded_diffusion.cascade.sample_store import BatchStore
from cascaded_diffusion.cascade.walk import Plan, Watch, sample_batches
from cascaded_diffusion.precision import Precision, autocast
from cascaded_diffusion.ranks import Ranks, barrier, current_ranks, on_main

__all__ = ["fill_store", "runs_of"]


def runs_of(missing: Sequence[range], ranks: Ranks) -> list[range]:
    """This process's share of the ``missing`` batches, with those that follow each other as one."""
    runs: list[range] = []
    for batch in (missing[i] for i in ranks.share(len(missing))):
        if runs and runs[-1].stop == batch.start:
            runs[-1] = range(runs[-1].start, batch.stop)
        else:
            runs.append(batch)
    return runs


def fill_store(
    plan: Plan,
    labels: np.ndarray,
    low_res: np.ndarray | None,
    store: BatchStore,
    *,
    seed: int,
    batch_size: BatchSizes,
    precision: Precision,
    device: torch.device,
    watch: Callable[[int], Watch] | None = None,
    offloaded: OffloadedStages | None = None,
) -> None:
    """Make the batches that ``store`` lacks, each process its share, and wait for those of the others.

    Args:
        plan: the stages and their settings.
        labels: int64 (N,), -1 without class.
        low_res: uint8 (N, r, r, C) for a plan that starts with an SR stage.
        store: the same folder for every process.
        seed: the samples' seed.
        batch_size: samples at once, as :meth:`Cascade.sample` takes it. The processes share out blocks, which with
            ``auto`` are smaller where there would be none for some of them.
        precision: of the networks.
        device: where the stages are.
        watch: gives what is called after every step, for the number of images that this process is to make.
        offloaded: has the weights of the stages that are not at work.
    """
    ranks, count = current_ranks(), len(labels)
    size = block_size(batch_size, [stage.name for stage in plan.stages], device)
    if batch_size == "auto":
        size = min(size, -(-count // ranks.world))
    batches = [range(start, min(start + size, count)) for start in range(0, count, size)]
    # Asked by one process: another may have saved its first batch before the last one looks.
    missing = on_main(store.lacking(batches) if ranks.is_main else None)
    runs = runs_of(missing, ranks)
    callback = None if watch is None else watch(sum(map(len, runs)))
    with autocast(precision, device):
        for run in runs:
            part = slice(run.start, run.stop)
            sample_batches(
                plan,
                torch.from_numpy(labels[part]),
                None if low_res is None else low_res[part],
                seed=seed,
                batch_size=batch_size,
                device=device,
                callback=callback,
                first=run.start,
                keep=store,
                collect=False,
                offloaded=offloaded,
            )
    barrier()
