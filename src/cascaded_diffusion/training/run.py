"""The run folder of one stage: its lock, its recorded configuration, its log."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

from pydantic import ValidationError

from cascaded_diffusion.cascade.stage import CONFIG_FILE, WEIGHTS_FILE, StageConfig
from cascaded_diffusion.data.manifest import labels_file, split_files
from cascaded_diffusion.data.prepared import PreparedData
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.files import atomic_write, read_json, reason, sync_folder, try_lock, write_json
from cascaded_diffusion.reading.json_text import LONGEST_LINE, parse_json
from cascaded_diffusion.reading.plain import read_lines, refuse_outside
from cascaded_diffusion.training.checkpoint import Whole, newest_whole, remove_leftovers, set_aside
from cascaded_diffusion.training.snapshots import drop_snapshots_after

__all__ = [
    "MetricsLog",
    "Opened",
    "RunLock",
    "data_hash",
    "differences",
    "open_run",
    "refuse_changed",
    "refuse_foreign",
    "take_over",
]

METRICS_FILE = "metrics.jsonl"
LOCK_FILE = ".lock"
MOST_VERIFIED = 8 * 2**30
"""Bytes of images that are read to see whether they have changed; more would keep a run waiting for minutes."""


class RunLock:
    """Holds a run folder for this process; the operating system lets go of it if the process dies."""

    def __init__(self, run: Path) -> None:
        """Make the folder if it is not there, and hold it.

        Raises:
            UserError: another process holds it, or nothing can be written there.
        """
        self._run = run
        try:
            run.mkdir(parents=True, exist_ok=True)
            self._descriptor = self._take()
        except BlockingIOError:
            raise UserError(f"{run}: another process is training in this run folder") from None
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
                raise UserError(f"{run / LOCK_FILE}: a link or folder, not the file that cdm train makes") from None
            raise UserError(f"{run}: nothing can be written there ({reason(error)})") from None

    def _take(self) -> int:
        # Not through a link, which leads elsewhere. Not waiting: it may be a pipe.
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(self._run / LOCK_FILE, flags, 0o666)
        if not try_lock(descriptor):
            os.close(descriptor)
            raise BlockingIOError
        return descriptor

    def check(self) -> None:
        """See that the run folder is still there and held: one that is mounted anew, or lost its lock file, is taken.

        Raises:
            OSError: it has vanished, or another process has taken it.
        """
        if not (self._run / CONFIG_FILE).is_file():
            raise OSError(errno.ENOENT, "the run folder has vanished")
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(self._run / LOCK_FILE), os.fstat(self._descriptor)):
                return
        try:
            descriptor = self._take()
        except BlockingIOError:
            raise OSError(errno.EBUSY, "another process has taken the run folder") from None
        os.close(self._descriptor)
        self._descriptor = descriptor

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._descriptor)


_MOST_DIFFERENCES = 12
_LONGEST_VALUE = 80


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Every setting by its path; an empty group stands for itself."""
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    return {
        k: v for key, inner in value.items() for k, v in _flatten(inner, f"{prefix}.{key}" if prefix else key).items()
    }


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """``key.path: old -> new`` for every setting that differs; one that is not there counts as null.

    A long list is told by the first entry that differs, as ``key.path.3``, counted from 0.
    """
    before, after = _flatten(dict(old)), _flatten(dict(new))
    # Of a group that comes or goes its settings are told, one by one.
    keys = [key for key in dict.fromkeys((*before, *after)) if before.get(key) != after.get(key)]
    return [f"{key}{_difference(before.get(key), after.get(key))}" for key in keys]


def _difference(old: Any, new: Any) -> str:
    left, right = json.dumps(old, ensure_ascii=False), json.dumps(new, ensure_ascii=False)
    if max(len(left), len(right)) <= _LONGEST_VALUE or not (isinstance(old, list) and isinstance(new, list)):
        return f": {_cut(left)} -> {_cut(right)}"
    if len(old) != len(new):
        return f": {len(old)} entries -> {len(new)} entries"
    places = [i for i, (one, other) in enumerate(zip(old, new, strict=True)) if one != other]
    more = f" (and {len(places) - 1} more entries)" if len(places) > 1 else ""
    left, right = (json.dumps(value[places[0]], ensure_ascii=False) for value in (old, new))
    return f".{places[0]}: {_cut(left)} -> {_cut(right)}{more}"


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 3]}..."


def data_hash(config: StageConfig, data: PreparedData) -> str:
    """SHA-256 of the manifest's hashes of the arrays that a stage is trained on, whatever else was prepared with them.

    Whether the arrays still have these is not looked at: see :func:`refuse_changed`.
    """
    names = [*(data.manifest.images_file("train", side) for side in _sides(config)), labels_file("train")]
    said = "".join(f"{name} {data.manifest.files[name]}\n" for name in names)
    return hashlib.sha256(said.encode()).hexdigest()


def _sides(config: StageConfig) -> list[int]:
    """Resolutions of the images that a stage is trained on."""
    low = None if config.conditioning is None else config.conditioning.low_resolution
    return [side for side in (low, config.resolution) if side is not None]


def refuse_changed(config: StageConfig, data: PreparedData) -> None:
    """``UserError`` if a file that a stage is trained on is not as it was prepared.

    The files are read for it; if they hold more than :data:`MOST_VERIFIED` bytes together, nothing is looked at.
    """
    names = split_files("train", _sides(config), data.manifest.compressed)
    if sum((data.folder / name).stat().st_size for name in names) > MOST_VERIFIED:
        return
    try:
        data.verify(names)
    except UserError as error:
        raise UserError(
            f"{error}; prepare the data anew in another folder, or pass --allow-changes to go on with them as they are"
        ) from None


