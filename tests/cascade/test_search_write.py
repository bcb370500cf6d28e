from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cascaded_diffusion.cascade.chain import Cascade
from cascaded_diffusion.cascade.search import Search, run_search
from cascaded_diffusion.cascade.search_store import SearchRecord
from cascaded_diffusion.cascade.search_write import write_best, write_best_copy
from cascaded_diffusion.errors import UserError


@pytest.fixture
def folder(three_stages: Path, tmp_path: Path) -> Path:
    """A copy of the cascade that may be changed."""
    return Path(shutil.copytree(three_stages, tmp_path / "cascade"))


@pytest.fixture
def record(search_of: Callable[..., Search], tmp_path: Path) -> SearchRecord:
    """A search of sr8, over s and steps."""
    search = search_of("sr8", s=[0.2], augmentation=["truncated"], steps=[1, 3], seed=5)
    return run_search(search, tmp_path / "out", cache=tmp_path / "cache")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_best_becomes_the_default(folder: Path, record: SearchRecord) -> None:
    before = contents(folder)
    write_best(folder, record)
    after = contents(folder)
    assert {name for name in after if after[name] != before.get(name)} == {"cascade.json"}
    best = record.searched[0].winner
    assert best is not None
    cascade = Cascade.from_pretrained(folder)
    assert cascade.defaults["sr8"] == best.settings["sr8"]
    assert cascade.defaults["sr8"].augmentation == "truncated"
    old, new = json.loads(before["cascade.json"]), json.loads(after["cascade.json"])
    assert new["stages"][0] == old["stages"][0]
    assert new["stages"][2] == old["stages"][2]
    assert new["stages"][1]["provenance"]["search"] == {
        "chosen": best.label,
        "of": 2,
        "score": "fd_eye",
        "value": best.value,
        "standard_error": best.standard_error,
        "n": 6,
        "seed": 5,
        "split": "train",
        "features": "eye",
        "features_hash": "e" * 64,
        "reference_hash": record.request.references["sr8"],
    }


def test_settings_that_were_not_swept_are_left_alone(folder: Path, record: SearchRecord) -> None:
    path = folder / "cascade.json"
    manifest = json.loads(path.read_text())
    manifest["stages"][1]["sampling"]["sampler"] = "heun"
    manifest["stages"][1]["provenance"]["images"] = 7
    path.write_text(json.dumps(manifest))
    write_best(folder, record)
    entry = json.loads(path.read_text())["stages"][1]
    assert entry["sampling"]["sampler"] == "heun"
    assert entry["provenance"]["images"] == 7
    assert entry["sampling"]["s"] == 0.2


def test_writing_twice_changes_nothing(folder: Path, record: SearchRecord) -> None:
    write_best(folder, record)
    stamp = (folder / "cascade.json").stat().st_mtime_ns
    write_best(folder, record)
    assert (folder / "cascade.json").stat().st_mtime_ns == stamp


def test_a_copy(folder: Path, record: SearchRecord, tmp_path: Path) -> None:
    before = contents(folder)
    for _ in range(2):
        write_best_copy(folder, tmp_path / "copy", record)
        assert contents(folder) == before
        assert Cascade.from_pretrained(tmp_path / "copy").defaults["sr8"].s == 0.2
    changed = {name for name, data in contents(tmp_path / "copy").items() if data != before[name]}
    assert changed == {"cascade.json"}


def test_other_weights_are_refused(folder: Path, record: SearchRecord, tmp_path: Path) -> None:
    path = folder / "cascade.json"
    manifest: dict[str, Any] = json.loads(path.read_text())
    manifest["stages"][0]["sha256"]["config.json"] = "0" * 64
    path.write_text(json.dumps(manifest))
    before = contents(folder)
    with pytest.raises(UserError, match="its base4 is not the one that was searched"):
        write_best(folder, record)
    with pytest.raises(UserError, match="its base4 is not the one that was searched"):
        write_best_copy(folder, tmp_path / "copy", record)
    assert contents(folder) == before
    assert not (tmp_path / "copy").exists()


