"""The part about a search."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cascaded_diffusion.cascade.chain import Cascade
from cascaded_diffusion.cascade.search_points import count_passes, points_of
from cascaded_diffusion.cascade.search_store import PointResult, SearchRecord, SearchRequest, SearchStore, StageResult
from cascaded_diffusion.cascade.search_sweep import Sweep, pick_stages
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.report.searches import read_search, search_part, sweep_lines


def _stage(cascade: Cascade, name: str, sweep: Sweep, done: int | None = None) -> StageResult:
    """A stage's search with made-up scores: the k-th point has the value 10 + k, but the third has 1."""
    points = points_of(cascade, name, pick_stages(cascade, name, sweep)[name], cascade.defaults)
    results = [
        PointResult(
            key=point.key,
            label=point.label,
            stage=name,
            settings=point.settings,
            evaluations=dict.fromkeys(point.settings, 4),
            value=1.0 if position == 2 else 10.0 + position,
            standard_error=0.5,
            n=100,
            dimensions=8,
            reference_n=64,
        )
        for position, point in enumerate(points)
    ]
    best = min(results, key=lambda result: result.value).key if done is None else None
    shown = tuple(results[:done])
    return StageResult(stage=name, swept=tuple(points[0].swept), passes=count_passes(points), points=shown, best=best)


def _write(folder: Path, *stages: StageResult, wanted: int = 0) -> Path:
    request = SearchRequest(
        points={stage.stage: ("p",) * (wanted or len(stage.points)) for stage in stages},
        fixed={},
        weights={},
        num=100,
        seed=0,
        split="train",
        features="stub",
        features_hash="ab" * 32,
        references={},
        precision="fp32",
    )
    provenance = {"cascaded_diffusion": "1", "torch": "2", "device": "cpu"}
    SearchStore(folder).write(SearchRecord(request=request, score="fd_stub", provenance=provenance, searched=stages))
    return folder


def test_the_curve_has_a_line_for_each_mode_and_both_begin_at_s_zero(tiny_cascade: Cascade) -> None:
    lines = sweep_lines(_stage(tiny_cascade, "sr16", Sweep(s=(0.3, 0.1, 0.0))), "s")
    assert {line.name for line in lines} == {"nontruncated", "truncated"}
    assert all(list(line.x) == [0.0, 0.1, 0.3] for line in lines)
    assert lines[0].y[0] == lines[1].y[0] == 10.0


def test_other_swept_settings_make_lines_of_their_own(tiny_cascade: Cascade) -> None:
    stage = _stage(tiny_cascade, "base8", Sweep(steps=(2, 4), guidance=(1.0, 2.0)))
    assert [line.name for line in sweep_lines(stage, "steps")] == ["guidance 1", "guidance 2"]
    assert [line.name for line in sweep_lines(stage, "guidance")] == ["2 steps", "4 steps"]


def test_starts_make_a_curve_and_intervals_lines(tiny_cascade: Cascade) -> None:
    sweep = Sweep(start=(1, 0.5), guidance=(2.0,), guidance_interval=(None, (0.3, 5.0)))
    stage = _stage(tiny_cascade, "sr16", sweep)
    lines = sweep_lines(stage, "start")
    assert [line.name for line in lines] == ["guidance 2", "guidance 2, at sigma 0.3 to 5"]
    assert all(list(line.x) == [0.5, 1.0] for line in lines)


def test_steps_that_are_no_numbers_are_no_curve_but_in_the_table(tiny_cascade: Cascade, tmp_path: Path) -> None:
    stage = _stage(tiny_cascade, "base8", Sweep(steps=("ddim4", "2,2", 4)))
    assert sweep_lines(stage, "steps") == []
    body = search_part(read_search("s", _write(tmp_path / "search", stage))).body
    assert "<svg" not in body
    assert "ddim4 steps" in body


def test_the_best_point_is_told_and_marked(tiny_cascade: Cascade, tmp_path: Path) -> None:
    stage = _stage(tiny_cascade, "sr16", Sweep(s=(0.0, 0.1, 0.3)))
    part = search_part(read_search("mine", _write(tmp_path / "search", stage)))
    winner = stage.winner
    assert winner is not None
    assert part.title == "Search: mine"
    assert f"Best: <strong>{winner.label}</strong>, fd_stub 1.00 ± 0.50." in part.body
    assert f'<tr class="marked"><td>{winner.label}</td>' in part.body
    assert part.body.count('<tr class="marked">') == 1
    assert "the ring the best point" in part.body


def test_the_best_may_be_to_start_from_noise(tiny_cascade: Cascade, tmp_path: Path) -> None:
    stage = _stage(tiny_cascade, "sr16", Sweep(start=(0.3, 0.5, 1)))
    winner = stage.winner
    assert winner is not None
    assert winner.settings["sr16"].start is None
    body = search_part(read_search("s", _write(tmp_path / "search", stage))).body
    assert "the ring the best point" in body


def test_an_unfinished_search_says_how_to_go_on(tiny_cascade: Cascade, tmp_path: Path) -> None:
    stage = _stage(tiny_cascade, "sr16", Sweep(s=(0.0, 0.1, 0.3)), done=2)
    body = search_part(read_search("s", _write(tmp_path / "search", stage, wanted=5))).body
    assert "2 of 5 points are scored" in body
    assert "<code>cdm search</code>" in body
    assert "Best" not in body
    empty = search_part(read_search("s", _write(tmp_path / "empty"))).body
    assert "No point was scored yet" in empty


def test_a_damaged_search_is_named(tiny_cascade: Cascade, tmp_path: Path) -> None:
    folder = _write(tmp_path / "search", _stage(tiny_cascade, "sr16", Sweep(s=(0.0, 0.1))))
    raw = json.loads((folder / "search.json").read_text())
    raw["searched"][0]["points"][0]["value"] = "low"
    (folder / "search.json").write_text(json.dumps(raw))
    with pytest.raises(UserError, match=r"search\.json: .*value"):
        read_search("s", folder)
