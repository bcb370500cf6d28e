"""Which floating-point type a device computes in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal, get_args

import torch

from cascaded_diffusion.errors import UserError

__all__ = ["Precision", "autocast", "bf16_is_native", "computes_in_bf16", "pick_device", "settled_precision"]

Precision = Literal["auto", "fp32", "bf16"]


def pick_device(name: str | None) -> torch.device:
    """The device of that name, or the best there is; ``UserError`` if it is not there."""
    if name is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError("it holds no numbers")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ImportError) as error:
        raise UserError(
            f"--device: {name!r} is not available here ({str(error).splitlines()[0]}); cpu always is"
        ) from None
    return device


def bf16_is_native(device: torch.device) -> bool:
    """Whether the hardware multiplies bf16 matrices itself, so that autocast is faster and not slower."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False


def computes_in_bf16(precision: Precision, device: torch.device) -> bool:
    """Whether a network of this ``precision`` setting computes in bf16 there; ``UserError`` for one that is none."""
    if precision not in get_args(Precision):
        raise UserError(f"precision: {precision!r} is not known; allowed: {', '.join(get_args(Precision))}")
    return precision == "bf16" or (precision == "auto" and bf16_is_native(device))


def settled_precision(precision: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    """What ``auto`` is there: what a result depends on, and so what is recorded of it."""
    return "bf16" if computes_in_bf16(precision, device) else "fp32"


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """The context in which the network is run."""
    if computes_in_bf16(precision, device):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()
