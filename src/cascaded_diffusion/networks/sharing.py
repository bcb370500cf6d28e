"""One share of a batch for each processor core, each worked on by one thread from end to end.

torch divides every single operation among its threads and waits for the slowest. Where many short operations follow
one another in a core's cache, it is better to divide the images and to wait once.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

__all__ = ["in_shares"]

_LOCK = threading.Lock()
_POOL: dict[int, ThreadPoolExecutor] = {}
# A forked child has none of its parent's threads.
os.register_at_fork(after_in_child=_POOL.clear)


def in_shares(work: Callable[[range], None], count: int) -> None:
    """Call ``work`` with ranges that together are 0 ... count - 1, at the same time, one for each of torch's threads.

    The ranges depend on ``count`` and torch's number of threads alone. What ``work`` raises is raised here.
    """
    threads = min(torch.get_num_threads(), count)
    if threads < 2:
        work(range(count))
        return
    bounds = [count * i // threads for i in range(threads + 1)]
    inference = torch.is_inference_mode_enabled()

    def share(i: int) -> None:
        with torch.inference_mode(inference), torch.no_grad():
            work(range(bounds[i], bounds[i + 1]))

    for done in [_pool(threads).submit(share, i) for i in range(threads)]:
        done.result()


def _pool(threads: int) -> ThreadPoolExecutor:
    with _LOCK:
        if threads not in _POOL:
            _POOL[threads] = _started(threads)
        return _POOL[threads]


def _started(threads: int) -> ThreadPoolExecutor:
    """A pool whose threads each use one core."""
    own = torch.get_num_threads()
    meeting = threading.Barrier(threads)

    def settle() -> None:
        torch.set_num_threads(1)
        meeting.wait()

    pool = ThreadPoolExecutor(threads, thread_name_prefix="cascaded-diffusion")
    for done in [pool.submit(settle) for _ in range(threads)]:
        done.result()
    # torch keeps the number for each thread, but gives new threads the one that was set last.
    torch.set_num_threads(own)
    return pool
