from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from cascaded_diffusion.cascade.stage import StageConfig
from cascaded_diffusion.data.prepared import PreparedData
from cascaded_diffusion.training.feed import Feed
from cascaded_diffusion.training.trainer import Trainer

Configure = Callable[..., StageConfig]
CPU = torch.device("cpu")
PARTS = [range(a, b) for a, b in pairwise(range(0, 45, 4))]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_parts_come_in_order(workers: int) -> None:
    with Feed(list, PARTS, workers) as feed:
        assert [feed.take() for _ in PARTS] == [list(part) for part in PARTS]
        with pytest.raises(StopIteration):
            feed.take()


def test_a_part_that_takes_long_is_waited_for() -> None:
    """Other threads are ahead of it by as many parts as may be ahead, and not by one more."""
    release, made = threading.Event(), []

    def make(part: range) -> range:
        if part.start == 0:
            assert release.wait(60)
        made.append(part)
        if len(made) == 2:
            release.set()
        return part

    with Feed(make, PARTS, workers=2) as feed:
        assert feed.take() == PARTS[0]
        assert feed.take() == PARTS[1]
    assert made[0] in PARTS[1:3]


def test_no_more_than_that_is_made_ahead() -> None:
    made: list[range] = []
    with Feed(lambda part: made.append(part) or part, PARTS, workers=1) as feed:
        feed.take()
    assert 1 <= len(made) <= 3


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_a_failure_is_raised_where_the_part_is_taken(workers: int) -> None:
    def make(part: range) -> range:
        if part.start == 8:
            raise OSError(5, "Input/output error")
        return part

    with Feed(make, PARTS, workers) as feed:
        assert feed.take() == PARTS[0]
        assert feed.take() == PARTS[1]
        with pytest.raises(OSError, match="Input/output error"):
            feed.take()


def test_leaving_in_the_middle_ends_the_threads() -> None:
    before = threading.active_count()

    def leave() -> None:
        with Feed(list, PARTS, workers=4) as feed:
            feed.take()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        leave()
    assert threading.active_count() == before


@pytest.mark.parametrize("kind", ["base", "gaussian", "blur"])
def test_batches_are_the_same_to_the_bit(
    kind: str, base_config: Configure, sr_config: Configure, colour_data: PreparedData
) -> None:
    """Across an epoch's end (64 images), which several threads then cross at a time."""
    settings = {"flip": True, "training": {"micro_batch": 4, "images": 160}}
    config = base_config(**settings) if kind == "base" else sr_config(**settings, conditioning={"augmentation": kind})
    trainer = Trainer(config, colour_data, CPU)
    with trainer.feed(160, workers=0) as plain, trainer.feed(160, workers=3) as ahead:
        for _ in range(40):
            for one, two in zip(plain.take(), ahead.take(), strict=True):
                assert (one is None and two is None) or torch.equal(one, two)


def test_a_failing_disk_is_told_and_what_was_trained_is_saved(
    tmp_path: Path, base_config: Configure, colour_folder: Path
) -> None:
    """The images' file is cut short in the middle of a run, where a memory map would end the process with SIGBUS."""
    import shutil

    from cascaded_diffusion.training.checkpoint import checkpoint_folders
    from cascaded_diffusion.training.loop import Progress, train

    shutil.copytree(colour_folder, tmp_path / "data")

    def cut(progress: Progress) -> None:
        if progress.images == 24:
            with (tmp_path / "data/train/images_8.npy").open("r+b") as file:
                file.truncate(500)

    for workers in (0, 2):
        run = tmp_path / f"run{workers}"
        data = PreparedData.open(tmp_path / "data")
        with pytest.raises(RuntimeError) as caught:
            train(base_config(), data, run, device=CPU, watch=cut, data_workers=workers)
        line = str(caught.value)
        assert line.startswith("base8: the training data cannot be read: [Errno 5] image ")
        assert "is not whole; the file has been cut short" in line
        saved = int(checkpoint_folders(run)[-1].name)
        assert saved >= 24
        assert line.endswith(f"all {saved} images of training are saved")
        shutil.rmtree(tmp_path / "data")
        shutil.copytree(colour_folder, tmp_path / "data")
