"""What worker processes do: read images and bring them to every resolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from cascaded_diffusion.data.decoding import decode_content
from cascaded_diffusion.data.pixels import Pixels, area_resize, bicubic_enlarge, centre_square
from cascaded_diffusion.data.sources import Bad, Facts, Key, Reader

__all__ = ["Converted", "convert_all", "convert_contents"]


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
        converted.extend(_sized(stack, resolutions))
    return converted


def convert_contents(
    with_digest: bool, resolutions: Sequence[int], contents: Sequence[bytes | Bad]
) -> list[tuple[Facts, Converted] | Bad]:
    """As :func:`convert_all`, of the contents of image files, with their facts; grey images have one channel."""
    converted: list[tuple[Facts, Converted] | Bad] = []
    for content in contents:
        found = content if isinstance(content, Bad) else decode_content(content, with_digest)
        if isinstance(found, Bad):
            converted.append(found)
        else:
            facts, pixels = found
            converted.append((facts, _sized(pixels[None], resolutions)[0]))
    return converted


def _sized(stack: Pixels, resolutions: Sequence[int]) -> list[Converted]:
    """Images (N, H, W, C) of one size."""
    square = centre_square(stack)
    side = square.shape[1]
    sized = {size: (area_resize if size <= side else bicubic_enlarge)(square, size) for size in resolutions}
    upscaled = max(resolutions) > side
    return [Converted({size: sized[size][i] for size in resolutions}, upscaled) for i in range(len(stack))]
