r"""What is done to the geometry of training images: crops, and augmentations that do not leak.

The image and the low-resolution image of an SR stage get the same. Augmentations are told to the network, and what it
is told of a sample is that nothing was done (EDM, 2206.00364, appendix F.2; the idea is StyleGAN2-ADA's, 2006.06676):
so no augmented images are sampled, though small data go further.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from cascaded_diffusion.conditioning.resizing import area_downsample
from cascaded_diffusion.randomness import normal, uniform

__all__ = ["AUGMENT_FEATURES", "crop_at", "draw_corner", "draw_warp", "warp", "warp_low_res"]

AUGMENT_FEATURES = 8
"""Numbers that tell the network of an image's augmentation."""

_LOG2_SCALE, _LOG2_STRETCH, _SHIFT = 0.2, 0.2, 0.125
"""Standard deviations of what is drawn: the paper's."""


def draw_warp(seed: int, index: Tensor, probability: float) -> tuple[Tensor, Tensor]:
    """The augmentation of each training image: float32 affine maps (N, 2, 3) and what the network is told (N, 8).

    Each of five is drawn by itself with ``probability``: a flip left to right (of half the images drawn), a scale
    2^(0.2 n), a rotation by a uniform angle, a stretch 2^(0.2 n) along a uniform direction, and a shift by 0.125 n of
    the side in both directions, n normal. Told: flip, log2 of the scale over 0.2, cos - 1 and sin of the angle, log2 of
    the stretch over 0.2 times cos and sin of twice its direction, the two shifts over 0.125; all 0 where nothing was
    drawn.

    The maps take a place in the augmented image, in [-1, 1] from side to side, to that in the image.
    """

    def acts(what: str) -> Tensor:
        return (uniform(seed, f"training/augment/{what}", index) < probability).double()

    numbers = normal(seed, "training/augment/size", index, (4,)).double()
    flip = acts("flip") * (uniform(seed, "training/augment/mirror", index) < 0.5)
    scale = acts("scale") * numbers[:, 0]
    angle = acts("rotation") * (uniform(seed, "training/augment/angle", index) * 2 - 1) * math.pi
    stretch, along = acts("stretch") * numbers[:, 1], uniform(seed, "training/augment/along", index) * math.pi
    shift = acts("shift")[:, None] * numbers[:, 2:]
    # Of the image: flip, then scale, rotation, stretch, shift. The map goes the other way.
    forward = _diagonal(1 - 2 * flip, torch.ones_like(flip))
    forward = _diagonal(*(torch.exp2(_LOG2_SCALE * scale),) * 2) @ forward
    forward = _rotation(angle) @ forward
    wide = torch.exp2(_LOG2_STRETCH * stretch)
    forward = _rotation(along) @ _diagonal(wide, 1 / wide) @ _rotation(-along) @ forward
    inverse = torch.linalg.inv(forward)
    maps = torch.cat([inverse, -inverse @ (2 * _SHIFT * shift)[:, :, None]], dim=2)
    told = [flip, scale, angle.cos() - 1, angle.sin(), stretch * (2 * along).cos(), stretch * (2 * along).sin()]
    return maps.float(), torch.cat([torch.stack(told, dim=1), shift], dim=1).float()


def _diagonal(first: Tensor, second: Tensor) -> Tensor:
    return torch.diag_embed(torch.stack([first, second], dim=1))


def _rotation(angle: Tensor) -> Tensor:
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([torch.stack([cos, -sin], dim=1), torch.stack([sin, cos], dim=1)], dim=1)


def warp(images: Tensor, maps: Tensor) -> Tensor:
    """Images (N, C, R, R) in [-1, 1] under maps (N, 2, 3) of :func:`draw_warp`; beyond the border they are reflected.

    Bicubic, which blurs less than bilinear. An image that nothing is done to stays bit-equal.
    """
    grid = functional.affine_grid(maps.to(images), list(images.shape), align_corners=False)
    moved = functional.grid_sample(images, grid, mode="bicubic", padding_mode="reflection", align_corners=False)
    return _where_still(maps, images, moved.clamp(-1, 1))


def warp_low_res(low_res: Tensor, maps: Tensor, warped: Tensor) -> Tensor:
    """The low-resolution images (N, C, r, r) of images (N, C, R, R) that :func:`warp` has moved by these maps.

    They are area averages of the moved images, as those of still ones are: moved by themselves, small images would not
    fit the large ones, and a network would learn to mend what never happens when sampling. Where r does not divide R
    they are moved by themselves all the same.
    """
    size = low_res.shape[-1]
    moved = warp(low_res, maps) if warped.shape[-1] % size else area_downsample(warped, size)
    return _where_still(maps, low_res, moved)


def _where_still(maps: Tensor, images: Tensor, moved: Tensor) -> Tensor:
    still = (maps == torch.eye(2, 3)).all(dim=2).all(dim=1).to(images.device)
    return torch.where(still[:, None, None, None], images, moved)


def draw_corner(seed: int, index: Tensor, places: int) -> Tensor:
    """Row and column, each in 0 to ``places`` - 1, at which each training image is cropped: int64 (N, 2)."""
    drawn = [uniform(seed, f"training/crop/{axis}", index) for axis in ("row", "column")]
    return torch.stack([(u * places).floor().to(torch.int64).clamp(max=places - 1) for u in drawn], dim=1)


def crop_at(images: Tensor, corner: Tensor, side: int) -> Tensor:
    """Squares (N, C, side, side) of images (N, C, R, R), each from its own corner (N, 2)."""
    rows, columns = ((corner[:, axis, None] + torch.arange(side)).to(images.device) for axis in (0, 1))
    n = torch.arange(len(images), device=images.device)[:, None, None]
    return images.permute(0, 2, 3, 1)[n, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
