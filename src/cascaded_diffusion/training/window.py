"""What happens between two lines of a run's log, summed up."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

__all__ = ["Window"]

_BUCKETS = 8


class Window:
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
