"""Stages that wait in host memory until they are at work, for devices that cannot hold all of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Self

import torch
from torch import Tensor

from cascaded_diffusion.cascade.stage import Stage
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.memory import free_memory

__all__ = ["OffloadedStages"]

_SPARE = 3
"""A stage is fetched ahead if this many times its weights are free; else the stage at work needs the room more."""


class OffloadedStages:
    """The weights of several stages in host memory, pinned for CUDA; on the device those of the stage at work.

    While a stage works, the next one's weights are copied beside it if there is room. Weights do not change in
    sampling, so nothing is ever copied back. Use it as a context manager: leaving it lets go of what was fetched for
    nothing.
    """

    def __init__(self, stages: Sequence[Stage], device: torch.device) -> None:
        """Move the stages' weights to the host.

        Raises:
            UserError: a stage is accelerated, so that a recorded graph may know where its weights were.
        """
        for stage in stages:
            if stage.is_accelerated:
                raise UserError(f"offload: {stage.name} is accelerated; off-load the cascade as it was loaded")
        for stage in stages:
            stage.waits_on_host = True
        self.device = device
        self._stages = {stage.name: stage for stage in stages}
        self._host = {stage.name: self._to_host(stage) for stage in stages}
        self._fetched: dict[str, list[Tensor]] = {}
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._fetched.clear()

    def _to_host(self, stage: Stage) -> list[Tensor]:
        host = []
        for tensor in self._tensors_of(stage):
            kept = tensor.detach().cpu()
            if self.device.type == "cuda" and not kept.is_pinned():
                kept = kept.pin_memory()
            tensor.data = kept
            host.append(kept)
        return host

    @staticmethod
    def _tensors_of(stage: Stage) -> list[Tensor]:
        networks = [stage.network] if stage.guide is None else [stage.network, stage.guide.network]
        return [tensor for network in networks for tensor in [*network.parameters(), *network.buffers()]]

    def _bytes(self, name: str) -> int:
        return sum(tensor.nbytes for tensor in self._host[name])

    def _fetch(self, name: str) -> None:
        """Begin to copy a stage's weights to the device, beside what it computes."""
        if name in self._fetched:
            return
        if self._side is None:
            self._fetched[name] = [self._copy(tensor) for tensor in self._host[name]]
            return
        with torch.cuda.stream(self._side):
            self._fetched[name] = [self._copy(tensor) for tensor in self._host[name]]

    def _copy(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=self._side is not None)

    def _has_room(self, name: str) -> bool:
        free = free_memory(self.device) if self.device.type in ("cuda", "mps") else None
        return free is None or free > _SPARE * self._bytes(name)

    @contextlib.contextmanager
    def at_work(self, name: str, following: str | None = None) -> Iterator[None]:
        """Have a stage's weights on the device for the length of the block; fetch those of the ``following`` one."""
        self._fetch(name)
        here = self._fetched.pop(name)
        if self._side is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(self._side)
            for tensor in here:
                tensor.record_stream(current)  # the memory is not given away while the stage computes with it
        tensors = self._tensors_of(self._stages[name])
        for tensor, value in zip(tensors, here, strict=True):
            tensor.data = value
        try:
            if following is not None and following != name and self._has_room(following):
                self._fetch(following)
            yield
        finally:
            for tensor, value in zip(tensors, self._host[name], strict=True):
                tensor.data = value
