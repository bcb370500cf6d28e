"""A disk that is full or gone, and memory that runs out: the run goes on if it can, and says what is saved."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from cascaded_diffusion.cascade.stage import StageConfig
from cascaded_diffusion.data.prepared import PreparedData
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.training import keeper as module
from cascaded_diffusion.training.checkpoint import checkpoint_folders, read_checkpoint
from cascaded_diffusion.training.loop import Progress, read_metrics, train
from cascaded_diffusion.training.trainer import Trainer

Configure = Callable[..., StageConfig]
Train = Callable[..., Any]
CPU = torch.device("cpu")


class Disk:
    """Refuses what is to be put on it for good while ``problem`` is the number of a system's error."""

    problem: int | None = None

    def fsync(self, descriptor: int) -> None:
        if self.problem is not None:
            raise OSError(self.problem, os.strerror(self.problem))
        self.honest(descriptor)

    honest = staticmethod(os.fsync)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    """The disk of every file that matters: each of them is flushed to it before it counts."""
    disk = Disk()
    monkeypatch.setattr(os, "fsync", disk.fsync)
    return disk


@pytest.fixture(scope="module")
def config(base_config: Configure) -> StageConfig:
    """Eight steps; a line after each, a checkpoint and a preview after every second."""
    training = {"log_every": 8, "checkpoint_every": 16, "preview_every": 16, "preview_count": 2}
    return base_config(training={**training, "keep_checkpoints": 2})


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, config: StageConfig, colour_data: PreparedData
) -> dict[str, Tensor]:
    """The weights that the run ends with."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    train(config, colour_data, run, device=CPU)
    return _weights(run)


def _weights(run: Path) -> dict[str, Tensor]:
    folder = checkpoint_folders(run)[-1]
    read_checkpoint(folder)
    return {f"{p.name}/{k}": v for p in folder.glob("*.safetensors") for k, v in load_file(p).items()}


def _assert_ends_well(run: Path, undisturbed: dict[str, Tensor]) -> None:
    weights = _weights(run)
    assert int(checkpoint_folders(run)[-1].name) == 64
    assert weights.keys() == undisturbed.keys()
    assert all(torch.equal(weights[name], undisturbed[name]) for name in weights)
    assert [line["images"] for line in read_metrics(run)] == list(range(8, 65, 8))
    assert not list((run / "checkpoints").glob(".*"))
    assert not [path for path in run.rglob(".*") if path.name != ".lock"]


def _at(events: dict[int, Callable[[], object]]) -> Callable[[Progress], None]:
    """Does something after the step that ends at so many images."""

    def watch(progress: Progress) -> None:
        if progress.images in events:
            events[progress.images]()

    return watch


@pytest.mark.parametrize("problem", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT, errno.ESTALE])
def test_a_disk_that_fails_for_a_while_costs_nothing(
    problem: int,
    tmp_path: Path,
    disk: Disk,
    config: StageConfig,
    colour_data: PreparedData,
    undisturbed: dict[str, Tensor],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """From the fourth step to the seventh: two checkpoints and two previews missed, four lines written later."""

    def fail() -> None:
        disk.problem = problem

    def recover() -> None:
        disk.problem = None
        assert [int(path.name) for path in checkpoint_folders(tmp_path)] == [16]
        assert [line["images"] for line in read_metrics(tmp_path)] == [8, 16, 24]
        assert not list((tmp_path / "checkpoints").glob(".*"))

    train(config, colour_data, tmp_path, device=CPU, watch=_at({24: fail, 56: recover}))
    _assert_ends_well(tmp_path, undisturbed)
    assert [int(path.name) for path in checkpoint_folders(tmp_path)] == [16, 64]
    assert sorted(int(path.stem) for path in (tmp_path / "previews").iterdir()) == [16, 64]
    why = os.strerror(problem)
    log = f"metrics.jsonl: cannot be written ({why}); the line waits for the next"
    assert [message.partition(": /")[0] for message in caplog.messages] == [
        log,
        f"the checkpoint at 32 images was not written ({why}; the checkpoint at 16 images stands, 16 images of "
        "training are not in it); the run goes on",
        f"the preview at 32 images was not written ({why}); the run goes on",
        log,
        log,
        f"the checkpoint at 48 images was not written ({why}; the checkpoint at 16 images stands, 32 images of "
        "training are not in it); the run goes on",
        f"the preview at 48 images was not written ({why}); the run goes on",
        log,
    ]


def test_what_cannot_be_saved_at_the_end_is_an_error_that_says_what_stands(
    tmp_path: Path, disk: Disk, config: StageConfig, colour_data: PreparedData, undisturbed: dict[str, Tensor]
) -> None:
    def fail() -> None:
        disk.problem = errno.ENOSPC

    with pytest.raises(RuntimeError) as caught:
        train(config, colour_data, tmp_path, device=CPU, watch=_at({40: fail}))
    assert str(caught.value) == (
        "base8: the state after 64 images could not be saved (No space left on device); the checkpoint at 32 images "
        "stands, 32 images of training are not in it"
    )
    disk.problem = None
    train(config, colour_data, tmp_path, device=CPU)
    _assert_ends_well(tmp_path, undisturbed)


def test_a_log_that_stays_unwritable_is_an_error_at_the_end(
    tmp_path: Path, config: StageConfig, colour_data: PreparedData
) -> None:
    """With everything else saved."""

    def block() -> None:
        (tmp_path / "metrics.jsonl").unlink()
        (tmp_path / "metrics.jsonl").mkdir()

    with pytest.raises(RuntimeError, match=r"base8: 3 lines of metrics\.jsonl could not be written \(Is a directory"):
        train(config, colour_data, tmp_path, device=CPU, watch=_at({40: block}))
    assert int(checkpoint_folders(tmp_path)[-1].name) == 64


def test_a_run_folder_that_is_away_for_a_while_is_not_made_anew(
    tmp_path: Path,
    config: StageConfig,
    colour_data: PreparedData,
    undisturbed: dict[str, Tensor],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As when its mount goes away: what lies under the mount point must not fill up meanwhile."""
    run, away = tmp_path / "run", tmp_path / "away"

    def leave() -> None:
        run.rename(away)
        run.mkdir()

    def back() -> None:
        assert list(run.iterdir()) == []
        run.rmdir()
        away.rename(run)

    train(config, colour_data, run, device=CPU, watch=_at({24: leave, 56: back}))
    _assert_ends_well(run, undisturbed)
    assert len(caplog.messages) == 8
    assert all("(the run folder has vanished" in message for message in caplog.messages)


