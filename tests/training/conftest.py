"""A process that starts training commands and can be told where they die."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

# Imports torch once and forks a child for every command: each is a process of its own, without the seconds of a start.
_SERVER = """
import contextlib, importlib, json, os, signal, sys
import torch
torch.set_num_threads(1)
import cascaded_diffusion.training.loop, cascaded_diffusion.recipes.recipe, cascaded_diffusion.cli.progress
from cascaded_diffusion.cli.app import main

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


def child(order):
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if order["die_at"]:
        die_at(*order["die_at"])
    try:
        main(order["arguments"])
    except SystemExit as end:
        code = end.code
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        child(json.loads(line))
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Commands:
    """Runs ``cdm`` commands, one after the other, each in its own process."""

    def __init__(self, log: Path) -> None:
        self.log = log
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
        order: dict[str, Any] = {"arguments": arguments, "log": str(self.log), "die_at": die_at}
        self._orders.write(json.dumps(order) + "\n")
        self._orders.flush()
        return int(self._answers.readline())

    def wait(self) -> int:
        """The exit status of the command that was started; minus the signal that killed it."""
        return int(self._answers.readline())

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
