"""trackio: a local data base that ``trackio show`` opens, or a Space, as its own environment variables say."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np

from cascaded_diffusion.training.tracking.base import PROJECT, Place

__all__ = ["TrackioTracker"]


class TrackioTracker:
    """Logs with images as the step. trackio tells runs apart by name, so the name carries the run's identity."""

    rewinds = False

    def __init__(self, place: Place) -> None:
        self._trackio: Any = import_module("trackio")
        self._place = place
        self._run: Any = None

    def config(self, values: Mapping[str, Any]) -> None:
        """Open the run: trackio takes a configuration only then."""
        # What it prints is for people; stdout is for what the command makes.
        with contextlib.redirect_stdout(sys.stderr):
            self._run = self._trackio.init(
                project=PROJECT,
                name=f"{self._place.folder.resolve().name}-{self._place.identity}",
                config=dict(values),
                resume="allow",
                embed=False,
            )

    def scalars(self, images: int, values: Mapping[str, float]) -> None:
        """See :class:`Tracker`."""
        self._run.log(dict(values), step=images)

    def image(self, images: int, name: str, picture: np.ndarray) -> None:
        """See :class:`Tracker`."""
        self._run.log({name: self._trackio.Image(picture)}, step=images)

    def table(self, images: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """See :class:`Tracker`."""
        table = self._trackio.Table(columns=list(columns), data=[list(row) for row in rows])
        self._run.log({name: table}, step=images)

    def close(self) -> None:
        """See :class:`Tracker`."""
        if self._run is not None:
            with contextlib.redirect_stdout(sys.stderr):
                self._run.finish()
