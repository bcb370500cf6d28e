"""Running out of memory: telling it from other failures, and giving back what can be given back."""

from __future__ import annotations

import torch

__all__ = ["is_out_of_memory", "release_cached"]

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
