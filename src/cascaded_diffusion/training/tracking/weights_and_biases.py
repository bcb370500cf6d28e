"""Weights & Biases, online or offline as its own settings and environment say; its files lie in ``RUN/wandb``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np

from cascaded_diffusion.training.tracking.base import PROJECT, Place

__all__ = ["WandbTracker"]

_LONGEST_FINISH_S = 300.0
"""A run that is through does not wait longer for a network that is gone."""


class WandbTracker:
    """Logs with ``images`` as the step metric of every chart, so that no row is refused for its step."""

    rewinds = False

    def __init__(self, place: Place) -> None:
        self._wandb: Any = import_module("wandb")
        known = getattr(self._wandb.Settings, "model_fields", {})
        settings: dict[str, Any] = {"console": "off"}
        if "finish_timeout" in known:
            settings["finish_timeout"] = _LONGEST_FINISH_S
        options = {} if os.environ.get("WANDB_PROJECT") else {"project": PROJECT}
        self._run: Any = self._wandb.init(
            id=place.identity,
            name=place.folder.resolve().name,
            dir=str(place.folder),
            resume="allow",
            reinit="create_new",  # a run that the caller has open stays the caller's
            settings=self._wandb.Settings(**settings),
            **options,
        )
        self._run.define_metric("images")
        self._run.define_metric("*", step_metric="images")

    def config(self, values: Mapping[str, Any]) -> None:
        """See :class:`Tracker`."""
        self._run.config.update(dict(values), allow_val_change=True)

    def scalars(self, images: int, values: Mapping[str, float]) -> None:
        """See :class:`Tracker`."""
        self._run.log({"images": images, **values})

    def image(self, images: int, name: str, picture: np.ndarray) -> None:
        """See :class:`Tracker`."""
        self._run.log({"images": images, name: self._wandb.Image(picture)})

    def table(self, images: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """See :class:`Tracker`."""
        table = self._wandb.Table(columns=list(columns), data=[list(row) for row in rows])
        self._run.log({"images": images, name: table})

    def close(self) -> None:
        """See :class:`Tracker`."""
        self._run.finish()
