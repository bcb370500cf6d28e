"""TensorBoard: event files in ``RUN/tensorboard``, for ``tensorboard --logdir RUNS``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np

from cascaded_diffusion.training.tracking.base import Place, flat_config

__all__ = ["FOLDER", "TensorBoardTracker"]

FOLDER = "tensorboard"


class TensorBoardTracker:
    """Writes event files. A resumed run hides what it had written after the checkpoint that it goes on from."""

    rewinds = True

    def __init__(self, place: Place) -> None:
        writer = import_module("torch.utils.tensorboard").SummaryWriter
        self._place = place
        # The step named is hidden too, and the checkpoint's own line must stay. A folder of which nothing is known is
        # told all anew.
        purge = 0 if place.is_new else place.images + 1
        self._writer: Any = writer(log_dir=str(place.folder / FOLDER), purge_step=purge)

    def config(self, values: Mapping[str, Any]) -> None:
        """The whole as JSON in the TEXT tab, at every change, and every setting of the start in the HPARAMS tab."""
        if not self._place.is_reconfigured:
            return
        whole = json.dumps(values, indent=2, ensure_ascii=False)
        # An indented block is shown as it is, whatever a class is called.
        block = "".join(f"    {line}\n" for line in whole.splitlines())
        self._writer.add_text("config", block, self._place.images)
        if self._place.is_new:  # of a run TensorBoard keeps the first
            # SummaryWriter.add_hparams would open a second run beside this one, and drop what is null.
            summary = import_module("torch.utils.tensorboard.summary").hparams
            for part in summary(flat_config(values), {"loss": 0}):
                self._writer.file_writer.add_summary(part)
        self._writer.flush()

    def scalars(self, images: int, values: Mapping[str, float]) -> None:
        """See :class:`Tracker`. On disk when it returns, before any checkpoint that counts on it."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, images)
        self._writer.flush()

    def image(self, images: int, name: str, picture: np.ndarray) -> None:
        """See :class:`Tracker`."""
        self._writer.add_image(name, picture, images, dataformats="HWC")
        self._writer.flush()

    def table(self, images: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table in the TEXT tab."""
        lines = [columns, ["---"] * len(columns), *rows]
        cells = [[str(cell).replace("|", "\\|") for cell in line] for line in lines]
        self._writer.add_text(name, "\n".join(f"| {' | '.join(line)} |" for line in cells), images)
        self._writer.flush()

    def close(self) -> None:
        """See :class:`Tracker`."""
        self._writer.close()
