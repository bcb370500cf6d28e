"""What a search's record says of two points."""

from __future__ import annotations

import pytest

from cascaded_diffusion.cascade.search_store import PointResult, difference_error


def point(error: float, *replicates: float) -> PointResult:
    return PointResult(
        key="k",
        label="a point",
        stage="sr16",
        settings={},
        evaluations={},
        value=1.0,
        standard_error=error,
        replicates=replicates,
        n=9,
        dimensions=2,
        reference_n=9,
    )


def test_error_of_a_difference_is_that_of_paired_resamples() -> None:
    a, b = point(1.0, 1, 2, 3, 4), point(1.0, 1.1, 2.1, 2.9, 3.9)
    assert difference_error(a, b) == pytest.approx(0.1154700538)  # of -0.1, -0.1, 0.1, 0.1
    assert difference_error(a, a) == 0


def test_without_resamples_the_errors_add_up() -> None:
    assert difference_error(point(3.0), point(4.0)) == 5
    assert difference_error(point(3.0, 1, 2), point(4.0)) == 5
