"""Processes that are made to be killed.

A start of Python with torch takes seconds, nearly all of them before the command touches a file. So this process
imports everything once and forks a child for every attempt; each child is a process of its own, and dies as one. A few
attempts are started anew all the same, by the interpreter or by torchrun, to show that forking makes no difference.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Order", "Running", "start", "warm_up"]

_MODULES = (
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "cascaded_diffusion.cascade.search",
    "cascaded_diffusion.cascade.search_write",
    "cascaded_diffusion.cascade.show",
    "cascaded_diffusion.cli.app",
    "cascaded_diffusion.cli.progress",
    "cascaded_diffusion.data.prepare",
    "cascaded_diffusion.recipes.recipe",
    "cascaded_diffusion.samples",
    "cascaded_diffusion.training.loop",
    "shellingham",
    "torch.utils.data",
)
_CHANGING = frozenset({"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.link", "os.symlink"})
_GRACE_S = 10.0  # between a launcher's SIGTERM and its SIGKILL to the ranks that are left


def warm_up() -> None:
    """Import what the commands will need, and nothing that starts a thread."""
    import torch

    torch.set_num_threads(1)
    for name in _MODULES:
        importlib.import_module(name)
    torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])  # the first optimizer imports half of torch
    importlib.import_module("cascaded_diffusion.cli.progress").ProgressDisplay()  # and this, rich


@dataclass(frozen=True)
class Order:
    """One attempt at a command.

    Attributes:
        arguments: of ``cdm``.
        folder: where it runs; all that it writes is in there.
        log: its output is appended to this file.
        ranks: processes that work together, as torchrun starts them.
        anew: start the interpreter, not a fork of this process.
        die_at: SIGKILL before this file-system operation, counted from 1, of the (first) process.
    """

    arguments: tuple[str, ...]
    folder: Path
    log: Path
    ranks: int = 1
    anew: bool = False
    die_at: int | None = None

    @property
    def count_file(self) -> Path:
        """Where the (first) process says at its end how many file-system operations it made."""
        return self.log.with_suffix(".operations")


@dataclass
class Running:
    """An attempt that was started."""

    order: Order
    pids: list[int]
    statuses: dict[int, int] = field(default_factory=dict)
    """Of the processes that have ended; minus the signal that killed it."""
    started: float = field(default_factory=time.monotonic)
    told_to_end: bool = False
    """Whether some were sent SIGTERM because another had ended with an error."""

    def ended(self) -> bool:
        """Whether all processes have."""
        for pid in self.pids:
            if pid not in self.statuses:
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    self.statuses[pid] = os.waitstatus_to_exitcode(status)
        return len(self.statuses) == len(self.pids)

    def wait(self, seconds: float) -> bool:
        """Wait at most so long for the end; where one of several ranks fails, end the others as a launcher does."""
        deadline = time.monotonic() + seconds
        while not self.ended():
            if any(self.statuses.values()):
                self._end_others()
                return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.002)
        return True

    def send(self, number: int) -> None:
        """Send a signal to every process."""
        for pid in self.pids:
            if pid not in self.statuses:
                os.kill(pid, number)

    def kill(self, rank: int | None = None) -> None:
        """SIGKILL to all at once, with the processes that they have started, or to one rank alone."""
        if rank is not None:
            os.kill(self.pids[rank], signal.SIGKILL)
            self.wait(60)
            return
        # Those that torchrun starts are in sessions of their own, and would go on training without it.
        others = _descendants(self.pids)
        for pid in self.pids:
            if pid not in self.statuses:
                os.killpg(pid, signal.SIGKILL)
        for pid in others:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._reap()

    def _end_others(self) -> None:
        self.told_to_end = not self.ended()
        self.send(signal.SIGTERM)
        deadline = time.monotonic() + _GRACE_S
        while not self.ended() and time.monotonic() < deadline:
            time.sleep(0.002)
        self.send(signal.SIGKILL)
        self._reap()

    def _reap(self) -> None:
        while not self.ended():
            time.sleep(0.002)

    @property
    def status(self) -> int:
        """The first process's exit status."""
        return self.statuses[self.pids[0]]


def _descendants(pids: Sequence[int]) -> list[int]:
    """Processes that these have started, and those that they have, from the process table."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The name, in parentheses, may hold anything; the state and the parent follow it.
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    found, newest = [], list(pids)
    while newest:
        newest = [pid for pid, parent in parents.items() if parent in newest]
        found += newest
    return found


def start(order: Order) -> Running:
    """Start the processes of an order."""
    if order.anew:
        return Running(order, [_start_anew(order)])
    environments = [_launch(rank, order.ranks, _free_port()) for rank in range(order.ranks)]
    if order.ranks > 1:
        environments = [{**each, "MASTER_PORT": environments[0]["MASTER_PORT"]} for each in environments]
    sys.stdout.flush()
    pids = []
    for rank, environment in enumerate(environments):
        pid = os.fork()
        if pid == 0:
            _child(order, rank, environment)
        pids.append(pid)
    return Running(order, pids)


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def _launch(rank: int, world: int, port: str) -> dict[str, str]:
    """What torchrun tells a process in its environment."""
    if world == 1:
        return {}
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} | {name: str(value) for name, value in numbers.items()}


def _start_anew(order: Order) -> int:
    launcher = ["-m"]
    if order.ranks > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(order.ranks), "-m", "--"]
    command = [sys.executable, *launcher, "cascaded_diffusion", *order.arguments]
    with order.log.open("ab") as log:
        process = subprocess.Popen(
            command, cwd=order.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0
        )
    process.returncode = 0  # this module waits for it; Popen must not
    return process.pid


def _child(order: Order, rank: int, environment: dict[str, str]) -> None:
    """The life of a forked process; it does not return."""
    status = 1
    try:
        os.setpgid(0, 0)
        os.chdir(order.folder)
        log = os.open(order.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for descriptor in (1, 2):
            os.dup2(log, descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.update(environment)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        count = _watch_files(order) if rank == 0 else lambda: 0
        import torch

        from cascaded_diffusion.cli.app import main

        # torch replaces a pool of threads that it finds after a fork; two threads that come upon it at once would fail.
        torch.set_num_threads(1)

        try:
            main(list(order.arguments))
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        total = count()
        if rank == 0:
            order.count_file.write_text(str(total))
    except KeyboardInterrupt:
        status = 130
    except BaseException:  # noqa: BLE001 - told, and the process ends
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _watch_files(order: Order) -> Callable[[], int]:
    """Count the operations that change files in the order's folder, and die before the one that was named."""
    folder = str(order.folder)
    done = 0
    sync = os.fsync

    def count() -> None:
        nonlocal done
        done += 1
        if done == order.die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _CHANGING or (event == "open" and _opens_to_write(folder, *arguments)):
            count()

    def counted_sync(fd: Any) -> None:
        count()
        sync(fd)

    sys.addaudithook(hook)
    os.fsync = counted_sync
    return lambda: done


def _opens_to_write(folder: str, path: Any, mode: Any, flags: int) -> bool:
    to_write = isinstance(path, str | bytes) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    return bool(to_write) and os.path.abspath(os.fsdecode(path)).startswith(folder)
