"""A process that starts training commands and can be told where they die."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import pytest

# Processes of one launch meet at a store that the server holds, as torchrun's agent does: no port is guessed.
# Imports torch once and forks a child for every command: each is a process of its own, without the seconds of a start.
_SERVER = """
import contextlib, faulthandler, importlib, json, os, signal, sys, time
import torch
torch.set_num_threads(1)
import cascaded_diffusion.training.loop, cascaded_diffusion.recipes.recipe, cascaded_diffusion.cli.progress
from cascaded_diffusion.cli.app import main

from torch import distributed
torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])  # the first optimizer imports half of torch


def die_at(place, call):
    module, _, path = place.partition(":")
    *inner, name = path.split(".")
    owner = importlib.import_module(module)
    for part in inner:
        owner = getattr(owner, part)
    original, calls = getattr(owner, name), iter(range(call))

    def wrapper(*args, **kwargs):
        if next(calls) == call - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, name, wrapper)


def child(order, rank, store):
    world = order["ranks"]
    if world > 1:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0",
        }
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    faulthandler.dump_traceback_later(order["seconds"] - 2)
    if order["patch"]:
        exec(order["patch"], {"rank": rank})
    if order["die_at"] and rank == world - 1:
        die_at(*order["die_at"])
    try:
        main(order["arguments"])
    except SystemExit as end:
        code = end.code
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


def end_of(pids, seconds):
    # Ranks that do not agree wait for each other; that must fail a test, and not hang it.
    codes, deadline = {}, time.monotonic() + seconds
    while len(codes) < len(pids):
        for pid in pids:
            if pid not in codes:
                if time.monotonic() > deadline:
                    os.kill(pid, signal.SIGKILL)
                    late.append(pid)
                done, status = os.waitpid(pid, 0 if pid in late else os.WNOHANG)
                if done:
                    codes[pid] = "late" if pid in late else os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return [codes[pid] for pid in pids]


for line in sys.stdin:
    order, pids, store, late = json.loads(line), [], None, []
    for module in order["imports"]:
        importlib.import_module(module)
    if order["ranks"] > 1:
        store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for rank in range(order["ranks"]):
        pid = os.fork()
        if pid == 0:
            child(order, rank, store)
        pids.append(pid)
    print(*pids, flush=True)
    print(*end_of(pids, order["seconds"]), flush=True)
"""


_SECONDS = 60
"""What a command may take."""


class Commands:
    """Runs ``cdm`` commands, one after the other, each in its own process, or in several of one launch."""

    def __init__(self, log: Path) -> None:
        self.log = log
        log.touch()
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", _SERVER]
        self._server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._orders: IO[str] = self._server.stdin
        self._answers: IO[str] = self._server.stdout

    def start(self, arguments: list[str], die_at: tuple[str, int] | None = None) -> int:
        """Start a command and return its process id; ``die_at`` kills it at the n-th call of ``module:function``."""
        (pid,) = self.launch(1, arguments, die_at)
        return pid

    def launch(
        self,
        ranks: int,
        arguments: list[str],
        die_at: tuple[str, int] | None = None,
        patch: str = "",
        imports: Sequence[str] = (),
    ) -> list[int]:
        """Start a command as so many processes, as torchrun does, and return their ids.

        ``die_at`` is for the last of them; ``patch`` is Python for each to run first, which knows its ``rank``.
        ``imports`` is what they need that takes long: the server then has it for them and all that follow.
        """
        order = {"arguments": arguments, "log": str(self.log), "die_at": die_at, "ranks": ranks, "patch": patch}
        order |= {"seconds": _SECONDS, "imports": list(imports)}
        self._orders.write(json.dumps(order) + "\n")
        self._orders.flush()
        return list(map(int, self._answers.readline().split()))

    def wait(self) -> int:
        """The exit status of the command that was started; minus the signal that killed it."""
        (status,) = self.wait_all()
        return status

    def wait_all(self) -> list[int]:
        """As :meth:`wait`, of each process."""
        words = self._answers.readline().split()
        assert "late" not in words, f"killed after {_SECONDS} s: {words}\n{self.log.read_text()[-8000:]}"
        return list(map(int, words))

    def close(self) -> None:
        """End the server."""
        self._orders.close()
        self._answers.close()
        self._server.wait()


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    """Starts ``cdm`` commands as processes of their own."""
    server = Commands(tmp_path_factory.mktemp("commands") / "log.txt")
    yield server
    server.close()
