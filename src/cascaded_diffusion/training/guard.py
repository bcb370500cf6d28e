"""Watches the loss and the gradient of every step: steps that must not be taken, and losses far out of line."""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Callable, Mapping
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from cascaded_diffusion.ranks import current_ranks

__all__ = ["Guard", "NotFiniteError"]

_LOG = logging.getLogger(__name__)

_RECENT = 128
"""Steps that a loss is compared with."""
_ENOUGH = 32
"""Steps before anything can be called a spike."""
_NAMED = 32
"""Examples that are named of one step."""
_HIGHEST = 8
"""Examples that are named of a spike: those of the highest loss."""


class NotFiniteError(RuntimeError):
    """The run has gone wrong: what it computes is not finite any more, and must not replace what was."""


class Guard:
    """Decides of every step whether it may be taken, and remembers what was out of line.

    All that it remembers is saved with a checkpoint, so that a resumed run counts and compares as one that was never
    interrupted.

    Attributes:
        in_a_row: steps skipped since the last one that was taken.
        skipped: steps skipped since the last line of the log.
    """

    def __init__(self) -> None:
        self.in_a_row = 0
        self.skipped = 0
        self._recent: list[float] = []
        self._events: dict[str, list[dict[str, Any]]] = {}

    def judge(
        self,
        loss: float,
        grad_norm: float,
        *,
        start: int,
        losses: Callable[[], Tensor],
        places: Callable[[np.ndarray], np.ndarray],
    ) -> bool:
        """Whether a step may be taken: neither its loss nor its gradient is NaN or infinite.

        Args:
            loss: mean over the global batch.
            grad_norm: of the global batch, before clipping.
            start: training position of the batch's first image.
            losses: gives the losses of the batch (N,), asked for if the step is out of line.
            places: from training positions to places in the data.
        """
        if not math.isfinite(loss) or not math.isfinite(grad_norm):
            self.in_a_row += 1
            self.skipped += 1
            bad = torch.nonzero(~losses().isfinite()).flatten().numpy() + start
            self._tell("skipped", f"skipped, with loss {loss} and gradient norm {grad_norm}", loss, start, bad, places)
            return False
        self.in_a_row = 0
        usual = self._usual_at_most()
        if usual is not None and loss > usual:
            highest = losses().topk(min(_HIGHEST, len(losses()))).indices.numpy() + start
            self._tell(
                "spikes", f"has a loss of {loss:.4g}, usual is {usual:.4g} at most", loss, start, highest, places
            )
        self._recent = [*self._recent, loss][-_RECENT:]
        return True

    def _usual_at_most(self) -> float | None:
        """Twice the median of the recent losses, and ten of their standard deviations above it (1.4826 MAD)."""
        if len(self._recent) < _ENOUGH:
            return None
        median = statistics.median(self._recent)
        deviation = 1.4826 * statistics.median(abs(value - median) for value in self._recent)
        return max(2 * median, median + 10 * deviation)

    def _tell(
        self,
        kind: str,
        words: str,
        loss: float,
        start: int,
        positions: np.ndarray,
        places: Callable[[np.ndarray], np.ndarray],
    ) -> None:
        named = positions[:_NAMED]
        event = {
            "images": start,
            "loss": loss if math.isfinite(loss) else str(loss),
            "examples": len(positions),
            "positions": named.tolist(),
            "indices": places(named).tolist(),
        }
        self._events.setdefault(kind, []).append(event)
        more = "" if len(named) == len(positions) else f" and {len(positions) - len(named)} more"
        which = f"positions {event['positions']}{more}, in the data {event['indices']}" if len(named) else "no example"
        role = "not finite" if kind == "skipped" else "highest"
        if current_ranks().is_main:
            _LOG.warning("the step at %s images %s; %s: %s", f"{start:,}", words, role, which)

    def report(self) -> dict[str, Any]:
        """What the next line of the log says of the steps since the last one."""
        told = {"skipped": self.skipped}
        # "skipped" is their number already.
        details = {"skipped_steps" if kind == "skipped" else kind: events for kind, events in self._events.items()}
        self.skipped, self._events = 0, {}
        return {**told, **details}

    def to_json(self) -> dict[str, Any]:
        """What a checkpoint's manifest says of it."""
        return {
            "in_a_row": self.in_a_row,
            "skipped": self.skipped,
            "recent": self._recent,
            "events": self._events,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Take up what :meth:`to_json` gave; ``ValueError`` if that is something else."""
        guard = cls()
        try:
            guard.in_a_row, guard.skipped = int(value["in_a_row"]), int(value["skipped"])
            guard._recent = [float(loss) for loss in value["recent"]]
            guard._events = {str(kind): list(events) for kind, events in value["events"].items()}
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"guard: not what a checkpoint says of it ({error})") from None
        return guard
