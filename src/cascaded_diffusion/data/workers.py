"""An ordered parallel map over worker processes that cannot outlive the run."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sized
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from cascaded_diffusion.errors import UserError

__all__ = ["WorkerPool"]

Task = TypeVar("Task")
Result = TypeVar("Result")


class WorkerPool:
    """Processes that apply picklable functions to tasks; with 0 or 1 of them, the work is done in this process.

    Started by ``spawn``, so no lock or thread of this process is copied into them. A script that calls this at its top
    level therefore needs the usual ``if __name__ == "__main__":``.
    """

    def __init__(self, workers: int | None) -> None:
        if workers is not None and workers < 0:
            raise UserError(f"workers: {workers}; give 0 or more (default: one per processor)")
        self.workers = (os.cpu_count() or 1) if workers is None else workers
        self._executor: ProcessPoolExecutor | None = None

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
            self._executor = None

    def map(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Generator[Result, None, None]:
        """Yield ``function(task)`` in the order of ``tasks``; only a few tasks and results per worker are waiting."""
        if self.workers <= 1 or (isinstance(tasks, Sized) and len(tasks) <= 1):
            yield from map(function, tasks)
            return
        if self._executor is None:
            context = multiprocessing.get_context("spawn")
            self._executor = ProcessPoolExecutor(self.workers, mp_context=context, initializer=_start_worker)
        waiting: deque[Future[Result]] = deque()
        try:
            for task in tasks:
                waiting.append(self._executor.submit(function, task))
                if len(waiting) > 3 * self.workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise RuntimeError("a worker process died, perhaps for lack of memory; try fewer workers") from None
        finally:
            for future in waiting:
                future.cancel()


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, and end with it even if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
