"""``cdm sample`` in several processes of one launch, which the commands of this room start: the samples of one."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cascaded_diffusion.cascade.sample_ranks import runs_of
from cascaded_diffusion.cascade.sample_store import BatchStore, store_folder
from cascaded_diffusion.ranks import Ranks

COUNT = 10

Sample = Callable[..., dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def launch(commands: Any, tiny_cascade_folder: Path) -> Callable[..., list[int]]:
    """``launch(2, out, "--seed", 1)``: sample in so many processes; their exit statuses."""

    def start(ranks: int, out: Path, *more: object, **how: Any) -> list[int]:
        words = ["sample", tiny_cascade_folder, "--out", out, "--num", COUNT, "--device", "cpu", *more]
        commands.log.write_text("")
        commands.launch(ranks, [str(word) for word in words], **how)
        found: list[int] = commands.wait_all()
        return found

    return start


@pytest.fixture
def sample(launch: Callable[..., list[int]], commands: Any, tmp_path: Path) -> Sample:
    """As ``launch``, of what must succeed; what was written."""

    def start(ranks: int, *more: object) -> dict[str, np.ndarray]:
        out = tmp_path / f"{ranks}.npz"
        assert launch(ranks, out, *more) == [0] * ranks, commands.log.read_text()
        assert not store_folder(out).exists()
        assert commands.log.read_text().count(f"{out}: {COUNT} images") == 1
        with np.load(out) as file:
            return {name: file[name] for name in file}

    return start


def test_any_number_of_processes_makes_the_same_samples(sample: Sample, commands: Any) -> None:
    alone = sample(1, "--batch-size", 2)
    for ranks in (2, 4):
        together = sample(ranks, "--batch-size", 2)
        assert commands.log.read_text().count(f"samples: {COUNT} of {COUNT}") == 1
        for name, wanted in alone.items():
            np.testing.assert_array_equal(together[name], wanted)
    for ranks, size in ((4, "auto"), (2, 3)):
        other = sample(ranks, "--batch-size", size)
        assert np.abs(other["arr_0"].astype(int) - alone["arr_0"]).max() <= 1
        np.testing.assert_array_equal(other["arr_1"], alone["arr_1"])


def test_pictures_and_the_images_of_every_stage(
    launch: Callable[..., list[int]], commands: Any, tmp_path: Path
) -> None:
    for ranks in (1, 2):
        options = ("--stages", tmp_path / f"stages{ranks}", "--grid", tmp_path / f"{ranks}.png", "--batch-size", 2)
        assert launch(ranks, tmp_path / f"pictures{ranks}", *options) == [0] * ranks, commands.log.read_text()
    for kind in ("stages", "pictures"):
        one, two = (
            {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.png")}
            for folder in (tmp_path / f"{kind}1", tmp_path / f"{kind}2")
        )
        assert len(one) >= COUNT
        assert one == two
    assert (tmp_path / "1.png").read_bytes() == (tmp_path / "2.png").read_bytes()


def test_what_a_killed_launch_has_made_is_taken_up_by_another(
    launch: Callable[..., list[int]], sample: Sample, commands: Any, tmp_path: Path
) -> None:
    alone = sample(1, "--batch-size", 2)
    out = tmp_path / "2.npz"
    at = ("cascaded_diffusion.cascade.sample_store:BatchStore.save", 2)
    assert launch(2, out, "--batch-size", 2, die_at=at) == [1, -signal.SIGKILL]
    assert "another process of this launch has ended" in commands.log.read_text()
    kept = BatchStore(store_folder(out), [], resumed=True).images
    assert 2 <= kept < COUNT
    again = sample(2, "--batch-size", 2)
    assert f"samples: {COUNT} of {COUNT}" in commands.log.read_text()
    np.testing.assert_array_equal(again["arr_0"], alone["arr_0"])


def test_an_error_is_told_once(launch: Callable[..., list[int]], commands: Any, tmp_path: Path) -> None:
    """Before the processes have joined, and after."""
    for option in (("--precision", "half"), ("--steps", "base8=0")):
        assert launch(2, tmp_path / "x.npz", *option) == [2, 2]
        assert commands.log.read_text().count("cdm: ") == 1, commands.log.read_text()
        assert not store_folder(tmp_path / "x.npz").exists()


def test_each_process_takes_whole_batches_in_a_row() -> None:
    missing = [range(0, 4), range(4, 8), range(12, 16), range(16, 18)]
    assert runs_of(missing, Ranks(0, 2)) == [range(0, 8)]
    assert runs_of(missing, Ranks(1, 2)) == [range(12, 18)]
    assert runs_of(missing, Ranks(0, 1)) == [range(0, 8), range(12, 18)]
    assert runs_of(missing[:1], Ranks(0, 2)) == []


def test_batches_of_other_sizes_are_found(tmp_path: Path) -> None:
    store = BatchStore(tmp_path, ["base8"], resumed=False)
    for start, stop in ((0, 3), (3, 6), (8, 10)):
        store.save(start, stop, {"base8": np.arange(start, stop, dtype=np.uint8).reshape(-1, 1, 1, 1)})
    assert store.saved == store.images == 8
    assert store.lacking([range(0, 2), range(2, 5), range(4, 8), range(8, 10)]) == [range(4, 8)]
    store.save(5, 9, {"base8": np.arange(5, 9, dtype=np.uint8).reshape(-1, 1, 1, 1)})
    assert np.ravel(list(store.stage("base8"))).tolist() == list(range(10))
