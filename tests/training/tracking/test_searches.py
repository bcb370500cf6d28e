from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cascaded_diffusion.cascade.sampling import SamplingConfig
from cascaded_diffusion.cascade.search_store import PointResult, SearchRecord, SearchRequest, StageResult
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.training.tracking.searches import track_search


def _point(key: str, value: float, steps: int | str, **settings: Any) -> PointResult:
    sampling = SamplingConfig(steps=steps, **settings)
    return PointResult(
        key=key, label=key, stage="sr16", settings={"sr16": sampling}, evaluations={"sr16": 1}, value=value,
        standard_error=0.5, n=100, dimensions=12, reference_n=80,
    )  # fmt: skip


@pytest.fixture
def record() -> SearchRecord:
    """s and steps of one stage, four points of 100 samples."""
    request = SearchRequest(
        points={}, fixed={}, weights={}, num=100, seed=0, split="train", features="eye", features_hash="e",
        references={}, precision="fp32",
    )  # fmt: skip
    points = (
        _point("a", 9.0, 5),
        _point("b", 6.0, 5, augmentation="truncated", s=0.2),
        _point("c", 8.0, 10),
        _point("d", 5.0, 10, augmentation="truncated", s=0.2),
    )
    found = StageResult(stage="sr16", swept=("augmentation", "s", "steps"), passes={}, points=points, best="d")
    return SearchRecord(request=request, score="fd_eye", provenance={}, searched=(found,))


def test_curves_points_and_what_was_asked(record: SearchRecord, tmp_path: Path, recorder: Any) -> None:
    recorder.rewinds = False
    for _ in range(2):  # the same command again shows nothing twice
        track_search(record, tmp_path, ["wandb"])
    kinds = [(what, images, name) for what, images, name, _ in recorder.told if what not in ("config", "close")]
    assert kinds == [
        ("table", 400, "points/sr16"),
        ("image", 400, "s-curve"),
        ("image", 400, "steps-curve"),
    ]
    assert recorder.told[0][3]["features"] == "eye"
    assert recorder.told[0][3]["score"] == "fd_eye"
    columns, rows = recorder.told[1][3]
    assert columns == ["point", "augmentation", "s", "steps", "fd_eye", "standard error", "samples", "best"]
    assert rows[0] == ["a", "none", 0.0, 5, 9.0, 0.5, 100, ""]
    assert rows[3] == ["d", "truncated", 0.2, 10, 5.0, 0.5, 100, "best"]


def test_a_column_holds_numbers_or_words(record: SearchRecord, tmp_path: Path, recorder: Any) -> None:
    points = (_point("a", 9.0, 5), _point("b", 6.0, 5, start=0.6))
    found = StageResult(stage="sr16", swept=("steps", "start"), passes={}, points=points, best="b")
    track_search(record.model_copy(update={"searched": (found,)}), tmp_path, ["wandb"])
    _, rows = recorder.told[1][3]
    assert [row[1:3] for row in rows] == [[5, "None"], [5, "0.6"]]


def test_in_tensorboard(record: SearchRecord, tmp_path: Path, shown: Callable[[Path], Any]) -> None:
    for _ in range(2):
        track_search(record, tmp_path, ["tensorboard"])
    found = shown(tmp_path / "tensorboard")
    assert [step for step, _ in found.images("s-curve")] == [400]
    ((step, text),) = found.texts("points/sr16")
    assert step == 400
    assert "| d | truncated | 0.2 | 10 | 5.0 | 0.5 | 100 | best |" in text


def test_a_failure_leaves_the_search_as_it_is(record: SearchRecord, tmp_path: Path, recorder: Any) -> None:
    recorder.broken = "table"
    lines: list[str] = []
    track_search(record, tmp_path, ["wandb"], note=lines.append)
    assert len(lines) == 1
    with pytest.raises(UserError, match="track: 'mlflow'"):
        track_search(record, tmp_path, ["mlflow"])
