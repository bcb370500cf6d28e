from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cascaded_diffusion.cascade import search_forecast
from cascaded_diffusion.cascade.generate import stage_passes
from cascaded_diffusion.cascade.search import Search, run_search
from cascaded_diffusion.cascade.search_forecast import forecast
from cascaded_diffusion.errors import UserError

SearchOf = Callable[..., Search]


def test_what_it_counts_is_what_is_done(
    search_of: SearchOf, sampled: Counter[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = search_of("sr16", s=[0, 0.1, 0.3], steps=[1, 2])
    calls: Counter[str] = Counter()
    for stage in search.cascade.stages.values():
        _count_calls(stage, calls, monkeypatch)
    monkeypatch.setattr(search_forecast, "_seconds_a_pass", lambda *_: 0.5)
    found = forecast(search, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert found.passes == {"base4": 1, "sr8": 3, "sr16": 10}
    assert found.missing == 14
    assert list(found.points) == ["sr16"]
    assert len(found.points["sr16"]) == 10
    assert not any(found.points["sr16"].values())
    assert found.seconds == found.evaluations * 0.5
    calls.clear()
    run_search(search, tmp_path / "out", cache=tmp_path / "cache")
    assert {name: count * 6 for name, count in found.passes.items()} == sampled
    assert found.evaluations == sum(calls.values())
    again = forecast(search, tmp_path / "out")
    assert (again.missing, again.evaluations, again.seconds) == (0, 0, 0)
    assert again.passes == found.passes
    assert all(again.points["sr16"].values())
    next((tmp_path / "out" / "points").glob("*.json")).unlink()
    # Its images are there: it wants a score, not a pass.
    assert forecast(search, tmp_path / "out").missing == 0
    assert list(forecast(search, tmp_path / "out").points["sr16"].values()).count(False) == 1


def test_a_later_start_costs_less(
    search_of: SearchOf, sampled: Counter[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep: dict[str, Any] = {"start": [1, 0.5], "guidance": [2], "guidance_interval": [None, (0, 1)]}
    search = search_of("sr8", steps=[4], **sweep)
    stage = search.cascade.stages["sr8"]
    settings = [point.work.settings for point in search.points("sr8", search.cascade.defaults)]
    monkeypatch.setattr(search_forecast, "_seconds_a_pass", lambda *_: 1.0)
    found = forecast(search, tmp_path / "out")
    assert list(found.points["sr8"]) == [
        "4 steps, guidance 2, from noise, at every sigma",
        "4 steps, guidance 2, from noise, at sigma 0 to 1",
        "4 steps, guidance 2, from time 0.5, at every sigma",
        "4 steps, guidance 2, from time 0.5, at sigma 0 to 1",
    ]
    assert found.passes == {"base4": 1, "sr8": 4}
    # Two steps of base4; of the four of sr8, the start and those below it.
    assert found.evaluations == (2 + 4 + 4 + 3 + 3) * 6
    assert found.seconds == (2 + sum(stage_passes(stage, own) for own in settings)) * 6
    calls: Counter[str] = Counter()
    _count_calls(stage, calls, monkeypatch)
    record = run_search(search, tmp_path / "out", cache=tmp_path / "cache")
    assert sampled == {"base4": 6, "sr8": 24}
    assert calls["sr8"] == sum(stage_passes(stage, own) for own in settings) * 6
    assert [point.evaluations["sr8"] for point in record.searched[0].points] == [4, 4, 3, 3]
    assert len({point.value for point in record.searched[0].points}) == 4
    assert run_search(search_of("sr8", steps=[4], **sweep), tmp_path / "out") == record
    assert sampled == {"base4": 6, "sr8": 24}


def _count_calls(stage: Any, calls: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    forward = stage.network.forward

    def counting(x: Any, *args: Any, **conditions: Any) -> Any:
        calls[stage.name] += len(x)
        return forward(x, *args, **conditions)

    monkeypatch.setattr(stage.network, "forward", counting)


@pytest.mark.parametrize("stage, sweep", [("base4", {"steps": [2]}), ("sr8", {}), ("sr16", {"guidance": [1, 2]})])
def test_timing(stage: str, sweep: dict[str, Any], search_of: SearchOf, tmp_path: Path) -> None:
    found = forecast(search_of(stage, **sweep), tmp_path / "out")
    assert 0 < found.seconds < 600
    assert list(tmp_path.iterdir()) == []


def test_guidance_counts_its_passes(search_of: SearchOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_forecast, "_seconds_a_pass", lambda *_: 3.0)
    found = forecast(search_of("sr8", guidance=[1, 2]), tmp_path / "out")
    # Two steps each of: base4 once, sr8 unguided, sr8 guided; six samples.
    assert found.evaluations == 3 * 2 * 6
    assert found.seconds == 3 * (1 + 1 + 2) * 2 * 6


def test_points_above_stand_on_what_was_found_below(search_of: SearchOf, tmp_path: Path) -> None:
    search = search_of("sr8,sr16", s=[0.1, 0.2], augmentation=["nontruncated"])
    record = run_search(search, tmp_path / "out", cache=tmp_path / "cache")
    best = record.searched[0].winner
    assert best is not None
    assert best.settings["sr8"] != search.cascade.defaults["sr8"]
    assert forecast(search, tmp_path / "out").missing == 0


def test_another_searchs_folder_is_refused(search_of: SearchOf, tmp_path: Path) -> None:
    run_search(search_of("sr8", s=[0]), tmp_path / "out", cache=tmp_path / "cache")
    with pytest.raises(UserError, match="holds another search"):
        forecast(search_of("sr8", s=[0.1]), tmp_path / "out")