def test_a_run_folder_that_stays_away_is_an_error_at_the_end(
    tmp_path: Path, config: StageConfig, colour_data: PreparedData
) -> None:
    run = tmp_path / "run"
    with pytest.raises(RuntimeError, match=r"after 64 images could not be saved \(the run folder has vanished\)"):
        train(config, colour_data, run, device=CPU, watch=_at({24: lambda: shutil.rmtree(run)}))
    assert not run.exists()


def test_a_lost_lock_file_is_taken_again_unless_another_process_has_it(
    tmp_path: Path, config: StageConfig, colour_data: PreparedData, caplog: pytest.LogCaptureFixture
) -> None:
    lock = tmp_path / ".lock"

    def steal() -> None:
        lock.unlink()
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        held.append(descriptor)

    held: list[int] = []
    train(config, colour_data, tmp_path, device=CPU, max_images=32, watch=_at({8: lock.unlink}))
    assert caplog.messages == []
    assert [int(path.name) for path in checkpoint_folders(tmp_path)] == [16, 32]
    try:
        with pytest.raises(RuntimeError, match=r"could not be saved \(another process has taken the run folder\)"):
            train(config, colour_data, tmp_path, device=CPU, watch=_at({40: steal}))
    finally:
        os.close(held[0])
    assert [int(path.name) for path in checkpoint_folders(tmp_path)] == [16, 32]


