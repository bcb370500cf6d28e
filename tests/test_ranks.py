"""Processes of one launch: shares, gathering, sums. Two of them talk over the loopback interface."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from cascaded_diffusion.errors import UserError
from cascaded_diffusion.ranks import Ranks, add_up, barrier, current_ranks, gather_rows, launched_ranks, on_main

CPU = torch.device("cpu")

SCRIPT = """
import json, sys
from pathlib import Path
import torch
from cascaded_diffusion.ranks import add_up, barrier, current_ranks, gather_rows, launched_ranks, on_main

with launched_ranks(torch.device("cpu")) as ranks:
    me, said = ranks.rank, {"ranks": list(current_ranks()), "main": ranks.is_main}
    rows = torch.arange(10).reshape(5, 2)
    mine = rows[:4] if me == 0 else rows[4:]
    for kind in (torch.float32, torch.float64, torch.int64, torch.uint8):
        gathered = gather_rows(mine.to(kind))
        assert gathered.dtype == kind
        said[str(kind)] = gathered.tolist()
    said["none"] = gather_rows(rows[:0] if me == 0 else rows[:2]).tolist()
    said["nobody"] = list(gather_rows(rows[:0]).shape)
    with launched_ranks(torch.device("cpu")) as inner:
        said["inner"] = list(inner)
    try:
        gather_rows(torch.zeros(2, 3 + me))
    except ValueError as error:
        said["shapes"] = str(error)
    given = torch.tensor([1.0, 0.1], dtype=torch.float32) * (me + 1)
    said["sum"] = add_up(given).tolist()
    said["given"] = given.tolist()
    said["word"] = on_main({"word": 7} if me == 0 else None)
    barrier()
    weight = torch.nn.Parameter(torch.ones(1))
    weight.sum().backward()
    torch.optim.Adam([weight]).step()
tasks = Path("/proc/self/task")
said["threads"] = [task.joinpath("comm").read_text().strip() for task in tasks.iterdir()] if tasks.exists() else []
said["after"] = list(current_ranks())
(Path(sys.argv[1]) / f"{me}.json").write_text(json.dumps(said))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes saw."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "script.py").write_text(SCRIPT)
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    where = ["--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"]
    command = [sys.executable, *launch, *where, str(folder / "script.py"), str(folder)]
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [0, 1, 5, 21, 100])
def test_shares_are_all_of_it_in_order(count: int, world: int) -> None:
    shares = [Ranks(rank, world).share(count) for rank in range(world)]
    assert [i for share in shares for i in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_one_process_needs_no_group() -> None:
    assert current_ranks() == (0, 1)
    assert current_ranks().is_main
    rows = torch.ones(3, 2)
    assert gather_rows(rows) is rows
    assert on_main("word") == "word"
    total = add_up(rows)
    assert total.dtype == torch.float64
    assert torch.equal(total, rows.double())
    total += 1
    assert torch.equal(rows, torch.ones(3, 2))
    exact = torch.ones(2, dtype=torch.float64)
    assert add_up(exact) is not exact
    barrier()


def test_without_a_launch_nothing_is_initialised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with launched_ranks(CPU) as ranks:
        assert ranks == (0, 1)
        assert not torch.distributed.is_initialized()
    monkeypatch.setenv("WORLD_SIZE", "1")
    with launched_ranks(CPU) as ranks:
        assert ranks == (0, 1)
        assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(
    "variables, message",
    [
        ({"WORLD_SIZE": "two"}, "environment variable WORLD_SIZE: 'two' is not a number"),
        ({"WORLD_SIZE": "2"}, "environment variable RANK: '' is not a number"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "environment variable MASTER_ADDR: missing"),
    ],
)
def test_half_a_launch_is_refused(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str) -> None:
    for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message), launched_ranks(CPU):
        pass


@pytest.mark.parametrize("given", ["", "0", "-1", "1.5", "soon", "99999999"])
def test_a_limit_on_waiting_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    launch = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "CDM_RANK_TIMEOUT": given}
    for name, value in launch.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"CDM_RANK_TIMEOUT: '{given}' is not allowed"), launched_ranks(CPU):
        pass


def test_one_gpu_for_all_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    launch = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    for name, value in launch.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="device: cuda:0 for each of several"), launched_ranks(torch.device("cuda:0")):
        pass
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with (
        pytest.raises(UserError, match="device: process 1 of this machine wants GPU 1 of 1"),
        launched_ranks(torch.device("cuda")),
    ):
        pass


def test_two_processes_know_their_numbers(told: list[dict[str, Any]]) -> None:
    assert [said["ranks"] for said in told] == [[0, 2], [1, 2]]
    assert [said["inner"] for said in told] == [[0, 2], [1, 2]]
    assert [said["main"] for said in told] == [True, False]
    assert [said["after"] for said in told] == [[0, 1], [0, 1]]


@pytest.mark.parametrize("kind", ["torch.float32", "torch.float64", "torch.int64", "torch.uint8"])
def test_rows_of_two_processes_come_in_order(told: list[dict[str, Any]], kind: str) -> None:
    for said in told:
        assert said[kind] == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]


def test_a_process_may_have_no_rows(told: list[dict[str, Any]]) -> None:
    for said in told:
        assert said["none"] == [[0, 1], [2, 3]]
        assert said["nobody"] == [0, 2]


def test_rows_of_differing_shape_are_refused_by_every_process(told: list[dict[str, Any]]) -> None:
    for said in told:
        assert "rows to gather: (type, shape) differ between ranks" in said["shapes"]


def test_no_thread_outlives_the_group(told: list[dict[str, Any]]) -> None:
    """One that drops a tensor while the interpreter ends would abort the process."""
    for said in told:
        assert [name for name in said["threads"] if "gloo" in name] == []


def test_sums_and_words_reach_every_process(told: list[dict[str, Any]]) -> None:
    for rank, said in enumerate(told):
        assert said["sum"] == pytest.approx([3, 0.3], rel=1e-7)
        assert said["given"] == pytest.approx([rank + 1, 0.1 * (rank + 1)])
        assert said["word"] == {"word": 7}
