from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cascaded_diffusion.cascade.sampling import SamplingConfig
from cascaded_diffusion.cascade.search_store import PointResult, SearchRecord, SearchRequest, SearchStore, StageResult
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.report.plots import plot_search, plot_training
from cascaded_diffusion.training.loop import read_metrics


def _search(folder: Path, *, through: bool = True) -> Path:
    points = tuple(
        PointResult(
            key=str(s), label=f"s={s}", stage="sr16", value=5 + s, standard_error=0.5, n=9, dimensions=4, reference_n=9,
            settings={"sr16": SamplingConfig(augmentation="nontruncated" if s else "none", s=s)}, evaluations={},
        )
        for s in (0.0, 0.2, 0.4)
    )  # fmt: skip
    found = StageResult(
        stage="sr16", swept=("augmentation", "s"), passes={}, points=points, best="0.0" if through else None
    )
    request = SearchRequest(
        points={}, fixed={}, weights={}, num=9, seed=0, split="train", features="eye", features_hash="e", references={},
        precision="fp32",
    )  # fmt: skip
    SearchStore(folder).write(SearchRecord(request=request, score="fd_eye", provenance={}, searched=(found,)))
    return folder


def test_a_search(tmp_path: Path) -> None:
    figure = plot_search(_search(tmp_path))
    (axes,) = figure.axes
    assert axes.get_title(loc="left").startswith("sr16, best: s=0.0")
    assert list(axes.lines[0].get_xdata()) == [0.0, 0.2, 0.4]
    assert list(axes.lines[0].get_ydata()) == [5.0, 5.2, 5.4]
    assert figure._repr_png_().startswith(b"\x89PNG")  # whatever a notebook was told of plotting
    assert plot_search(tmp_path, "s").axes


@pytest.mark.parametrize(
    "through, setting, words",
    [(True, "steps", "setting: 'steps' was not swept here; allowed: s"), (False, None, "no stage of this search is")],
)
def test_what_a_search_has_not(through: bool, setting: str | None, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        plot_search(_search(tmp_path, through=through), setting)
    assert words in str(caught.value)


def test_no_search(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"search\.json: no such file"):
        plot_search(tmp_path)


def _drawn(axes: Any) -> list[tuple[list[float], list[float]]]:
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]


def test_runs(tiny_runs: Mapping[str, Path]) -> None:
    figure = plot_training(tiny_runs["base8"], str(tiny_runs["sr16"]))
    loss, by_time, norm, rate = figure.axes
    logs = [read_metrics(tiny_runs[name]) for name in ("base8", "sr16")]
    for axes, key in ((loss, "loss"), (norm, "grad_norm"), (rate, "lr")):
        assert _drawn(axes) == [([line["images"] for line in log], [line[key] for line in log]) for log in logs]
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["base8", "sr16"]
    assert len(by_time.lines) == 8
    known = [(line["images"], line["loss_by_time"][3]) for line in logs[1] if line["loss_by_time"][3] is not None]
    assert _drawn(by_time)[3] == ([x for x, _ in known], [y for _, y in known])
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_no_runs(tiny_runs: Mapping[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="runs: none given"):
        plot_training()
    with pytest.raises(UserError, match=r"not a run folder \(no config\.json\)"):
        plot_training(tmp_path)
    shutil.copy(tiny_runs["base8"] / "config.json", tmp_path)
    with pytest.raises(UserError, match=r"nothing was logged yet; training\.log_every is 16 images"):
        plot_training(tmp_path)
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"images": 8}) + "\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl: line 1 is not one of a run's log"):
        plot_training(tmp_path)
