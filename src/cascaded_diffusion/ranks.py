"""The processes of one ``torchrun`` launch: who am I, which share of the work is mine, and how results come together.

A single process needs no process group, and every function here is then the identity. Between processes everything
travels through main memory (gloo), whatever device the work is done on.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple, TypeVar, cast

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed import PrefixStore, Store, rendezvous  # type: ignore[attr-defined]

from cascaded_diffusion.errors import UserError, one_line

__all__ = [
    "LostRankError",
    "Ranks",
    "add_in_place",
    "add_up",
    "barrier",
    "current_ranks",
    "from_main",
    "gather_objects",
    "gather_rows",
    "highest",
    "launched_ranks",
    "on_main",
    "together",
]

T = TypeVar("T")

# One rank may write or score for long while the others wait. A process that dies closes its connections, which the
# others notice at once; this limit is for a machine that falls silent.
_TIMEOUT = timedelta(hours=12)
_MEETING = timedelta(minutes=10)
_TIMEOUT_VARIABLE = "CDM_RANK_TIMEOUT"

# What sharded training leaves in torch's caches keeps the group's threads alive; this long they get to drop their last
# tensors, for which they need the interpreter.
_LETTING_GO = 0.05

_PACKET = 2**23
"""Numbers that travel together: 32 MiB of float32."""


class LostRankError(RuntimeError):
    """Another process of this launch has ended, or does not answer."""


class Ranks(NamedTuple):
    """This process's number, in [0, world), and the number of processes."""

    rank: int
    world: int

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes and reports."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """This process's part of ``range(count)``: contiguous, in the order of ranks, sizes differing by at most 1."""
        return range(count * self.rank // self.world, count * (self.rank + 1) // self.world)


def _grouped() -> bool:
    return dist.is_available() and dist.is_initialized()


def current_ranks() -> Ranks:
    """(0, 1) unless a process group is initialised."""
    return Ranks(dist.get_rank(), dist.get_world_size()) if _grouped() else Ranks(0, 1)


def _launch_variable(name: str) -> int:
    given = os.environ.get(name, "")
    if not given.isascii() or not given.isdigit():
        raise UserError(f"environment variable {name}: {given!r} is not a number; start processes with torchrun")
    return int(given)


def _take_gpu(device: torch.device) -> None:
    local = _launch_variable("LOCAL_RANK")
    if str(device) != "cuda" and _launch_variable("LOCAL_WORLD_SIZE") > 1:
        raise UserError(f"device: {device} for each of several processes; give cuda, every process takes its own GPU")
    index = local if str(device) == "cuda" else device.index
    if index >= torch.cuda.device_count():
        raise UserError(f"device: process {local} of this machine wants GPU {index} of {torch.cuda.device_count()}")
    torch.cuda.set_device(index)


def _timeout(usual: timedelta) -> timedelta:
    given = os.environ.get(_TIMEOUT_VARIABLE)
    if given is None:
        return usual
    if not given.isascii() or not given.isdigit() or not 1 <= int(given) <= 10**7:
        raise UserError(f"environment variable {_TIMEOUT_VARIABLE}: {given!r} is not allowed; give seconds from 1")
    return timedelta(seconds=int(given))


def _store(rank: int, world: int, limit: timedelta) -> Store:
    """Where the processes find each other, under a name of its own for every start of the launch.

    torchrun's static rendezvous keeps one store over all restarts: without the name, processes that were started again
    would look for those that are gone.
    """
    # A launcher that is killed leaves processes behind that still look for it.
    store, _, _ = next(iter(rendezvous("env://", rank, world, timeout=min(limit, _MEETING))))
    store.set_timeout(limit)
    return PrefixStore(f"start/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


@contextmanager
def launched_ranks(device: torch.device, timeout: timedelta = _TIMEOUT) -> Iterator[Ranks]:
    """Join the other processes of a ``torchrun`` launch for the length of the block.

    Without a launch, or in a launch of one process, nothing is initialised. ``cuda`` comes to mean the GPU of this
    process's local rank.

    Args:
        device: what this process computes on.
        timeout: how long a process waits for the others before it takes one for lost; the environment variable
            ``CDM_RANK_TIMEOUT``, in seconds, goes before it.

    Raises:
        UserError: the launcher's environment variables are incomplete, there are fewer GPUs than processes, or one GPU
            is named for all of them.
    """
    if _grouped() or "WORLD_SIZE" not in os.environ or _launch_variable("WORLD_SIZE") == 1:
        yield current_ranks()
        return
    rank, world = _launch_variable("RANK"), _launch_variable("WORLD_SIZE")
    if not os.environ.get("MASTER_ADDR"):
        raise UserError("environment variable MASTER_ADDR: missing; start several processes with torchrun")
    backend = "gloo"
    if device.type == "cuda":
        _take_gpu(device)
        # Each kind of tensor by its own library; nothing here sends GPU tensors, but training may.
        backend = "cpu:gloo,cuda:nccl"
    limit = _timeout(timeout)
    # Its functions take the group of the moment of import as a default, and what holds the group keeps it from ending
    # its threads: one that lets go of a tensor while the interpreter ends aborts the process. torch's optimisers import
    # it when they are first made, which is too late.
    importlib.import_module("torch.distributed.nn")
    dist.init_process_group(backend, store=_store(rank, world, limit), rank=rank, world_size=world, timeout=limit)
    try:
        yield Ranks(rank, world)
    finally:
        dist.destroy_process_group()
        time.sleep(_LETTING_GO)


_LOST_WORDS = ("gloo", "nccl", "connection", "socket", "timed out", "process group")


@contextmanager
def together() -> Iterator[None]:
    """For work that talks to the other processes: one that ends takes the connection with it.

    Raises:
        LostRankError: for what the network layer makes of that. Every other error stays what it is.
    """
    try:
        yield
    except RuntimeError as error:
        line = one_line(error)
        lost = isinstance(error, dist.DistError) or any(words in line.lower() for words in _LOST_WORDS)
        if isinstance(error, LostRankError) or current_ranks().world == 1 or not lost:
            raise
        raise LostRankError(
            f"another process of this launch has ended; its own message says why ({line[:200]})"
        ) from error


def gather_objects(local: T) -> list[T]:
    """What every process gives, in the order of ranks, on every process; it must be picklable, and is trusted."""
    world = current_ranks().world
    everyone: list[T] = [local] * world
    if world > 1:
        with together():
            dist.all_gather_object(everyone, local)
    return everyone


def gather_rows(local: Tensor) -> Tensor:
    """The rows of all processes in the order of ranks, on every process and on ``local``'s device.

    Args:
        local: (n, ...), any number of rows, 0 included; the other dimensions and the type are the same everywhere.

    Returns:
        (sum of n, ...); ``local`` itself in a single process.

    Raises:
        ValueError: types or row shapes differ between processes (raised on each of them).
    """
    if current_ranks().world == 1:
        return local
    forms = gather_objects((str(local.dtype), tuple(local.shape)))
    if len({(dtype, shape[1:]) for dtype, shape in forms}) != 1:
        raise ValueError(f"rows to gather: (type, shape) differ between ranks: {forms}")
    counts = [shape[0] for _, shape in forms]
    # Collectives want one shape everywhere: short parts are padded, and cut again on arrival.
    padded = torch.zeros((max(counts), *local.shape[1:]), dtype=local.dtype)
    padded[: local.shape[0]] = local.detach().cpu()
    parts = [torch.empty_like(padded) for _ in counts]
    with together():
        dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts)]).to(local.device)


