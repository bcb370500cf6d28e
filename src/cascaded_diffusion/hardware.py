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
    words = torch.cuda.get_device_name().lower().replace(" ", "").replace("-", "").replace("geforce", "")
    # The longest name first: a100 is also in an a100-40gb's, and l4 in an l40s's.
    for gpu in sorted(_KNOWN, key=lambda gpu: -len(gpu.name)):
        if gpu.name.replace("-", "") in words:
            memory = torch.cuda.get_device_properties(0).total_memory
            return Gpu(gpu.name, int(memory), gpu.peak, f"{gpu.source}; memory as this one reports it")
    return None
