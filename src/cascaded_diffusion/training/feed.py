"""Batches made ahead of the step that needs them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, Self, TypeVar

__all__ = ["Feed"]

T = TypeVar("T")


class Feed(Generic[T]):
    """Gives ``make(part)`` for one part after the other, in order, whichever thread makes it.

    Use it as a context manager: leaving it ends the threads, also in the middle of the parts.
    """

    def __init__(self, make: Callable[[range], T], parts: Iterable[range], workers: int) -> None:
        """``workers`` threads work ahead, as many parts as there are threads and one; 0: the caller's does it all."""
        self._make, self._parts = make, iter(parts)
        self._depth = workers + 1
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="data") if workers else None
        self._ahead: deque[Future[T]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def take(self) -> T:
        """The next part's result; an error that a thread met is raised here.

        Raises:
            StopIteration: there are no more parts.
        """
        if self._pool is None:
            return self._make(next(self._parts))
        self._work_ahead(self._pool)
        if not self._ahead:
            raise StopIteration
        result = self._ahead.popleft().result()
        self._work_ahead(self._pool)
        return result

    def _work_ahead(self, pool: ThreadPoolExecutor) -> None:
        while len(self._ahead) < self._depth:
            part = next(self._parts, None)
            if part is None:
                return
            self._ahead.append(pool.submit(self._make, part))
