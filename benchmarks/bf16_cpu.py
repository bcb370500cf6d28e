"""Where bf16 is slow on a CPU that multiplies in it: attention's backward pass, and gradients of small images' weights.

    python benchmarks/bf16_cpu.py --threads 1

torch's own ways and those of the networks here take turns on the same numbers under bf16 autocast; the medians of the
wall time, forward and backward, are reported. docs/performance.md has the table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from measuring import hardware, medians, micro_arguments
from torch import Tensor

from cascaded_diffusion.networks.blocks import attend
from cascaded_diffusion.networks.small_images import small_convolution
from cascaded_diffusion.precision import bf16_is_native

ATTENTION = ((64, 6, 64, 32), (64, 9, 16, 32), (16, 4, 256, 32))
"""Images, heads, tokens, and channels of a head."""
CONVOLUTIONS = ((64, 128, 4), (64, 256, 4), (32, 128, 8), (32, 256, 8), (32, 64, 8), (32, 64, 16), (32, 256, 16))
"""Images, channels, and pixels a side. The networks here leave the last three to torch."""

Way = Callable[..., Tensor]


def problems(tiny: bool) -> Iterator[tuple[str, tuple[Tensor, ...], dict[str, Way]]]:
    """Each case's name, what it is given, and torch's way and the one here."""
    for n, heads, tokens, size in ((1, 1, 2, 2),) if tiny else ATTENTION:
        shape = (n, heads, tokens, size)
        given = tuple(torch.randn(shape, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
        ways: dict[str, Way] = {"torch": F.scaled_dot_product_attention, "here": attend}
        yield f"attention, {n} x {heads} heads x {tokens} x {size}", given, ways
    for n, width, side in ((1, 2, 2),) if tiny else CONVOLUTIONS:
        images, weight = torch.randn(n, width, side, side), torch.randn(width, width, 3, 3)
        given = tuple(
            value.contiguous(memory_format=torch.channels_last).requires_grad_()
            for value in (images.bfloat16(), weight)
        )
        ways = {
            "torch": lambda x, w: F.conv2d(x, w, padding=1),
            "here": lambda x, w: small_convolution(x, w, None),
        }
        yield f"3x3 convolution, {n} x {width} x {side} x {side}", given, ways


def measured(given: tuple[Tensor, ...], ways: dict[str, Way], repeats: int) -> dict[str, float]:
    """Milliseconds of a forward and backward pass, by way."""

    def trained(way: Way) -> Callable[[], object]:
        def run() -> object:
            with torch.autocast("cpu", torch.bfloat16):
                out = way(*given)
            return torch.autograd.grad(out, given, torch.ones_like(out))

        return run

    return medians({name: trained(way) for name, way in ways.items()}, repeats)


def main(words: Sequence[str] | None = None) -> None:
    """Measure and print one table."""
    args = micro_arguments(__doc__, words, repeats=31)
    torch.manual_seed(0)
    native = "computes" if bf16_is_native(torch.device("cpu")) else "does NOT compute"
    print(f"Hardware: {hardware()}, which {native} in bf16 itself; milliseconds\n")
    print("| what, forward and backward in bf16 | torch | here | gain |")
    print("|---|---|---|---|")
    for name, given, ways in problems(args.tiny):
        found = measured(given, ways, args.repeats)
        print(
            f"| {name} | {found['torch']:.1f} | {found['here']:.1f} | {found['torch'] / found['here']:.1f}x |",
            flush=True,
        )


if __name__ == "__main__":
    main()
