"""What worker processes do: read images and bring them to every resolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from cascaded_diffusion.data.pixels import Pixels, area_resize, bicubic_enlarge, centre_square
from cascaded_diffusion.data.sources import Bad, Key, Reader

__all__ = ["Converted", "convert_all"]


class Converted(NamedTuple):
    """One image at every resolution, (R, R, C) each, and whether any of them had to be enlarged."""

    images: dict[int, Pixels]
    upscaled: bool


def convert_all(
    reader: Reader, channels: int, resolutions: Sequence[int], keys: Sequence[Key]
) -> list[Converted | Bad]:
    """Read the images of ``keys``, cut each one's centre square, and resize that square to every resolution."""
    converted: list[Converted | Bad] = []
    for stack in reader.read(keys, channels):
        if isinstance(stack, Bad):
            converted.append(stack)
            continue
        square = centre_square(stack)
        side = square.shape[1]
        sized = {size: (area_resize if size <= side else bicubic_enlarge)(square, size) for size in resolutions}
        for i in range(len(stack)):
            converted.append(Converted({size: sized[size][i] for size in resolutions}, max(resolutions) > side))
    return converted
