from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from cascaded_diffusion.cascade import search_plot
from cascaded_diffusion.cascade.sampling import SamplingConfig
from cascaded_diffusion.cascade.search_plot import curves
from cascaded_diffusion.cascade.search_store import PointResult, SearchRecord, SearchRequest, StageResult

REQUEST = SearchRequest(
    points={}, fixed={}, weights={}, num=500, seed=0, split="train", features="eye", features_hash="e", references={},
    precision="fp32",
)  # fmt: skip


def _point(value: float, **settings: Any) -> PointResult:
    return PointResult(
        key=str(sorted(settings.items())),
        label="a point",
        stage="sr16",
        settings={"sr16": SamplingConfig(**settings)},
        evaluations={"sr16": 1},
        value=value,
        standard_error=0.5,
        n=500,
        dimensions=12,
        reference_n=80,
    )


def _record(points: Sequence[PointResult], *swept: str, best: bool = True) -> SearchRecord:
    key = min(points, key=lambda point: point.value).key if best else None
    found = StageResult(stage="sr16", swept=swept, passes={}, points=tuple(points), best=key)
    return SearchRecord(request=REQUEST, score="fd_eye", provenance={}, searched=(found,))


S_CURVE = [
    _point(9.0),
    _point(6.0, augmentation="nontruncated", s=0.2),
    _point(8.0, augmentation="nontruncated", s=0.4),
    _point(5.0, augmentation="truncated", s=0.2),
    _point(7.0, augmentation="truncated", s=0.4),
]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved."""
    figures: list[Figure] = []
    save = Figure.savefig

    def keep(self: Figure, *args: Any, **options: Any) -> None:
        figures.append(self)
        save(self, *args, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def _lines(figure: Figure) -> dict[str, tuple[list[float], list[float]]]:
    found = {}
    for bars in figure.axes[0].containers:
        line = bars.lines[0]
        found[str(bars.get_label())] = (list(map(float, line.get_xdata())), list(map(float, line.get_ydata())))
        assert np.allclose([np.diff(s[:, 1])[0] for s in bars.lines[2][0].get_segments()], 1.0)  # twice the error
    return found


def test_both_modes_begin_at_zero(drawn: list[Figure]) -> None:
    assert list(curves(_record(S_CURVE, "augmentation", "s"))) == ["s"]
    assert _lines(drawn[0]) == {
        "non-truncated": ([0, 0.2, 0.4], [9, 6, 8]),
        "truncated": ([0, 0.2, 0.4], [9, 5, 7]),
    }
    axes = drawn[0].axes[0]
    (ring,) = [line for line in axes.lines if line.get_label() == "best"]
    assert (list(ring.get_xdata()), list(ring.get_ydata())) == ([0.2], [5.0])
    assert axes.get_title(loc="left") == "sr16, best: a point\n5 ± 0.5"


def test_only_zero(drawn: list[Figure]) -> None:
    curves(_record(S_CURVE[:1], "augmentation", "s"))
    assert _lines(drawn[0]) == {"non-truncated": ([0], [9])}


def test_a_panel_is_the_slice_through_the_best(drawn: list[Figure]) -> None:
    points = [
        _point(abs(s - 0.1) * 10 + 20 / steps, augmentation="nontruncated", s=s, steps=steps)
        for s in (0.1, 0.2)
        for steps in (10, 5, 20)
    ]
    assert list(curves(_record(points, "augmentation", "s", "steps"))) == ["s", "steps"]
    assert _lines(drawn[0]) == {"non-truncated": ([0.1, 0.2], [1, 2])}
    ((x, y),) = _lines(drawn[1]).values()
    assert (x, y) == ([5, 10, 20], [4, 2, 1])
    assert drawn[1].axes[0].get_xscale() == "log"


def test_words_stand_in_the_order_given(drawn: list[Figure]) -> None:
    points = [_point(3 + i, steps=steps) for i, steps in enumerate(["ddim8", 4, "ddim2"])]
    curves(_record(points, "steps"))
    assert [label.get_text() for label in drawn[0].axes[0].get_xticklabels()] == ["ddim8", "4", "ddim2"]


def test_endpoints(drawn: list[Figure]) -> None:
    curves(_record([_point(3, endpoints=(1e-4, 0.02)), _point(2, endpoints=(1e-6, 0.1))], "endpoints"))
    labels = [label.get_text() for label in drawn[0].axes[0].get_xticklabels()]
    assert labels == ["0.0001 : 0.02", "1e-06 : 0.1"]


def test_guidance(drawn: list[Figure]) -> None:
    curves(_record([_point(3, guidance=2), _point(2, guidance=1)], "guidance"))
    assert list(_lines(drawn[0]).values()) == [([1, 2], [2, 3])]


def test_starts_lie_at_their_times_and_noise_at_one(drawn: list[Figure]) -> None:
    curves(_record([_point(3), _point(2, start=0.7), _point(4, start=0.5)], "start"))
    assert list(_lines(drawn[0]).values()) == [([0.5, 0.7, 1], [4, 2, 3])]


def test_guides(drawn: list[Figure]) -> None:
    curves(_record([_point(3, guide=2), _point(2), _point(1, guide=1.5)], "guide"))
    assert list(_lines(drawn[0]).values()) == [([1, 1.5, 2], [2, 1, 3])]


def test_grids(drawn: list[Figure]) -> None:
    curves(_record([_point(3), _point(2, grid="log-snr")], "grid"))
    assert [label.get_text() for label in drawn[0].axes[0].get_xticklabels()] == ["time", "log-snr"]


INTERVALS = [
    _point(5),
    _point(4, guidance=2, guidance_interval=(0.3, 5)),
    _point(3, guidance=2, guidance_interval=(0.5, 5)),
    _point(6, guidance=3, guidance_interval=(0.3, 5)),
    _point(7, guidance=3, guidance_interval=(0.5, 5)),
]


def test_without_guidance_a_point_belongs_to_every_interval(drawn: list[Figure]) -> None:
    assert list(curves(_record(INTERVALS, "guidance", "guidance_interval"))) == ["guidance", "guidance_interval"]
    assert list(_lines(drawn[0]).values()) == [([1, 2, 3], [5, 3, 7])]
    assert list(_lines(drawn[1]).values()) == [([0, 1], [4, 3])]
    assert [label.get_text() for label in drawn[1].axes[0].get_xticklabels()] == ["0.3 : 5", "0.5 : 5"]


def test_a_best_point_that_goes_with_one_value_is_ringed_beside_the_line(drawn: list[Figure]) -> None:
    curves(_record([_point(1), *INTERVALS[1:]], "guidance", "guidance_interval"))
    assert list(_lines(drawn[0]).values()) == [([1, 2, 3], [1, 3, 7])]
    assert list(_lines(drawn[1]).values()) == [([0, 1], [4, 3])]
    (ring,) = [line for line in drawn[1].axes[0].lines if line.get_label() == "best"]
    assert (list(ring.get_xdata()), list(ring.get_ydata())) == ([2], [1.0])
    assert [label.get_text() for label in drawn[1].axes[0].get_xticklabels()] == ["0.3 : 5", "0.5 : 5", "none"]


def test_unfinished_stages_are_left_out() -> None:
    assert curves(_record(S_CURVE, "augmentation", "s", best=False)) == {}


def test_equal_searches_give_equal_pictures() -> None:
    first, second = (curves(_record(S_CURVE, "augmentation", "s"))["s"] for _ in range(2))
    assert first == second
    picture = Image.open(io.BytesIO(first))
    assert picture.width > picture.height > 300
    assert search_plot.curves(_record(S_CURVE[:4], "augmentation", "s"))["s"] != first
