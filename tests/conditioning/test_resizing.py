"""Resizing and mirroring of images in the network's form."""

from __future__ import annotations

import pytest
import torch

from cascaded_diffusion.conditioning.resizing import area_downsample, flip_where
from cascaded_diffusion.errors import UserError


def test_blocks_are_averaged() -> None:
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert area_downsample(x, 2).tolist() == [[[[2.5, 4.5], [10.5, 12.5]]]]
    assert area_downsample(x, 1).tolist() == [[[[7.5]]]]
    assert area_downsample(x, 4) is x


def test_resolutions_that_do_not_divide_are_refused() -> None:
    with pytest.raises(UserError, match="resolution: 3 does not divide 4"):
        area_downsample(torch.zeros(1, 1, 4, 4), 3)


def test_only_the_chosen_images_are_mirrored() -> None:
    x = torch.arange(12.0).reshape(2, 1, 2, 3)
    flipped = flip_where(x, torch.tensor([True, False]))
    assert flipped[0].tolist() == [[[2, 1, 0], [5, 4, 3]]]
    assert torch.equal(flipped[1], x[1])
    assert torch.equal(flip_where(flipped, torch.tensor([True, False])), x)


def test_mirroring_and_shrinking_commute() -> None:
    """So every resolution of a mirrored picture shows the same picture."""
    x = torch.rand(3, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    flip = torch.tensor([True, False, True])
    torch.testing.assert_close(area_downsample(flip_where(x, flip), 4), flip_where(area_downsample(x, 4), flip))
