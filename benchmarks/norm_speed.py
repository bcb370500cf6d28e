"""Group norm, scale, shift and SiLU: layer by layer and all in one go, on the CPU, in float32 and bf16.

    python benchmarks/norm_speed.py --threads 1

Both ways take turns on the same images in channels_last; the medians of the wall time are reported, without gradients
and with the backward pass. docs/performance.md has the table.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from claims_show import hardware
from torch import Tensor

from cascaded_diffusion.networks.normalisation import group_norm

SHAPES = ((16, 64, 32), (16, 128, 32), (16, 128, 16), (16, 256, 16), (32, 256, 8))
"""Images, channels, and pixels a side, as the levels of a U-Net have them."""


def measured(shape: tuple[int, int, int], dtype: torch.dtype, repeats: int) -> dict[str, float]:
    """Milliseconds of ``plain`` and ``fast``, each ``forward`` alone and ``training``, forward and backward."""
    n, channels, side = shape
    generator = torch.Generator().manual_seed(0)
    norm = group_norm(channels)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    def images() -> Tensor:
        return drawn(n, channels, side, side).contiguous(memory_format=torch.channels_last)

    x, grad = images().requires_grad_(), images()
    scale, shift = drawn(n, channels).requires_grad_(), drawn(n, channels).requires_grad_()

    def forward() -> None:
        with torch.no_grad():
            norm.activated(x, scale, shift)

    def training() -> None:
        norm.activated(x, scale, shift).backward(grad)

    seconds: dict[str, list[float]] = {}
    for _ in range(repeats + 1):
        for name, fast in (("plain", False), ("fast", True)):
            norm.fast = fast
            for what in (forward, training):
                seconds.setdefault(f"{name} {what.__name__}", []).append(_timed(what))
    return {key: 1e3 * statistics.median(values[1:]) for key, values in seconds.items()}


def _timed(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main(words: Sequence[str] | None = None) -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=15, help="of which the median is taken (15)")
    parser.add_argument("--tiny", action="store_true", help="two pixels a side, once: shows that it runs")
    args = parser.parse_args(words)
    torch.set_num_threads(args.threads)
    print(f"Hardware: {hardware(torch.device('cpu'))}; milliseconds\n")
    print("| images | type | plain forward | fast forward | plain training | fast training | gain in training |")
    print("|---|---|---|---|---|---|---|")
    for shape in ((2, 8, 2),) if args.tiny else SHAPES:
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            found = measured(shape, dtype, args.repeats)
            cells = [
                found[f"{way} {what}"] for what, way in
                (("forward", "plain"), ("forward", "fast"), ("training", "plain"), ("training", "fast"))
            ]  # fmt: skip
            numbers = " | ".join(f"{cell:.1f}" for cell in cells)
            n, channels, side = shape
            gain = cells[2] / cells[3]
            print(f"| {n} x {channels} x {side} x {side} | {name} | {numbers} | {gain:.1f}x |", flush=True)


if __name__ == "__main__":
    main()