def test_old_checkpoints_that_cannot_be_deleted_do_not_end_the_run(
    tmp_path: Path,
    config: StageConfig,
    colour_data: PreparedData,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(*args: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(module, "prune", refuse)
    train(config, colour_data, tmp_path, device=CPU)
    assert caplog.messages == ["old checkpoints cannot be deleted (Permission denied)"] * 4
    assert [int(path.name) for path in checkpoint_folders(tmp_path)] == [16, 32, 48, 64]


def test_a_checkpoint_too_many_of_a_process_that_died_at_the_end_is_deleted(
    tmp_path: Path, config: StageConfig, colour_data: PreparedData
) -> None:
    train(config, colour_data, tmp_path, device=CPU)
    last = checkpoint_folders(tmp_path)[-1]
    shutil.copytree(last, last.with_name("000000000032"))
    assert train(config, colour_data, tmp_path, device=CPU).checkpoint == last
    assert [int(path.name) for path in checkpoint_folders(tmp_path)] == [48, 64]


# -- memory -----------------------------------------------------------------------------------------------------------

CPU_WORDS = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"
OUT_OF_MEMORY = [torch.OutOfMemoryError("CUDA out of memory. Tried to"), RuntimeError(CPU_WORDS), MemoryError()]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["cuda", "cpu", "python"])
def test_out_of_memory_says_what_to_change_and_everything_is_saved(
    error: Exception,
    tmp_path: Path,
    config: StageConfig,
    colour_data: PreparedData,
    undisturbed: dict[str, Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    honest = Trainer.losses

    def losses(trainer: Trainer, batch: Any) -> Tensor:
        if trainer.state.images == 40 and len(batch.x0) > 4:
            raise error
        return honest(trainer, batch)

    monkeypatch.setattr(Trainer, "losses", losses)
    with pytest.raises(RuntimeError) as caught:
        train(config, colour_data, tmp_path, device=CPU)
    assert str(caught.value) == (
        "base8: out of memory with 8 images a forward pass; --set training.micro_batch=4 --allow-changes needs less "
        "and keeps the global batch of 8; all 40 images of training are saved"
    )
    assert int(checkpoint_folders(tmp_path)[-1].name) == 40
    smaller = config.model_copy(update={"training": config.training.model_copy(update={"micro_batch": 4})})
    train(smaller, colour_data, tmp_path, device=CPU, allow_changes=True)
    weights = _weights(tmp_path)
    for name, value in undisturbed.items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=3e-3)  # three of Adam's steps of 1e-3


def test_every_process_knows_what_stands(
    tmp_path: Path, config: StageConfig, colour_data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 1 writes nothing; it hears from rank 0 what was written."""
    state = Trainer(config, colour_data, CPU).state
    keeper = module.Keeper(tmp_path, state, colour_data)
    state.images = 40
    monkeypatch.setattr(module, "from_main", lambda write: tmp_path / "checkpoints" / "000000000024")
    keeper.checkpoint()
    assert keeper.what_stands().startswith("the checkpoint at 24 images stands, 16 images")


def test_a_search_for_what_fits_lets_go_of_what_did_not(
    config: StageConfig, colour_data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And if nothing fits, the advice is about the last try."""
    config = config.model_copy(update={"training": config.training.model_copy(update={"micro_batch": "auto"})})
    trainer, tried, held = Trainer(config, colour_data, CPU), [], []

    class Parameter:
        shape = (3,)

        def new_empty(self, shape: tuple[int, ...]) -> Tensor:
            assert all(one() is None for one in held)
            tensor = torch.empty(shape)
            held.append(weakref.ref(tensor))
            return tensor

    def too_large(size: int, *, last: bool) -> None:
        tried.append(size)
        raise torch.OutOfMemoryError

    monkeypatch.setattr(trainer, "_local", lambda: [Parameter()])
    monkeypatch.setattr(trainer, "_try", too_large)
    with pytest.raises(torch.OutOfMemoryError):
        trainer.warm_up()
    assert tried == [8, 4, 2, 1]
    assert len(held) == 4
    assert trainer.memory_advice().endswith("with 1 images a forward pass; the network is too large for this device")


@pytest.mark.parametrize(
    "batch, micro, words",
    [
        (8, None, "with 8 images a forward pass; --set training.micro_batch=4 "),
        (12, None, "with 12 images a forward pass; --set training.micro_batch=6 "),
        (9, None, "with 9 images a forward pass; --set training.micro_batch=3 "),
        (8, 2, "with 2 images a forward pass; --set training.micro_batch=1 "),
        (8, 1, "with 1 images a forward pass; the network is too large for this device"),
    ],
)
def test_the_advice_divides_the_batch(
    batch: int, micro: int | None, words: str, base_config: Configure, colour_data: PreparedData
) -> None:
    config = base_config(training={"batch_size": batch, "micro_batch": micro})
    assert words in Trainer(config, colour_data, CPU).memory_advice()


@pytest.mark.parametrize(
    "error, why",
    [
        (torch.OutOfMemoryError("too many"), "out of memory; a smaller training.preview_count needs less"),
        # Training holds its arrays open; a preview opens them anew.
        (UserError("data/val/images_8.npy: missing from the prepared data"), None),
    ],
)
def test_a_preview_that_cannot_be_made_is_left_out(
    error: Exception,
    why: str | None,
    tmp_path: Path,
    config: StageConfig,
    colour_data: PreparedData,
    undisturbed: dict[str, Tensor],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def failing(*args: object, **more: object) -> None:
        raise error

    monkeypatch.setattr(module, "write_preview", failing)
    train(config, colour_data, tmp_path, device=CPU)
    _assert_ends_well(tmp_path, undisturbed)
    assert caplog.messages[0] == f"the preview at 16 images was not written ({why or error}); the run goes on"


def test_a_failure_in_the_first_step_saves_nothing(
    tmp_path: Path, config: StageConfig, colour_data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Untrained weights would only stand in the way of the same command with a smaller network."""

    def failing(trainer: Trainer, batch: Any) -> Tensor:
        raise RuntimeError("too large")

    monkeypatch.setattr(Trainer, "losses", failing)
    with pytest.raises(RuntimeError, match=r"^too large; nothing was trained yet$"):
        train(config, colour_data, tmp_path, device=CPU)
    assert checkpoint_folders(tmp_path) == []


def test_a_preview_comes_after_the_checkpoint_of_its_moment(
    tmp_path: Path, config: StageConfig, colour_data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes longest, and a machine that is taken away meanwhile must not cost an interval."""
    there: list[list[int]] = []

    def looking(run: Path, images: int, *args: object, **more: object) -> None:
        there.append([images, *(int(folder.name) for folder in checkpoint_folders(run))])

    monkeypatch.setattr(module, "write_preview", looking)
    often = config.training.model_copy(update={"checkpoint_every": 16, "preview_every": 16})
    train(config.model_copy(update={"training": often}), colour_data, tmp_path, device=CPU)
    assert there
    assert all(images in kept for images, *kept in there)


def test_a_preview_that_was_left_out_is_drawn_when_the_run_goes_on(
    tmp_path: Path, config: StageConfig, colour_data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill between a checkpoint and the preview of its moment must not cost the preview."""
    with monkeypatch.context() as patched:
        patched.setattr(module, "write_preview", lambda *args, **more: None)
        train(config, colour_data, tmp_path, device=CPU, max_images=32)
    assert not (tmp_path / "previews").exists()
    train(config, colour_data, tmp_path, device=CPU, max_images=40)
    assert [path.name for path in (tmp_path / "previews").iterdir()] == ["000000000032.png"]


def test_a_users_error_on_the_way_saves_what_there_is(
    tmp_path: Path, config: StageConfig, colour_data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    def losses(trainer: Trainer, batch: Any) -> Tensor:
        if trainer.state.images == at:
            raise UserError("something that was given does not fit")
        return honest(trainer, batch)

    at, honest = 0, Trainer.losses
    monkeypatch.setattr(Trainer, "losses", losses)
    with pytest.raises(UserError, match=r"^something that was given does not fit$"):  # nothing is lost yet
        train(config, colour_data, tmp_path, device=CPU)
    at = 40
    with pytest.raises(RuntimeError, match=r"does not fit; all 40 images of training are saved$"):
        train(config, colour_data, tmp_path, device=CPU)
    assert int(checkpoint_folders(tmp_path)[-1].name) == 40


@pytest.mark.parametrize("micro_batch", ["auto", 4])
def test_what_is_tried_first_is_as_large_as_what_is_trained(
    sr_config: Configure, colour_data: PreparedData, micro_batch: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On crops of 16 of 32 pixels, from 8 of 16."""
    network = {"attention": [], "middle_attention": False}
    training = {"crop": 16, "micro_batch": micro_batch}
    trainer = Trainer(sr_config(32, low=16, network=network, training=training), colour_data, CPU)
    monkeypatch.setattr(trainer.engine, "sorts_buckets", True)
    seen = set()

    def losses(self: Trainer, batch: Any) -> Tensor:
        seen.add((batch.x0.shape[-1], batch.noise.shape[-1], batch.low_res.shape[-1]))
        return honest(self, batch)

    honest = Trainer.losses
    monkeypatch.setattr(Trainer, "losses", losses)
    trainer.warm_up()
    assert seen == {(16, 16, 8)}


# -- other failures ---------------------------------------------------------------------------------------------------


def test_a_failure_between_two_steps_saves_the_first(
    tmp_path: Path, config: StageConfig, colour_data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    def losses(trainer: Trainer, batch: Any) -> Tensor:
        if trainer.state.images == 40:
            raise RuntimeError("the device\nhas gone")
        return honest(trainer, batch)

    honest = Trainer.losses
    monkeypatch.setattr(Trainer, "losses", losses)
    with pytest.raises(RuntimeError, match=r"^the device has gone; all 40 images of training are saved$"):
        train(config, colour_data, tmp_path, device=CPU)
    assert int(checkpoint_folders(tmp_path)[-1].name) == 40


def test_half_a_step_is_never_saved(
    tmp_path: Path, config: StageConfig, colour_data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights moved and averages not: no checkpoint may hold that."""

    def step(*args: object, **kwargs: object) -> None:
        honest(*args, **kwargs)
        steps.append(1)
        if len(steps) == 5:
            raise RuntimeError("the device has gone")

    steps: list[int] = []
    honest = torch.optim.Adam.step
    monkeypatch.setattr(torch.optim.Adam, "step", step)
    with pytest.raises(
        RuntimeError, match=r"has gone; the checkpoint at 32 images stands, 8 images of training are not"
    ):
        train(config, colour_data, tmp_path, device=CPU)
    assert int(checkpoint_folders(tmp_path)[-1].name) == 32


def test_a_rescue_that_fails_says_so(
    tmp_path: Path, disk: Disk, config: StageConfig, colour_data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    def losses(trainer: Trainer, batch: Any) -> Tensor:
        if trainer.state.images == 40:
            disk.problem = errno.ENOSPC
            raise RuntimeError("the device has gone")
        return honest(trainer, batch)

    honest = Trainer.losses
    monkeypatch.setattr(Trainer, "losses", losses)
    with pytest.raises(RuntimeError) as caught:
        train(config, colour_data, tmp_path, device=CPU)
    assert str(caught.value) == (
        "the device has gone; the state could not be saved (No space left on device); the checkpoint at 32 images "
        "stands, 8 images of training are not in it"
    )
