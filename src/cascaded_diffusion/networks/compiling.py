"""A network through ``torch.compile``, for training and as CUDA graphs for sampling, and a cache of it that lasts."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cascaded_diffusion.cache import cache_folder
from cascaded_diffusion.errors import one_line

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
    compiler made is kept in the user's cache (or TORCHINDUCTOR_CACHE_DIR), for the next start.
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
    os.environ.setdefault(_CACHE, str(cache_folder() / "compiled"))


class _OrPlain:
    """Calls the compiled network, or the plain one once the compiler has failed."""

    def __init__(self, call: Callable[..., Tensor], network: nn.Module) -> None:
        self._call, self._network = call, network
        # The backward graph is compiled with the forward one, so that both can fail here, not in loss.backward().
        torch._functorch.config.force_non_lazy_backward_lowering = True

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        try:
            out: Tensor = self._call(*args, **kwargs)
            return out
        except (torch._dynamo.exc.TorchDynamoException, torch._inductor.exc.InductorError) as error:
            line = one_line(error, 300)
            warnings.warn(f"torch.compile failed ({line}); the network runs uncompiled, slower", stacklevel=2)
            self._call = self._network
        plain: Tensor = self._call(*args, **kwargs)
        return plain


class _FilledUp:
    """Gives a network batches of one size alone, and of half of it: guidance in an interval calls with both."""

    def __init__(self, call: Callable[..., Tensor]) -> None:
        self._call = call
        self._largest, self._halved = 0, False

    def __call__(self, x: Tensor, *args: Tensor, **kwargs: Tensor | None) -> Tensor:
        n = len(x)
        size = self._size(n)
        x, *args = (_filled(value, size) for value in (x, *args))  # type: ignore[assignment]
        kwargs = {key: None if value is None else _filled(value, size) for key, value in kwargs.items()}
        if x.device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()
        try:
            out = self._call(x, *args, **kwargs)
        except BaseException:
            # Out of memory, perhaps: a smaller batch must not be filled up to what did not fit.
            self._largest, self._halved = 0, False
            raise
        # A recorded graph writes its output to the same memory every time.
        return out[:n].clone() if x.device.type == "cuda" else out[:n]

    def _size(self, n: int) -> int:
        if n > self._largest:
            self._halved, self._largest = n == 2 * self._largest, n
        elif 2 * n == self._largest:
            self._halved = True
        half = self._largest // 2
        return half if self._halved and n <= half else self._largest


def _filled(value: Tensor, size: int) -> Tensor:
    """Repeats the first row; always in the same memory layout, for each would be a graph of its own."""
    if len(value) < size:
        value = torch.cat([value, value[:1].expand(size - len(value), *value.shape[1:])])
    return value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value
