"""The machine's memory: how much there is, running out of it, and when what is no longer needed is given back."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import torch

__all__ = ["free_memory", "is_out_of_memory", "keep_freed", "release_cached", "total_memory"]

# What allocators say that raise a plain RuntimeError: the CPU's, MPS's, C++'s own, and the libraries of CUDA.
_WORDS = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "std::bad_alloc",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on whatever device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)


def release_cached() -> None:
    """Give the accelerator's cached, unused memory back, so that the next try can cut it anew.

    Call it when the failed try's tensors are gone: outside the ``except`` block, whose error holds on to them.
    """
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()


# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed() -> bool:
    """Let this process keep the main memory that it frees, for its next use; for training on a CPU.

    A step frees its activations, and glibc gives large ones back to the system, which must clear every page of them
    for the next step: a sixth of a step's time (docs/performance.md). The price is memory lost between pieces.

    Returns:
        Whether the C library is one that can be told so.
    """
    if not sys.platform.startswith("linux"):
        return False
    # musl has no such call.
    tell = getattr(ctypes.CDLL(None), "mallopt", None)
    return tell is not None and bool(tell(_M_MMAP_MAX, 0)) and bool(tell(_M_TRIM_THRESHOLD, -1))


def free_memory(device: torch.device) -> int | None:
    """Bytes that could be taken on a device now, those that torch holds unused included; ``None``: unknown."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory()) - int(torch.mps.current_allocated_memory())
    return _meminfo("MemAvailable")


def total_memory(device: torch.device) -> int | None:
    """Bytes of a device's memory, whoever uses them; ``None``: unknown."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory())
    return _meminfo("MemTotal")


def _meminfo(key: str) -> int | None:
    """A line of Linux's own account, in bytes."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return None
