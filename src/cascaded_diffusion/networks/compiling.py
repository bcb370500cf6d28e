"""A network through ``torch.compile``: one graph, none for a last, smaller batch, and a cache that lasts."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

__all__ = ["CompileChoice", "compiled", "cuda_graphs", "wants_compiling"]

CompileChoice = Literal["auto", "on", "off"]

_CACHE = "TORCHINDUCTOR_CACHE_DIR"


def wants_compiling(choice: CompileChoice, device: torch.device) -> bool:
    """``auto`` compiles for CUDA alone: on a CPU compiling takes minutes and gains little."""
    return choice == "on" or (choice == "auto" and device.type == "cuda")


def compiled(
    network: nn.Module, choice: CompileChoice, device: torch.device, *, backend: str | Callable[..., Any] = "inductor"
) -> Callable[..., Tensor]:
    """``network`` to be called as before, compiled if ``choice`` says so for this device.

    The graph of the first batch size serves that size; a second size makes one graph for all others. What the
    compiler made is kept in ``~/.cache/cascaded-diffusion/compiled`` (or TORCHINDUCTOR_CACHE_DIR), for the next start.
    With ``auto``, a compiler that fails is told in a warning and done without; with ``on`` it is an error.
    """
    if not wants_compiling(choice, device):
        return network
    _keep_cache()
    call: Callable[..., Tensor] = torch.compile(network, fullgraph=True, backend=backend)
    return call if choice == "on" else _OrPlain(call, network)


def cuda_graphs(
    network: nn.Module, choice: CompileChoice, device: torch.device, *, backend: str | Callable[..., Any] | None = None
) -> Callable[..., Tensor]:
    """Like :func:`compiled`, for sampling without gradients: recorded once as CUDA graphs where there is CUDA.

    A graph holds for one batch size, so a smaller batch is filled up to the largest so far and cut again.
    """
    if not wants_compiling(choice, device):
        return network
    _keep_cache()
    if backend is None and device.type == "cuda":
        call: Callable[..., Tensor] = torch.compile(network, fullgraph=True, dynamic=False, mode="reduce-overhead")
    else:
        call = torch.compile(network, fullgraph=True, dynamic=False, backend=backend or "inductor")
    filled = _FilledUp(call)
    return filled if choice == "on" else _OrPlain(filled, network)


def _keep_cache() -> None:
    """torch's own place for it is in the temporary folder, which is empty after a restart."""
    os.environ.setdefault(_CACHE, str(Path.home() / ".cache" / "cascaded-diffusion" / "compiled"))


class _OrPlain:
    """Calls the compiled network, or the plain one once the compiler has failed."""

    def __init__(self, call: Callable[..., Tensor], network: nn.Module) -> None:
        self._call, self._network = call, network
        self._tried = False

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        if self._tried:
            return self._call(*args, **kwargs)
        try:
            out = self._call(*args, **kwargs)
        except (torch._dynamo.exc.TorchDynamoException, torch._inductor.exc.InductorError) as error:
            line = " ".join(str(error).split())[:300]
            warnings.warn(f"torch.compile failed ({line}); the network runs uncompiled, slower", stacklevel=2)
            self._call = self._network
            out = self._network(*args, **kwargs)
        self._tried = True
        return out


class _FilledUp:
    """Gives a network batches of one size alone."""

    def __init__(self, call: Callable[..., Tensor]) -> None:
        self._call = call
        self._size = 0

    def __call__(self, x: Tensor, *args: Tensor, **kwargs: Tensor | None) -> Tensor:
        n = len(x)
        self._size = max(self._size, n)
        x, *args = (self._filled(value) for value in (x, *args))  # type: ignore[assignment]
        kwargs = {key: None if value is None else self._filled(value) for key, value in kwargs.items()}
        if x.device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()
        out = self._call(x, *args, **kwargs)
        # A recorded graph answers into the same memory every time.
        return out[:n].clone() if x.device.type == "cuda" else out[:n]

    def _filled(self, value: Tensor) -> Tensor:
        """Repeats the first row; always in the same memory layout, for each would be a graph of its own."""
        if len(value) < self._size:
            value = torch.cat([value, value[:1].expand(self._size - len(value), *value.shape[1:])])
        return value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value