def refuse_foreign(run: Path) -> None:
    """``UserError`` if there is something in the folder that no run has put there."""
    if (run / WEIGHTS_FILE).exists():
        raise UserError(f"{run}: a stage folder (it holds {WEIGHTS_FILE}), not a run folder; choose another --out")
    if not run.is_dir() or (run / CONFIG_FILE).exists():
        return
    for path in sorted(run.iterdir()):
        # A process that died while it wrote its first file leaves these.
        if path.name != LOCK_FILE and not path.name.startswith(f".{CONFIG_FILE}."):
            raise UserError(f"{run}: not a run folder and not empty (it holds {path.name}); choose another --out")


def _as_it_is_now(recorded: dict[str, Any]) -> dict[str, Any]:
    """Recorded settings with the defaults of those that have come since; as they are, if they no longer fit."""
    try:
        return StageConfig.model_validate(recorded).model_dump(mode="json")
    except ValidationError:
        return recorded


class Opened(NamedTuple):
    """What :func:`open_run` found.

    Attributes:
        whole: the newest whole checkpoint to resume from, or ``None`` for a new run.
        damaged: newer ones that are not.
    """

    whole: Whole | None
    damaged: Sequence[Path]


def open_run(run: Path, config: StageConfig, *, allow_changes: bool) -> Opened:
    """Record the configuration in a new run folder, or compare it with the recorded one.

    In a folder that is there already nothing is changed yet: see :func:`take_over`.

    Raises:
        UserError: the folder belongs to something else, the configuration changed without ``allow_changes``, or every
            checkpoint is damaged.
    """
    path = run / CONFIG_FILE
    wanted = config.model_dump(mode="json")
    refuse_foreign(run)
    # What is written and deleted there is this run's, wherever it may have come from.
    refuse_outside(run, *(run / name for name in ("checkpoints", "snapshots", "previews")))
    if not path.exists():
        write_json(path, wanted)
        sync_folder(run.absolute().parent)
        return Opened(None, ())
    refuse_outside(run, path, run / METRICS_FILE)
    recorded = read_json(path)
    if not isinstance(recorded, dict):
        raise UserError(f"{path}: holds {type(recorded).__name__}, not a stage's settings")
    changed = differences(_as_it_is_now(recorded), wanted)
    if changed and not allow_changes:
        told = changed[:_MOST_DIFFERENCES]
        more = f"; and {len(changed) - len(told)} more" if len(changed) > len(told) else ""
        raise UserError(
            f"{run}: the settings differ from those the run was started with ({'; '.join(told)}{more}); "
            "pass --allow-changes to go on with the new ones"
        )
    return Opened(*newest_whole(run))


def take_over(run: Path, config: StageConfig, opened: Opened) -> None:
    """Make a run folder this process's own, once what it resumes from has been read and fits.

    Records the configuration, puts damaged checkpoints aside, and removes what an interrupted run left half-written or
    will make again.
    """
    for folder in opened.damaged:
        set_aside(folder)
    wanted = config.model_dump(mode="json")
    if read_json(run / CONFIG_FILE) != wanted:
        write_json(run / CONFIG_FILE, wanted)
    remove_leftovers(run)
    drop_snapshots_after(run, 0 if opened.whole is None else int(opened.whole.folder.name))


class MetricsLog:
    """``metrics.jsonl``: one JSON object a line, in order of images seen.

    Opening it for a resumed run drops half lines, and those that an interrupted run wrote after its last checkpoint.

    Attributes:
        waiting: lines that could not be written yet; the next write tries them again.
    """

    def __init__(self, run: Path, images: int, check: Callable[[], None] = lambda: None) -> None:
        """``check`` is called before each write, and raises ``OSError`` if it must not be."""
        self._path, self._check = run / METRICS_FILE, check
        self._size = 0
        self.waiting: list[bytes] = []
        if self._path.exists():
            lines = list(read_lines(self._path, LONGEST_LINE))
            kept = [line for line in lines if _is_before(line, images)]
            self._size = sum(map(len, kept))
            if kept != lines:
                with atomic_write(self._path) as file:
                    file.writelines(kept)

    def write(self, values: Mapping[str, Any]) -> None:
        """Append one line, after those that wait.

        Raises:
            OSError: it cannot be written; it waits, and of a half-written one nothing will stay.
        """
        self.waiting.append((json.dumps(dict(values), allow_nan=False) + "\n").encode())
        self.flush()

    def flush(self) -> None:
        """Write the lines that wait; ``OSError`` if they cannot be written."""
        if not self.waiting:
            return
        self._check()
        is_new = not self._path.exists()
        with os.fdopen(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
            start = min(self._size, file.seek(0, os.SEEK_END))
            file.truncate(start)
            file.seek(start)
            try:
                file.writelines(self.waiting)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                with contextlib.suppress(OSError):
                    os.truncate(file.fileno(), start)
                raise
        if is_new:
            sync_folder(self._path.parent)
        self._size, self.waiting = start + sum(map(len, self.waiting)), []


def _is_before(line: bytes, images: int) -> bool:
    try:
        return line.endswith(b"\n") and int(parse_json(line, METRICS_FILE)["images"]) <= images
    except (ValueError, KeyError, TypeError):
        return False