def test_an_unfinished_search_chooses_nothing(folder: Path, record: SearchRecord) -> None:
    (found,) = record.searched
    unfinished = record.model_copy(update={"searched": (found.model_copy(update={"best": None}),)})
    with pytest.raises(ValueError, match="not finished"):
        write_best(folder, unfinished)


def test_only_the_files_of_the_stages_are_copied(
    folder: Path, record: SearchRecord, tmp_path: Path, frugal: Callable[..., str]
) -> None:
    """A stage's folder may hold anything beside its two files; a pipe would be waited for."""
    os.mkfifo(folder / "sr8/pipe")
    (tmp_path / "secret").write_text("s")
    (folder / "sr8/link").symlink_to(tmp_path / "secret")
    assert frugal(lambda: write_best_copy(folder, tmp_path / "copy", record)) == "read"
    assert {path.name for path in (tmp_path / "copy/sr8").iterdir()} == {"config.json", "model.safetensors"}
    Cascade.from_pretrained(tmp_path / "copy")


def test_a_default_that_does_not_go_with_the_best_gives_way(
    search_of: Callable[..., Search],
    base_config: Callable[..., Any],
    sr_config: Callable[..., Any],
    random_stage: Callable[..., Any],
    tmp_path: Path,
) -> None:
    """A truncated default where truncated is not to be had: what was searched is what is written, and can be read."""
    other = {"noise_schedule": {"kind": "cosine", "timesteps": 30}}
    configs = [base_config(4, sampling={"steps": 2}, diffusion=other), sr_config(8, low=4, sampling={"steps": 2})]
    folder = tmp_path / "cascade"
    Cascade([random_stage(config) for config in configs], no_truncated=True).save_pretrained(folder)
    path = folder / "cascade.json"
    manifest = json.loads(path.read_text())
    manifest["stages"][1]["sampling"] |= {"augmentation": "truncated", "s": 0.3}
    path.write_text(json.dumps(manifest))
    record = run_search(search_of("sr8", cascade=folder, start=[0.6]), tmp_path / "out", cache=tmp_path / "cache")
    write_best(folder, record)
    best = record.searched[0].winner
    assert best is not None
    assert Cascade.from_pretrained(folder).defaults["sr8"] == best.settings["sr8"]
    assert (best.settings["sr8"].augmentation, best.settings["sr8"].start) == ("nontruncated", 0.6)
    # What was written is no other request: the same command has nothing left to do.
    again = run_search(search_of("sr8", cascade=folder, start=[0.6]), tmp_path / "out", cache=tmp_path / "cache")
    assert again.searched == record.searched


def test_settings_that_came_later(
    search_of: Callable[..., Search], folder: Path, random_stage: Callable[..., Any], tmp_path: Path
) -> None:
    cascade = Cascade.from_pretrained(folder)
    cascade.stages["sr8"].guided_by(random_stage(cascade.stages["sr8"].config, 9))
    guided = tmp_path / "guided"
    cascade.save_pretrained(guided)
    sweep = {"start": [0.5], "guide": [1, 2], "guidance_interval": [(0, 5)]}
    search = search_of("sr8", cascade=guided, **sweep)
    record = run_search(search, tmp_path / "out", cache=tmp_path / "cache")
    plain, led = record.searched[0].points
    assert (plain.settings["sr8"].guidance_interval, led.settings["sr8"].guidance_interval) == (None, (0.0, 5.0))
    assert plain.value != led.value
    best = record.searched[0].winner
    assert best is not None
    write_best(guided, record)
    assert Cascade.from_pretrained(guided).defaults["sr8"] == best.settings["sr8"]
    header, first, second = (tmp_path / "out" / "results.csv").read_text().splitlines()
    assert "endpoints,start,guide,guidance_interval,evaluations" in header
    assert ",0.5,1.0,," in first
    assert ",0.5,2.0,0:5," in second
    pictures = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert pictures == {"start-curve.png", "guide-curve.png", "guidance_interval-curve.png"}
    # The search has changed the defaults that it swept, and goes on all the same.
    assert run_search(search_of("sr8", cascade=guided, **sweep), tmp_path / "out") == record
