"""A run's log with its trackers: every line goes to ``metrics.jsonl`` first, and then to whoever else wants it.

A tracker that fails is told of in one line and switched off until the next start, which tells it what it missed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import Image

from cascaded_diffusion.cascade.stage import StageConfig
from cascaded_diffusion.errors import one_line
from cascaded_diffusion.ranks import current_ranks
from cascaded_diffusion.telling import tell
from cascaded_diffusion.training.run import METRICS_FILE, MetricsLog
from cascaded_diffusion.training.tracking.base import (
    Place,
    Tracker,
    check_trackers,
    opener,
    scalars_of,
    tellable,
)
from cascaded_diffusion.training.tracking.memory import Known, read_record, write_record

__all__ = ["Channel", "RunLog", "Table", "follow", "pixels_of"]

Note = Callable[[str], None]


class Table(NamedTuple):
    """Words and numbers in columns."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


class Channel:
    """One tracker of one folder: it remembers what the tracker has been told, and outlives its failures."""

    def __init__(self, name: str, folder: Path, *, images: int = 0, note: Note = tell) -> None:
        self.name, self._folder, self._images, self._note = name, folder, images, note
        self._known = Known()
        self._tracker: Tracker | None = None
        self._untold: set[str] = set()

    @contextlib.contextmanager
    def shielded(self) -> Iterator[None]:
        """Turn any failure of the tracker into one line and the tracker's end."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - each client has errors of its own, and none may end a run of days
            self._tracker = None
            words = one_line(error, 300)
            self._note(
                f"warning: {self.name}: switched off until the next start ({type(error).__name__}: {words}); "
                f"{METRICS_FILE} goes on"
            )

    def open(self, config: Mapping[str, Any]) -> None:
        """Open the tracker, and give it the configuration if that is not the one it has."""
        known = read_record(self._folder).trackers.get(self.name)  # type: ignore[call-overload]
        self._known = known or Known()
        config = tellable(config)
        told = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
        place = Place(
            folder=self._folder,
            identity=self._known.identity,
            images=self._images,
            is_new=known is None,
            is_reconfigured=told != self._known.config,
        )
        with self.shielded():
            self._tracker = opener(self.name)(place)
            self._tracker.config(config)
            if self._tracker.rewinds:
                self._remember(rows=min(self._known.rows, self._images))
                self._remember(pictures=min(self._known.pictures, self._images))
            self._remember(config=told)

    def row(self, row: Mapping[str, Any]) -> None:
        """Show one line of the log, unless the tracker has it already from before an interruption."""
        if self._tracker is None or row["images"] <= self._known.rows:
            return
        numbers, others = scalars_of(row)
        for name in others:
            if name not in self._untold:
                self._untold.add(name)
                self._note(f"note: {self.name}: {name} is no number and is told in {METRICS_FILE} alone")
        with self.shielded():
            self._tracker.scalars(row["images"], numbers)
            self._remember(rows=row["images"])

    def pictures(self, images: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Show uint8 (H, W, 3) pictures by name, unless the tracker has those of so many images already."""
        if self._tracker is None or images <= self._known.pictures:
            return
        with self.shielded():
            for name, picture in pictures.items():
                self._tracker.image(images, name, picture)
            self._remember(pictures=images)

    def tables(self, images: int, tables: Mapping[str, Table]) -> None:
        """Show tables by name, unless the tracker has those of so many images already."""
        if self._tracker is None or images <= self._known.rows:
            return
        with self.shielded():
            for name, table in tables.items():
                self._tracker.table(images, name, table.columns, table.rows)
            self._remember(rows=images)

    def close(self) -> None:
        """Close the tracker."""
        if self._tracker is not None:
            with self.shielded():
                self._tracker.close()
            self._tracker = None

    def _remember(self, **changes: Any) -> None:
        """Keep on disk what the tracker knows by now."""
        self._known = self._known.model_copy(update=changes)
        record = read_record(self._folder)
        write_record(self._folder, record.model_copy(update={"trackers": {**record.trackers, self.name: self._known}}))


class RunLog:
    """What a run writes as it goes: the lines of ``metrics.jsonl`` and its previews, to all channels."""

    def __init__(self, log: MetricsLog, channels: Sequence[Channel]) -> None:
        self._log, self._channels = log, channels

    def write(self, values: Mapping[str, Any]) -> None:
        """Append one line of metrics, which holds ``images``; ``OSError`` if it has to wait for the file."""
        try:
            self._log.write(values)
        finally:
            for channel in self._channels:
                channel.row(values)

    @property
    def waiting(self) -> int:
        """Lines that could not be written yet."""
        return len(self._log.waiting)

    def flush(self) -> None:
        """Write the lines that wait; ``OSError`` if they cannot be written."""
        self._log.flush()

    def picture(self, images: int, path: Path) -> None:
        """Show the preview that was just written."""
        if self._channels:
            pictures = {"preview": pixels_of(path)}
            for channel in self._channels:
                channel.pictures(images, pictures)


def pixels_of(file: Path | IO[bytes]) -> np.ndarray:
    """A picture's file as uint8 (H, W, 3)."""
    with Image.open(file) as picture:
        return np.asarray(picture.convert("RGB"))


@contextlib.contextmanager
def follow(
    run: Path,
    config: StageConfig,
    images: int,
    trackers: Sequence[str] = (),
    *,
    check: Callable[[], None] = lambda: None,
    note: Note = tell,
) -> Iterator[RunLog]:
    """Open the log of a run that begins or goes on at ``images``, and the trackers on the main process alone.

    A tracker is first told what it does not know of the run so far: one that is new, or had failed, shows all of it.

    Args:
        run: the run folder.
        config: the stage; all of it is told, class names included.
        images: images seen.
        trackers: names, from :data:`TRACKERS`.
        check: called before each write to the log; raises ``OSError`` if it must wait.
        note: called with a line for a person.

    Raises:
        UserError: a tracker is not known or not installed, or ``tracking.json`` is damaged.
    """
    log = MetricsLog(run, images, check)
    names = check_trackers(trackers) if current_ranks().is_main else ()
    channels = [Channel(name, run, images=images, note=note) for name in names]
    try:
        for channel in channels:
            channel.open(config.model_dump(mode="json"))
            _catch_up(channel, run, images)
        yield RunLog(log, channels)
    finally:
        for channel in channels:
            channel.close()


def _catch_up(channel: Channel, run: Path, images: int) -> None:
    """Tell a channel the lines and previews up to ``images``; it leaves out those that it knows."""
    path = run / METRICS_FILE
    if path.exists():
        for line in path.read_bytes().splitlines():
            channel.row(json.loads(line))
    for path in sorted((run / "previews").glob("*.png")):
        if path.stem.isascii() and path.stem.isdigit() and int(path.stem) <= images:
            with channel.shielded():
                channel.pictures(int(path.stem), {"preview": pixels_of(path)})