def add_up(tensor: Tensor) -> Tensor:
    """Sum over the processes of tensors of one shape, in float64, the same bits on every process."""
    total = tensor.detach().to(torch.float64, copy=True)
    if current_ranks().world == 1:
        return total
    on_cpu = total.cpu()
    with together():
        dist.all_reduce(on_cpu)
    return on_cpu.to(tensor.device)


def add_in_place(tensors: Sequence[Tensor]) -> None:
    """Replace each of the tensors by its sum over the processes, in its own type, where it lies.

    The tensors travel in packets that depend on their sizes and order alone, so that a run that is resumed on as many
    processes sums in the order in which it would have summed; DistributedDataParallel packs anew after its first step.

    Args:
        tensors: of one type and device, the same shapes in the same order on every process.
    """
    if current_ranks().world == 1:
        return
    packets: list[list[Tensor]] = [[]]
    for tensor in tensors:
        if packets[-1] and sum(other.numel() for other in packets[-1]) + tensor.numel() > _PACKET:
            packets.append([])
        packets[-1].append(tensor)
    for packet in packets:
        _add_packet(packet)


@torch.no_grad()
def _add_packet(packet: Sequence[Tensor]) -> None:
    flat = torch.cat([tensor.reshape(-1) for tensor in packet])
    with together():
        dist.all_reduce(flat)
    for tensor, part in zip(packet, flat.split([tensor.numel() for tensor in packet]), strict=True):
        tensor.copy_(part.view_as(tensor))


def highest(*values: int) -> tuple[int, ...]:
    """The largest of each value over the processes, on every process."""
    if current_ranks().world == 1:
        return values
    told = torch.tensor(values, dtype=torch.int64)
    with together():
        dist.all_reduce(told, op=dist.ReduceOp.MAX)
    return tuple(told.tolist())


def on_main(value: T | None) -> T:
    """Rank 0's ``value`` on every process; what the others give is ignored."""
    if current_ranks().world == 1:
        return cast(T, value)
    box: list[T | None] = [value]
    with together():
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return cast(T, box[0])


def from_main(work: Callable[[], T]) -> T:
    """What ``work`` gives on rank 0, on every process; the others do not call it.

    Raises:
        UserError: if it raised one; on every process, so that all of them end alike.
        RuntimeError: if it raised that or an ``OSError``.
    """
    ranks = current_ranks()
    if ranks.world == 1:
        return work()
    if not ranks.is_main:
        value, problem, is_users = on_main(cast("tuple[T, str | None, bool]", None))
        if problem is not None:
            raise UserError(problem) if is_users else RuntimeError(problem)
        return value
    try:
        result = work()
    except (UserError, RuntimeError, OSError) as error:
        on_main((None, str(error), isinstance(error, UserError)))
        raise
    on_main((result, None, False))
    return result


def barrier() -> None:
    """Wait until every process has come this far."""
    # A sum over the CPU's backend: the library's barrier would want every process to own a GPU.
    if current_ranks().world > 1:
        add_up(torch.zeros(1))
