"""What a run leaves behind on disk, and what becomes of it when the disk fails."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cascaded_diffusion.data.prepared import PreparedData
from cascaded_diffusion.errors import UserError, one_line
from cascaded_diffusion.files import reason
from cascaded_diffusion.memory import is_out_of_memory, release_cached
from cascaded_diffusion.ranks import current_ranks, from_main, on_main
from cascaded_diffusion.training.checkpoint import Whole, prune
from cascaded_diffusion.training.preview import preview_path, write_preview
from cascaded_diffusion.training.run import (
    Opened,
    RunLock,
    data_hash,
    open_run,
    refuse_changed,
    refuse_foreign,
    take_over,
)
from cascaded_diffusion.training.snapshots import write_snapshot
from cascaded_diffusion.training.state import Parts, TrainingState
from cascaded_diffusion.training.tracking.follow import RunLog, follow

__all__ = ["Keeper"]

_LOG = logging.getLogger(__name__)


class Keeper:
    """Writes a run's log, previews and checkpoints; of several processes, rank 0 alone.

    A write that fails is told in one line and tried again when the next of its kind is due; the run goes on, and what
    was there before stays. Only what cannot be saved at the end is an error.
    """

    def __init__(self, run: Path, state: TrainingState, data: PreparedData, trackers: Sequence[str] = ()) -> None:
        self._run, self._state, self._data, self._trackers = run, state, data, trackers
        self._data_hash = data_hash(state.config, data)
        self._saved: Path | None = None
        self._whole: set[Path] = set()
        self._pruned = False
        self._lock: RunLock | None = None
        self._log: RunLog | None = None

    @contextlib.contextmanager
    def hold(self, *, allow_changes: bool) -> Iterator[None]:
        """Hold the run folder, and take up its newest whole checkpoint; every process does the latter.

        Raises:
            UserError: the folder is held by another process, belongs to something else, or cannot be resumed.
        """
        with contextlib.ExitStack() as stack:

            def take() -> Opened:
                refuse_foreign(self._run)
                self._lock = stack.enter_context(RunLock(self._run))
                opened = open_run(self._run, self._state.config, allow_changes=allow_changes)
                if opened.whole is not None and not allow_changes:
                    self._check_data(opened.whole)
                return opened

            opened = from_main(take)
            found = opened.whole
            if found is not None:
                self._state.load(*found)
                self._saved = found.folder
                self._whole.add(found.folder)
            from_main(lambda: take_over(self._run, self._state.config, opened))
            if current_ranks().is_main:
                state = self._state
                self._log = stack.enter_context(
                    follow(self._run, state.config, state.images, self._trackers, check=self._check)
                )
            yield

    @property
    def saved_images(self) -> int | None:
        """Images seen at the last checkpoint that this process knows of."""
        return None if self._saved is None else int(self._saved.name)

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Write a line of metrics.jsonl."""
        if self._log is not None:
            try:
                self._log.write(metrics)
            except OSError as error:
                _LOG.warning("metrics.jsonl: cannot be written (%s); the line waits for the next", reason(error))

    def preview(self, stopped: Callable[[], bool] = lambda: False) -> None:
        """Sample with the averaged weights and write the picture; every process must ask for it.

        It is left out once ``stopped``, which is asked after every sampling step.
        """
        state, memory = self._state, None
        found = state.for_preview()
        if self._log is None or found is None:
            return
        network, weights = found
        try:
            self._check()
            path = write_preview(self._run, state.images, state.config, network, weights, self._data, stopped=stopped)
            if path is not None:
                self._log.picture(state.images, path)
        except OSError as error:
            self._missed("preview", reason(error))
        except UserError as error:  # the data, which training holds open, are gone or damaged in their place
            self._missed("preview", str(error))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            memory = "out of memory; a smaller training.preview_count needs less"
        if memory is not None:
            release_cached()
            self._missed("preview", memory)

    def lacks_preview(self) -> bool:
        """Whether there is no preview of this moment, the same on every process, each of which must ask."""
        return on_main(not preview_path(self._run, self._state.images).exists())

    def checkpoint(self) -> None:
        """Write a checkpoint; every process must ask for it.

        Raises:
            NotFiniteError: the state is not finite.
        """
        parts = self._state.gather()

        def write() -> Path | None:
            try:
                self._save(parts)
            except OSError as error:
                self._missed("checkpoint", f"{reason(error)}; {self.what_stands()}")
            return self._saved

        # Every process may come to tell what stands.
        self._saved = from_main(write)

    def snapshot(self) -> None:
        """Keep the power-function averages as they are now; every process must ask for it.

        Raises:
            NotFiniteError: they are not finite.
        """
        averages = self._state.gather_power()

        def write() -> None:
            assert averages is not None  # rank 0 has them
            self._state.check_finite((name, tensor) for one in averages.values() for name, tensor in one.items())
            try:
                self._check()
                write_snapshot(self._run, self._state.images, averages)
            except OSError as error:
                self._missed("snapshot", reason(error))

        from_main(write)

    def _check_data(self, found: Whole) -> None:
        """``UserError`` if the run was trained on other data so far: each of its positions would mean another image."""
        before = found.manifest.get("data")
        if before is not None and before != self._data_hash:  # older runs do not tell
            raise UserError(
                f"{self._run}: {self._data.folder} holds other training images than the run was trained on so far, or "
                "the same stored in another way; pass --allow-changes to go on with these"
            )
        refuse_changed(self._state.config, self._data)

    def _missed(self, what: str, why: str) -> None:
        _LOG.warning("the %s at %s images was not written (%s); the run goes on", what, f"{self._state.images:,}", why)

    def _save(self, parts: Parts | None = None) -> None:
        self._check()
        self._saved = self._state.save(self._run, parts, data=self._data_hash)
        self._whole.add(self._saved)
        self._prune()

    def _prune(self) -> None:
        self._pruned = True
        try:
            prune(self._run, self._state.config.training.keep_checkpoints, self._whole)
        except OSError as error:
            _LOG.warning("old checkpoints cannot be deleted (%s)", reason(error))

    def _check(self) -> None:
        if self._lock is not None:
            self._lock.check()

    def what_stands(self) -> str:
        """Words for the last checkpoint, and how much work it lacks."""
        saved = self.saved_images
        if saved is None:
            return "there is no checkpoint yet"
        lost = self._state.images - saved
        without = f", {lost:,} images of training are not in it" if lost else ""
        return f"the checkpoint at {saved:,} images stands{without}"

    def finish(self) -> Path:
        """Save what is not saved yet and return the last checkpoint; every process must ask for it.

        Raises:
            RuntimeError: that failed; the message says what is lost and what stands.
        """
        is_due = on_main(self.saved_images != self._state.images)
        parts = self._state.gather() if is_due else None

        def write() -> Path:
            try:
                if is_due:
                    self._save(parts)
                elif not self._pruned:  # one that died right after its last checkpoint has left one too many
                    self._prune()
            except OSError as error:
                name, images = self._state.config.name, self._state.images
                raise RuntimeError(
                    f"{name}: the state after {images:,} images could not be saved ({reason(error)}); "
                    f"{self.what_stands()}"
                ) from error
            assert self._saved is not None
            self._finish_log()
            return self._saved

        self._saved = from_main(write)
        return self._saved

    def _finish_log(self) -> None:
        try:
            if self._log is not None:
                self._log.flush()
        except OSError as error:
            assert self._log is not None
            raise RuntimeError(
                f"{self._state.config.name}: {self._log.waiting} lines of metrics.jsonl could not be written "
                f"({reason(error)}) and are lost; {self.what_stands()}"
            ) from error

    def rescue(self) -> str:
        """After a failure, and without the help of other processes: save what is not saved, and say what stands."""
        if self._log is None:
            return "rank 0 saves what there is"
        if self._state.images == 0:
            return "nothing was trained yet"
        try:
            if self.saved_images != self._state.images:
                if self._state.sharded:
                    return f"a part of the state is on each process, and not saved; {self.what_stands()}"
                self._save()
            self._log.flush()
        except (OSError, RuntimeError) as error:
            line = reason(error) if isinstance(error, OSError) else one_line(error, 200)
            return f"the state could not be saved ({line}); {self.what_stands()}"
        return f"all {self._state.images:,} images of training are saved"
