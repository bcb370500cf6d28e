"""What happens between two lines of a run's log, summed up over steps and processes."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from cascaded_diffusion.ranks import add_up, current_ranks

__all__ = ["Window"]

_BUCKETS = 8


class Window:
    """Sums between two log lines. Losses stay on the device: adding to them waits for nothing.

    Attributes:
        waited: seconds that this process waited for data.
    """

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(_BUCKETS, dtype=torch.float64, device=device)
        self._counts = torch.zeros(_BUCKETS, dtype=torch.float64, device=device)
        self._grad_norm = 0.0
        self._steps = 0
        self._images = 0
        self.waited = 0.0
        self._started = time.perf_counter()

    def add(self, losses: Tensor, times: Tensor) -> None:
        """Count the losses (N,) of examples at the diffusion times (N,); one that is not finite has no place here."""
        bucket = (times * _BUCKETS).ceil().long().clamp(1, _BUCKETS).to(losses.device) - 1
        losses = losses.detach().double()
        finite = losses.isfinite()
        self._sums.index_add_(0, bucket, torch.where(finite, losses, 0.0))
        self._counts.index_add_(0, bucket, finite.double())

    def end_step(self, images: int, grad_norm: float | None) -> None:
        """Count a step of ``images`` over all processes; ``None`` for the norm of one that was skipped."""
        self._images += images
        if grad_norm is not None:
            self._grad_norm += grad_norm
            self._steps += 1

    def summary(self) -> dict[str, Any]:
        """What a line of the log says of them; every process must ask for it, and gets the same losses.

        ``loss`` is ``None`` if not one was finite, and so is ``grad_norm``.
        """
        elapsed = time.perf_counter() - self._started
        waited = torch.tensor([self.waited / elapsed], dtype=torch.float64)
        told = add_up(torch.cat([self._sums.cpu(), self._counts.cpu(), waited]))
        sums, counts = told[:_BUCKETS].tolist(), told[_BUCKETS:-1].tolist()
        seen = sum(counts)
        return {
            "loss": sum(sums) / seen if seen else None,
            # From the cleanest eighth of the diffusion time to the noisiest.
            "loss_by_time": [total / count if count else None for total, count in zip(sums, counts, strict=True)],
            "grad_norm": self._grad_norm / self._steps if self._steps else None,
            "images_per_second": self._images / elapsed,
            "data_wait": float(told[-1]) / current_ranks().world,
        }
