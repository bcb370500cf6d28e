"""Colours of images, and tints and lost contrast on the way up."""

from __future__ import annotations

import numpy as np
import pytest

from cascaded_diffusion.evaluation.colour import colour_drift, colour_statistics


def pictures(count: int, side: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, channels), np.uint8)


def doubled(images: np.ndarray) -> np.ndarray:
    return images.repeat(2, axis=1).repeat(2, axis=2)


@pytest.mark.parametrize("channels", [1, 3])
def test_agrees_with_numpy(channels: int) -> None:
    images = pictures(600, 4, channels)
    told = colour_statistics(images)
    assert told.mean.dtype == told.std.dtype == np.float64
    np.testing.assert_allclose(told.mean, images.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(told.std, images.std((0, 1, 2)), rtol=1e-12)


def test_one_colour_has_no_spread() -> None:
    told = colour_statistics(np.full((3, 2, 2, 3), (255, 0, 7), np.uint8))
    assert told.mean.tolist() == [255, 0, 7]
    assert told.std.tolist() == [0, 0, 0]


def test_a_faithful_enlargement_drifts_nowhere() -> None:
    low = pictures(20, 4)
    drift = colour_drift(low, doubled(low))
    np.testing.assert_allclose([drift.mean, drift.std], 0, atol=1e-10)


def test_detail_that_averages_out_is_no_drift() -> None:
    low = np.full((2, 2, 2, 1), 100, np.uint8)
    high = doubled(low)
    high[:, ::2, ::2] += 50
    high[:, 1::2, ::2] -= 50
    np.testing.assert_allclose(colour_drift(low, high), 0, atol=1e-10)


def test_a_tint_and_lost_contrast_are_told_apart() -> None:
    low = (pictures(50, 4) // 4) * 2 + 50
    tinted = doubled(low)
    tinted[..., 1] += 9
    drift = colour_drift(low, tinted)
    np.testing.assert_allclose(drift.mean, [0, 9, 0], atol=1e-10)
    np.testing.assert_allclose(drift.std, 0, atol=1e-10)
    flat = (doubled(low).astype(np.int64) // 2 + 25).astype(np.uint8)
    assert (colour_drift(low, flat).std < -0.4 * low.std((0, 1, 2))).all()


def test_equal_resolutions() -> None:
    low = pictures(3, 4)
    np.testing.assert_allclose(colour_drift(low // 2, low // 2 + 3).mean, 3, atol=1e-10)


def test_resolutions_that_do_not_divide() -> None:
    """24 -> 64, as a recipe may have it: a tint is found, and what is only rounding stays below one grey level."""
    low = np.full((2, 24, 24, 3), (40, 90, 200), np.uint8)
    high = np.full((2, 64, 64, 3), (40, 93, 200), np.uint8)
    np.testing.assert_allclose(colour_drift(low, high), [[0, 3, 0], [0, 0, 0]], atol=1e-10)
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[:, None, None], (1, 64, 64, 3))
    assert abs(colour_statistics(ramp).mean - colour_drift(low[:1] * 0, ramp).mean).max() < 0.5


def test_wrong_input() -> None:
    low = pictures(2, 4)
    with pytest.raises(ValueError, match="images: float64 of shape"):
        colour_statistics(low / 255)
    with pytest.raises(ValueError, match="not empty"):
        colour_statistics(low[:0])
    with pytest.raises(ValueError, match=r"low-resolution images: uint8 of shape \(4, 4, 3\)"):
        colour_drift(low[0], doubled(low))
    with pytest.raises(ValueError, match="does not go with"):
        colour_drift(low, doubled(low)[:1])
    with pytest.raises(ValueError, match="does not go with"):
        colour_drift(low, doubled(low)[..., :1])
    with pytest.raises(ValueError, match="cannot area-average images of 4x4 to 8x8"):
        colour_drift(doubled(low), low)
