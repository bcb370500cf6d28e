"""Group norm, scale, shift and SiLU: layer by layer and all in one go, on the CPU, in float32 and bf16.

    python benchmarks/norm_speed.py --threads 1

Both ways take turns on the same images in channels_last; the medians of the wall time are reported, without gradients
and with the backward pass. docs/performance.md has the table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from measuring import hardware, medians, micro_arguments
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

    def way(what: Callable[[], None], fast: bool) -> Callable[[], None]:
        def run() -> None:
            norm.fast = fast
            what()

        return run

    names = (("plain", False), ("fast", True))
    ways = {f"{name} {what.__name__}": way(what, fast) for name, fast in names for what in (forward, training)}
    return medians(ways, repeats)


def main(words: Sequence[str] | None = None) -> None:
    """Measure and print one table."""
    args = micro_arguments(__doc__, words, repeats=15)
    print(f"Hardware: {hardware()}; milliseconds\n")
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
