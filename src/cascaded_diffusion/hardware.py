"""GPUs by name: their memory, and how fast they multiply matrices."""

from __future__ import annotations

import re
from dataclasses import dataclass

from cascaded_diffusion.errors import UserError

__all__ = ["GPUS", "Gpu", "detect_gpu", "find_gpu"]

DEFAULT_GPU = "h100"


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU.

    Attributes:
        name: as ``--gpu`` takes it.
        memory: bytes. The makers' GB are counted as 10^9 bytes, which leaves the driver its share.
        peak: dense bf16 matrix products with float32 sums, FLOP/s.
        source: where both come from.
    """

    name: str
    memory: int
    peak: float
    source: str


def _gpu(name: str, gigabytes: int, tflops: float, source: str) -> Gpu:
    return Gpu(name, gigabytes * 10**9, tflops * 1e12, source)


_KNOWN = (
    _gpu("a100", 80, 312, "NVIDIA A100 80GB data sheet"),
    _gpu("a100-40gb", 40, 312, "NVIDIA A100 40GB data sheet"),
    _gpu("h100", 80, 989, "NVIDIA H100 SXM data sheet, half of the rate with sparsity"),
    _gpu("h200", 141, 989, "NVIDIA H200 SXM data sheet, half of the rate with sparsity"),
    _gpu("b200", 180, 2250, "NVIDIA DGX B200 data sheet, an eighth of the system, half of the rate with sparsity"),
    _gpu("l4", 24, 121, "NVIDIA L4 data sheet, half of the rate with sparsity"),
    _gpu("l40s", 48, 362, "NVIDIA L40S data sheet"),
    _gpu("a10", 24, 125, "NVIDIA A10 data sheet"),
    _gpu("rtx3090", 24, 71, "NVIDIA Ampere GA102 white paper"),
    _gpu("rtx4090", 24, 165, "NVIDIA Ada white paper"),
    _gpu("rtx5090", 32, 209, "NVIDIA RTX Blackwell white paper"),
    _gpu("mi300x", 192, 1307, "AMD MI300X data sheet"),
)
GPUS = {gpu.name: gpu for gpu in _KNOWN}


_OTHER_RATES = {"laptop", "max", "nvl", "d"}
"""Words that follow the name of a GPU that is known and make it a slower one; an H100 for PCIe is one as well."""


def find_gpu(name: str) -> Gpu:
    """A GPU by its name, or ``GIB:TFLOPS`` for any other; ``UserError`` for neither."""
    if name in GPUS:
        return GPUS[name]
    given = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,3})?):([0-9]{1,6}(?:\.[0-9]{1,3})?)", name)
    if given is None or not float(given[1]) or not float(given[2]):
        raise UserError(
            f"--gpu: {name!r} is not known; allowed: {', '.join(GPUS)}, or its memory in GiB and dense bf16 TFLOP/s, "
            "such as 24:165"
        )
    return Gpu(name, int(float(given[1]) * 2**30), float(given[2]) * 1e12, "as given")


def detect_gpu() -> Gpu | None:
    """The GPU of this machine with the memory that it reports, if its rate is known."""
    import torch

    if not torch.cuda.is_available():
        return None
    words = set(re.split(r"[\s-]+", torch.cuda.get_device_name().lower().replace("rtx ", "rtx")))
    if words & _OTHER_RATES or {"h100", "pcie"} <= words:
        return None
    for gpu in _KNOWN:
        if gpu.name in words:
            memory = torch.cuda.get_device_properties(0).total_memory
            return Gpu(gpu.name, int(memory), gpu.peak, f"{gpu.source}; memory as this one reports it")
    return None
