"""Stand-ins for the packages that are not installed, and what TensorBoard would show."""

from __future__ import annotations

import importlib.machinery
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest


class RecordingTracker:
    """Remembers what it is told, and fails where it is asked to.

    Attributes:
        told: (what, images, name, value) in order.
        broken: the method that raises.
    """

    def __init__(self, *, rewinds: bool = True) -> None:
        self.rewinds = rewinds
        self.told: list[tuple[str, int | None, str, Any]] = []
        self.broken: str | None = None
        self.places: list[Any] = []

    def _tell(self, what: str, images: int | None, name: str, value: Any) -> None:
        if what == self.broken:
            raise OSError(28, "No space left on device")
        self.told.append((what, images, name, value))

    def config(self, values: Mapping[str, Any]) -> None:
        self._tell("config", None, "", dict(values))

    def scalars(self, images: int, values: Mapping[str, float]) -> None:
        self._tell("scalars", images, "", dict(values))

    def image(self, images: int, name: str, picture: np.ndarray) -> None:
        assert picture.dtype == np.uint8
        assert picture.shape[2] == 3
        self._tell("image", images, name, picture.shape)

    def table(self, images: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        self._tell("table", images, name, (list(columns), [list(row) for row in rows]))

    def close(self) -> None:
        self._tell("close", None, "", None)

    def images(self, what: str) -> list[int | None]:
        """The x-axis of all that was told of a kind."""
        return [images for kind, images, _, _ in self.told if kind == what]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Callable[..., types.ModuleType]:
    """``stand_in("wandb", init=...)``: a module of that name, with these members, in place of the package."""

    def make(name: str, **members: Any) -> types.ModuleType:
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        for key, value in members.items():
            setattr(module, key, value)
        monkeypatch.setitem(sys.modules, name, module)
        return module

    return make


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch, stand_in: Callable[..., types.ModuleType]) -> RecordingTracker:
    """A tracker that is opened whatever name is asked for."""
    made = RecordingTracker()
    for name in ("wandb", "trackio"):
        stand_in(name)

    def open_it(place: Any) -> RecordingTracker:
        if made.broken == "open":
            raise ConnectionError("no route to host")
        made.places.append(place)
        return made

    monkeypatch.setattr("cascaded_diffusion.training.tracking.follow.opener", lambda name: open_it)
    return made


@pytest.fixture
def shown() -> Callable[[Path], Any]:
    """``shown(folder)``: the event files of a folder as TensorBoard reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def read(folder: Path) -> EventAccumulator:
        found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
        found.Reload()
        return found

    return read
