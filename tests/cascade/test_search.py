"""The search as a whole: what it measures, what it shares, and that stopping it changes nothing."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cascaded_diffusion.cascade import search as search_module
from cascaded_diffusion.cascade.chain import Cascade
from cascaded_diffusion.cascade.offload import OffloadedStages
from cascaded_diffusion.cascade.search import Search, open_cascade, prepare_search, run_search
from cascaded_diffusion.cascade.search_store import SearchRecord
from cascaded_diffusion.data.prepared import PreparedData
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.evaluation.frechet import frechet_distance
from cascaded_diffusion.evaluation.statistics import FeatureStatistics

SearchOf = Callable[..., Search]
BOTH = {"s": [0, 0.1, 0.3], "augmentation": ["nontruncated", "truncated"]}


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., SearchRecord]:
    """``run(search, "out")``: with a cache of the test's own."""

    def go(search: Search, name: str = "out", **options: Any) -> SearchRecord:
        return run_search(search, tmp_path / name, cache=tmp_path / "cache", **options)

    return go


Run = Callable[..., SearchRecord]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_seven_non_truncated_points_cost_one_pass_below(search_of: SearchOf, run: Run, sampled: Counter[str]) -> None:
    search = search_of("sr16", s=[0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5], augmentation=["nontruncated"])
    (found,) = run(search).searched
    assert sampled == {"base4": 6, "sr8": 6, "sr16": 7 * 6}
    assert found.passes == {"base4": 1, "sr8": 1, "sr16": 7}


def test_truncated_points_cost_one_pass_below_each(search_of: SearchOf, run: Run, sampled: Counter[str]) -> None:
    (found,) = run(search_of("sr16", **BOTH)).searched
    assert found.passes == {"base4": 1, "sr8": 3, "sr16": 5}
    assert sampled == {stage: 6 * count for stage, count in found.passes.items()}


@pytest.mark.parametrize("sweep", [BOTH, {"steps": [3], "guidance": [1, 2]}])
def test_a_points_images_are_those_of_cdm_sample(
    sweep: dict[str, Any], search_of: SearchOf, run: Run, three_stages: Path, tmp_path: Path
) -> None:
    record = run(search_of("sr16", seed=3, **sweep))
    cascade = Cascade.from_pretrained(three_stages)
    for point in record.searched[0].points:
        cascade.defaults = dict(point.settings)
        with np.load(tmp_path / "out" / "points" / f"{point.key}.npz") as file:
            assert np.array_equal(file["arr_0"], cascade.sample(6, seed=3, batch_size=4))
            assert file["arr_1"].tolist() == [0, 1, 2, 3, 0, 1]


def test_scores(search_of: SearchOf, run: Run, colour_data: PreparedData, colour_eye: Any, tmp_path: Path) -> None:
    record = run(search_of("sr8", s=[0, 0.5], split="val"))
    (found,) = record.searched
    assert record.score == "fd_eye"
    assert record.request.split == "val"
    real = FeatureStatistics.of(colour_eye(colour_data.split("val").images(8)).features)
    for point in found.points:
        with np.load(tmp_path / "out" / "points" / f"{point.key}.npz") as file:
            fake = FeatureStatistics.of(colour_eye(file["arr_0"]).features)
        assert point.value == pytest.approx(frechet_distance(fake, real), rel=1e-9)
        assert 0 < point.standard_error < point.value
        assert (point.n, point.reference_n) == (6, real.count)
    assert found.winner is not None
    assert found.winner.value == min(point.value for point in found.points)
    assert len({point.value for point in found.points}) == 3


def test_stages_are_searched_with_the_best_below(search_of: SearchOf, run: Run, sampled: Counter[str]) -> None:
    record = run(search_of("all", s=[0, 0.2], augmentation=["nontruncated"], steps=[1, 2, 3]))
    assert [found.stage for found in record.searched] == ["base4", "sr8", "sr16"]
    base, middle, top = (found.winner for found in record.searched)
    assert base is not None
    assert middle is not None
    assert top is not None
    assert {len(found.points) for found in record.searched} == {3, 6}
    for point in record.searched[1].points:
        assert point.settings["base4"] == base.settings["base4"]
    for point in record.searched[2].points:
        assert point.settings["base4"] == base.settings["base4"]
        assert point.settings["sr8"] == middle.settings["sr8"]
    # The base's best is made once more, unrounded, as the input of the stages above.
    assert sampled == {"base4": 6 * 4, "sr8": 6 * 7, "sr16": 6 * 6}


def test_table(search_of: SearchOf, run: Run, tmp_path: Path) -> None:
    (found,) = run(search_of("sr16", **BOTH)).searched
    with (tmp_path / "out" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["point"] for row in rows] == [point.label for point in found.points]
    assert [float(row["value"]) for row in rows] == [point.value for point in found.points]
    assert [(row["augmentation"], row["s"]) for row in rows][:3] == [
        ("none", "0.0"),
        ("nontruncated", "0.1"),
        ("nontruncated", "0.3"),
    ]
    assert [row["file"] for row in rows if row["best"]] == [found.best]


