"""What a tracker is, which there are, and how a run's words and numbers are laid out for them.

A tracker shows what a run writes; it never decides anything, so the same run with and without one has the same weights.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cascaded_diffusion.errors import UserError, did_you_mean

__all__ = [
    "PROJECT",
    "TRACKERS",
    "Place",
    "Tracker",
    "check_trackers",
    "flat_config",
    "opener",
    "scalars_of",
    "tellable",
]

PROJECT = "cascaded-diffusion"
"""The project's name in Weights & Biases and trackio."""

TRACKERS = {
    "tensorboard": ("tensorboard", "TensorBoardTracker"),
    "wandb": ("weights_and_biases", "WandbTracker"),
    "trackio": ("trackio_runs", "TrackioTracker"),
}
"""Name, which is also that of the package and of the extra, to module here and class."""


@dataclass(frozen=True)
class Place:
    """Where a tracker finds its run, and whether that run is there already.

    Attributes:
        folder: the run folder, or a search's.
        identity: a name for the run that stays when it is resumed.
        images: images seen when it was taken up; 0 for a new run.
        is_new: whether this tracker has seen nothing of the run yet.
        is_reconfigured: whether the configuration is not the one it was given last.
    """

    folder: Path
    identity: str
    images: int = 0
    is_new: bool = True
    is_reconfigured: bool = True


class Tracker(Protocol):
    """Shows one run. ``config`` comes first, ``close`` last; anything may raise, which switches the tracker off."""

    rewinds: bool
    """Whether it takes back, when it is opened, all that it was told of images after ``Place.images``."""

    def config(self, values: Mapping[str, Any]) -> None:
        """The whole configuration, as JSON and UTF-8 hold it."""

    def scalars(self, images: int, values: Mapping[str, float]) -> None:
        """Numbers by name; ``images`` seen are the x-axis."""

    def image(self, images: int, name: str, picture: np.ndarray) -> None:
        """A uint8 (H, W, 3) picture."""

    def table(self, images: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Rows of words and numbers, such as the points of an s-curve."""

    def close(self) -> None:
        """Send what is still to be sent."""


def check_trackers(names: Iterable[str]) -> tuple[str, ...]:
    """Names of trackers, each once.

    Raises:
        UserError: one is not known, or its package is not installed.
    """
    wanted = tuple(dict.fromkeys(names))
    for name in wanted:
        if name not in TRACKERS:
            hint = did_you_mean(name, TRACKERS)
            raise UserError(f"track: {name!r} is not known; allowed: {', '.join(TRACKERS)}{hint}")
        if importlib.util.find_spec(name) is None:
            raise UserError(f"track: {name} is not installed; pip install 'cascaded-diffusion[{name}]'")
    return wanted


def opener(name: str) -> Callable[[Place], Tracker]:
    """What opens the tracker of that name; its package is imported by the call that this makes."""
    module, kind = TRACKERS[name]
    made: Callable[[Place], Tracker] = getattr(import_module(f"{__package__}.{module}"), kind)
    return made


def tellable(value: Any) -> Any:
    """A value as JSON holds it, with what UTF-8 cannot hold (an undecodable byte of a file name, say) written out.

    Some clients lose every row of a run whose configuration has one such class name, and say so nowhere.
    """
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, Mapping):
        return {tellable(str(key)): tellable(inner) for key, inner in value.items()}
    return [tellable(inner) for inner in value] if isinstance(value, list | tuple) else value


def flat_config(values: Mapping[str, Any]) -> dict[str, str | int | float]:
    """A nested configuration as ``key.path`` to a number or words; lists, truth and null in JSON's words.

    Nothing is left out: a list of class names is one value.
    """
    flat: dict[str, str | int | float] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= {f"{key}.{inner}": leaf for inner, leaf in flat_config(value).items()}
        elif isinstance(value, str | int | float) and not isinstance(value, bool):
            flat[key] = value
        else:
            flat[key] = json.dumps(value, ensure_ascii=False)
    return flat


def scalars_of(row: Mapping[str, Any]) -> tuple[dict[str, float], list[str]]:
    """The numbers of a line of ``metrics.jsonl``, and the names of what is no number.

    Entry i of a list is ``name/i`` from 1, an inner group is ``name/key``; null, which stands for nothing to tell, is
    left out. ``images`` is the axis.
    """
    numbers: dict[str, float] = {}
    others: list[str] = []
    for name, value in row.items():
        inner: Mapping[str, Any] | None = None
        if isinstance(value, Mapping):
            inner = value
        elif isinstance(value, list | tuple):
            inner = {str(i): entry for i, entry in enumerate(value, 1)}
        if inner is not None:
            found, left = scalars_of(inner)
            numbers |= {f"{name}/{key}": number for key, number in found.items()}
            others += [f"{name}/{key}" for key in left]
        elif isinstance(value, int | float):
            numbers[name] = float(value)
        elif value is not None:
            others.append(name)
    numbers.pop("images", None)
    return numbers, others
