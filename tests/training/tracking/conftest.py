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


class EventFiles:
    """The event files of a folder as TensorBoard's own server reads them, with what a restart has taken back left out.

    Its older reader, which has methods for every kind, does not take back texts.
    """

    def __init__(self, folder: Path) -> None:
        from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

        self._read: Any = EventAccumulator(str(folder), size_guidance={"tensors": 0})
        self._read.Reload()

    def _events(self, tag: str) -> list[tuple[int, Any]]:
        return [(event.step, event.tensor_proto) for event in self._read.Tensors(tag)]

    def scalars(self, tag: str) -> list[tuple[int, float]]:
        """(step, value) of every point."""
        return [(step, proto.float_val[0]) for step, proto in self._events(tag)]

    def images(self, tag: str) -> list[tuple[int, bytes]]:
        """(step, PNG file) of every picture; before it stand width and height."""
        return [(step, proto.string_val[2]) for step, proto in self._events(tag)]

    def texts(self, tag: str) -> list[tuple[int, str]]:
        """(step, Markdown) of every text."""
        return [(step, proto.string_val[0].decode()) for step, proto in self._events(f"{tag}/text_summary")]

    def hparams(self) -> dict[str, Any]:
        """What the HPARAMS tab shows of the run."""
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

        content = self._read.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
        values = HParamsPluginData.FromString(content).session_start_info.hparams
        return {key: getattr(value, value.WhichOneof("kind")) for key, value in values.items()}


@pytest.fixture
def shown() -> Callable[[Path], EventFiles]:
    """``shown(folder)``: the :class:`EventFiles` of a folder."""
    return EventFiles