def test_files(search_of: SearchOf, run: Run, tmp_path: Path) -> None:
    run(search_of("sr8", s=[0, 0.1], augmentation=["truncated"], steps=[1, 2]))
    names = sorted(contents(tmp_path / "out"))
    assert [name for name in names if "/" not in name] == [
        "results.csv",
        "s-curve.png",
        "search.json",
        "steps-curve.png",
    ]
    assert Counter(name.partition("/")[0] for name in names if "/" in name) == {"lower": 2, "points": 8}
    record = SearchRecord.model_validate(json.loads((tmp_path / "out" / "search.json").read_text()))
    assert record.searched[0].best is not None


class _Killed(Exception):
    pass


@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_killed_between_points_and_resumed(
    after: int, search_of: SearchOf, run: Run, sampled: Counter[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = {"s": [0, 0.2], "augmentation": ["truncated"]}
    run(search_of("sr8,sr16", **sweep), "whole")
    whole = dict(sampled)
    sampled.clear()
    judge, left = search_module._StageSearch._judge, [after]

    def mortal(self: Any, point: Any) -> Any:
        if left[0] == 0:
            raise _Killed
        left[0] -= 1
        return judge(self, point)

    with monkeypatch.context() as patch:
        patch.setattr(search_module._StageSearch, "_judge", mortal)
        with pytest.raises(_Killed):
            run(search_of("sr8,sr16", **sweep), "killed")
    unfinished = SearchRecord.model_validate(json.loads((tmp_path / "killed" / "search.json").read_text()))
    assert sum(len(found.points) for found in unfinished.searched) == after
    run(search_of("sr8,sr16", **sweep), "killed")
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert sampled == whole


def test_killed_inside_a_point(
    search_of: SearchOf, run: Run, sampled: Counter[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = {"s": [0.2], "augmentation": ["truncated"]}
    for moment in ("extract", "frechet_replicates"):
        with monkeypatch.context() as patch:
            patch.setattr(search_module, moment, _die)
            with pytest.raises(_Killed):
                run(search_of("sr16", **sweep), moment)
        run(search_of("sr16", **sweep), moment)
        # The images were there: only the score was missing.
        assert sampled == {"base4": 6, "sr8": 6, "sr16": 6}
        sampled.clear()


def _die(*_: Any, **__: Any) -> Any:
    raise _Killed


def test_the_same_command_again_makes_nothing(
    search_of: SearchOf, run: Run, sampled: Counter[str], tmp_path: Path
) -> None:
    first = run(search_of("sr16", **BOTH))
    before = contents(tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "lower")
    sampled.clear()
    assert run(search_of("sr16", **BOTH)) == first
    assert not sampled
    assert {name: data for name, data in before.items() if "lower" not in name} == contents(tmp_path / "out")


def test_what_the_search_writes_does_not_change_the_request(
    search_of: SearchOf, run: Run, sampled: Counter[str], three_stages: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(three_stages, tmp_path / "cascade")
    run(search_of("sr8,sr16", cascade=folder, **BOTH))
    sampled.clear()
    manifest = json.loads((folder / "cascade.json").read_text())
    for entry in manifest["stages"][1:]:
        entry["sampling"] |= {"augmentation": "truncated", "s": 0.3}
    (folder / "cascade.json").write_text(json.dumps(manifest))
    run(search_of("sr8,sr16", cascade=folder, **BOTH))
    assert not sampled


def test_another_request_is_refused(search_of: SearchOf, run: Run, tmp_path: Path) -> None:
    run(search_of("sr8", s=[0, 0.1]))
    before = contents(tmp_path / "out")
    for changes, line in (
        ({"num": 7}, r"num: 6 there, 7 asked"),
        ({"seed": 1, "split": "val"}, r"seed: 0 there, 1 asked; split: train there, val asked"),
        ({"s": [0, 0.2]}, r"points.sr8: only there .* s=0.1 / .*, only asked .* s=0.2"),
        ({"s": [0, 0.1], "steps": [1]}, r"points.sr8: only there s=0 / "),
    ):
        with pytest.raises(UserError, match=f"out: holds another search .*{line}") as caught:
            run(search_of("sr8", **({"s": [0, 0.1]} | changes)))
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"points.sr16: nothing there|only asked|sr16"):
        run(search_of("sr16", s=[0, 0.1]))
    assert contents(tmp_path / "out") == before


def test_a_folder_of_something_else_is_refused(search_of: SearchOf, run: Run, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "diary.txt").write_text("dear")
    with pytest.raises(UserError, match="already there and not a search's folder"):
        run(search_of("sr8"))


def test_a_search_that_died_in_its_first_write_begins_again(search_of: SearchOf, run: Run, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".search.json.partial").write_text("{")
    run(search_of("sr8", s=[0]))
    assert not (tmp_path / "out" / ".search.json.partial").exists()


def test_damage_is_told(search_of: SearchOf, run: Run, tmp_path: Path) -> None:
    search = search_of("sr8", s=[0, 0.1])
    (found,) = run(search).searched
    (tmp_path / "out" / "points" / f"{found.points[1].key}.json").unlink()
    broken = tmp_path / "out" / "points" / f"{found.points[1].key}.npz"
    broken.write_bytes(broken.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"npz: damaged .*; delete it, and the same command makes it again"):
        run(search)
    broken.unlink()
    assert run(search).searched == (found,)


@pytest.mark.parametrize(
    "changes, line",
    [
        ({"num": 1}, "num: 1 is not allowed; give a number from 2"),
        ({"split": "test"}, "no split 'test'"),
        ({"batch_size": 0}, "batch_size: 0 is not allowed"),
    ],
)
def test_refused_before_any_work(changes: dict[str, Any], line: str, search_of: SearchOf) -> None:
    with pytest.raises(UserError, match=line):
        search_of("sr8", **changes)


def test_an_off_loaded_cascade_is_refused(
    search_of: SearchOf, colour_data: PreparedData, colour_eye: Any, three_stages: Path
) -> None:
    manifest = search_module.CascadeManifest.read(three_stages)
    cascade = search_of("sr8").cascade
    cascade.offloaded = OffloadedStages(list(cascade.stages.values()), torch.device("cpu"))
    with pytest.raises(UserError, match="offload: a search does not go with it"):
        prepare_search(cascade, manifest, colour_data, colour_eye, stage="sr8")


def test_data_that_does_not_fit(
    search_of: SearchOf, grey_data: PreparedData, colour_eye: Any, three_stages: Path
) -> None:
    search = search_of("sr8")
    manifest = search_module.CascadeManifest.read(three_stages)
    with pytest.raises(UserError, match="its images have 1 channels, the cascade's have 3"):
        prepare_search(search.cascade, manifest, grey_data, colour_eye, stage="sr8")


def test_packaged_cascades_are_known_by_any_name(tmp_path: Path) -> None:
    folder, packaged = open_cascade("demo")
    assert packaged
    assert open_cascade(folder) == (folder, True)
    assert open_cascade(tmp_path) == (tmp_path, False)


ON_RANKS = """
import sys
from pathlib import Path
import torch
from torch import distributed
from cascaded_diffusion.cascade.chain import Cascade
from cascaded_diffusion.cascade.manifest import CascadeManifest
from cascaded_diffusion.cascade.search import prepare_search, run_search
from cascaded_diffusion.cascade.search_sweep import Sweep
from cascaded_diffusion.data.prepared import PreparedData

torch.set_num_threads(1)
root, cascade, data, rank = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
distributed.init_process_group("gloo", init_method=f"file://{root}/meet", rank=rank, world_size=2)


class Eye:
    name, content_hash, resize, dtype, class_names = "eye", "e" * 64, "quarters", "fp32", None

    def __call__(self, images):
        from cascaded_diffusion.evaluation.features import Features

        pixels = torch.from_numpy(images.copy()).float().permute(0, 3, 1, 2)
        return Features(torch.nn.functional.adaptive_avg_pool2d(pixels, 2).flatten(1) / 255, None)


search = prepare_search(
    Cascade.from_pretrained(cascade), CascadeManifest.read(cascade), PreparedData.open(data), Eye(), stage="sr16",
    sweep=Sweep(s=(0, 0.2)), num=6, batch_size=4,
)
run_search(search, root / "pair", cache=root / "cache")
distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_ranks_find_what_one_finds(
    search_of: SearchOf, run: Run, three_stages: Path, colour_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "rank.py").write_text(ON_RANKS)
    command = [sys.executable, str(tmp_path / "rank.py"), str(tmp_path), str(three_stages), str(colour_folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pair = [subprocess.Popen([*command, str(rank)], env=environment) for rank in range(2)]
    try:
        assert [process.wait(timeout=300) for process in pair] == [0, 0]
    finally:
        for process in pair:
            process.kill()
            process.wait()
    (alone,) = run(search_of("sr16", s=[0, 0.2])).searched
    together = SearchRecord.model_validate(json.loads((tmp_path / "pair" / "search.json").read_text())).searched[0]
    assert together.best == alone.best
    for one, other in zip(alone.points, together.points, strict=True):
        # Batches of other sizes round otherwise, by a step of 255 here and there.
        assert other.value == pytest.approx(one.value, rel=1e-3)
        with (
            np.load(tmp_path / "pair/points" / f"{one.key}.npz") as a,
            np.load(tmp_path / "out/points" / f"{one.key}.npz") as b,
        ):
            assert np.abs(a["arr_0"].astype(int) - b["arr_0"]).max() <= 1
            assert np.array_equal(a["arr_1"], b["arr_1"])
