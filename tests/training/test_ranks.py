"""Several processes train as one: the same result, the same bits after an interruption, and one end for all."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from cascaded_diffusion.cascade.stage import StageConfig
from cascaded_diffusion.training.checkpoint import checkpoint_folders, read_checkpoint
from cascaded_diffusion.training.loop import read_metrics

Configure = Callable[..., StageConfig]
Arguments = Callable[..., list[str]]
IMAGES, BATCH = 96, 12


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, sr_config: Configure) -> Path:
    """An SR stage with a batch that two processes halve and whose halves the micro-batch does not divide."""
    training = {"images": IMAGES, "batch_size": BATCH, "micro_batch": 4, "log_every": BATCH, "checkpoint_every": 24}
    training["augment"] = 0.3  # what the network is told of it must reach every pass
    config = sr_config(16, low=8, network={"attention": [8]}, training={**training, "keep_checkpoints": None})
    recorded = ("channels", "classes", "class_names", "flip", "format_version")
    stage = {key: value for key, value in config.model_dump(mode="json").items() if key not in recorded}
    base = {key: value for key, value in stage.items() if key not in ("conditioning", "sampling")}
    base |= {"name": "base8", "resolution": 8, "network": {"channels": 32, "multipliers": [1], "heads": 1}}
    base["sampling"] = {"sampler": "ddim", "steps": 4}
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(json.dumps({"name": "two", "channels": 3, "classes": 4, "flip": True, "stages": [base, stage]}))
    return path


@pytest.fixture(scope="module")
def arguments(recipe: Path, colour_folder: Path) -> Arguments:
    """``arguments(run)``: the words of the training command."""

    def make(run: Path, *more: str) -> list[str]:
        words = ["train", str(recipe), "--stage", "sr16", "--data", str(colour_folder), "--out", str(run)]
        return [*words, "--device", "cpu", *more]

    return make


@pytest.fixture(scope="module")
def launched(commands: Any, arguments: Arguments) -> Callable[..., Path]:
    """``launched(run, 2, "--max-images", "24")``: train with so many processes, which must succeed."""

    def train(run: Path, ranks: int, *more: str) -> Path:
        commands.launch(ranks, arguments(run, *more))
        assert commands.wait_all() == [0] * ranks, commands.log.read_text()
        return run

    return train


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, launched: Callable[..., Path]) -> dict[int, Path]:
    """The run of one process and that of two, never interrupted."""
    root = tmp_path_factory.mktemp("whole")
    return {ranks: launched(root / str(ranks), ranks) for ranks in (1, 2)}


def _tensors(run: Path, images: int) -> dict[str, Tensor]:
    folder = run / "checkpoints" / f"{images:012d}"
    read_checkpoint(folder)
    found = {
        f"{path.name}/{name}": value for path in folder.glob("*.safetensors") for name, value in load_file(path).items()
    }
    moments = torch.load(folder / "optimizer.pt", weights_only=True)["state"]
    return found | {f"{i}/{key}": value for i, state in moments.items() for key, value in state.items()}


def _assert_same_bits(run: Path, other: Path) -> None:
    one, two = _tensors(run, IMAGES), _tensors(other, IMAGES)
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


def test_two_processes_train_as_one(whole: dict[int, Path]) -> None:
    """The gradient of the first step, from Adam's first moments, up to the order of float32 sums."""
    one, two = _tensors(whole[1], 24), _tensors(whole[2], 24)
    assert one.keys() == two.keys()
    averages = [name for name in one if name.endswith("/exp_avg")]
    assert len(averages) > 20
    largest = max(float(one[name].abs().max()) for name in averages)
    epsilon = torch.finfo(torch.float32).eps
    # Each gradient is a sum over 12 images of up to 16 x 16 places, in another order: eps for each doubling, and as
    # much again for the second step, whose weights differ already.
    for name in averages:
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=2 * 12 * epsilon * largest)
    alone, together = read_metrics(whole[1]), read_metrics(whole[2])
    assert (
        [line["images"] for line in together] == [line["images"] for line in alone] == list(range(12, IMAGES + 1, 12))
    )
    for mine, theirs in zip(alone, together, strict=True):
        assert theirs["loss"] == pytest.approx(mine["loss"], rel=1e-3)
        assert [value is None for value in theirs["loss_by_time"]] == [value is None for value in mine["loss_by_time"]]
    assert together[0]["loss"] == pytest.approx(alone[0]["loss"], rel=12 * epsilon)
    assert together[0]["grad_norm"] == pytest.approx(alone[0]["grad_norm"], rel=24 * epsilon)


def test_two_processes_resume_to_the_bit(whole: dict[int, Path], launched: Callable[..., Path], tmp_path: Path) -> None:
    """With threads that make batches ahead, too."""
    for most in ("20", "60", str(IMAGES)):
        launched(tmp_path / "run", 2, "--max-images", most, "--data-workers", "2")
    _assert_same_bits(tmp_path / "run", whole[2])
    assert [line["loss"] for line in read_metrics(tmp_path / "run")] == [
        line["loss"] for line in read_metrics(whole[2])
    ]


@pytest.mark.parametrize("first, then", [(1, 2), (2, 1)])
def test_a_checkpoint_is_read_by_any_number_of_processes(
    first: int, then: int, whole: dict[int, Path], launched: Callable[..., Path], tmp_path: Path
) -> None:
    launched(tmp_path / "run", first, "--max-images", "48")
    launched(tmp_path / "run", then)
    # Adam divides by what may be rounding alone, so the weights part; what they are worth does not.
    for mine, theirs in zip(read_metrics(tmp_path / "run"), read_metrics(whole[1]), strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-3)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_either_process_stops_both_after_the_same_step(
    rank: int,
    whole: dict[int, Path],
    commands: Any,
    arguments: Arguments,
    launched: Callable[..., Path],
    tmp_path: Path,
) -> None:
    """It comes in the middle of the third step."""
    patch = f"""
import os, signal
from cascaded_diffusion.training.ema import Averages
def update(averages, batch_size, images):
    if rank == {rank} and images == 36:
        os.kill(os.getpid(), signal.SIGTERM)
    honest(averages, batch_size, images)
honest, Averages.update = Averages.update, update
"""
    run = tmp_path / "run"
    commands.launch(2, arguments(run, "--data-workers", "1"), patch=patch)
    assert commands.wait_all() == [143, 143], commands.log.read_text()
    assert [int(folder.name) for folder in checkpoint_folders(run)] == [24, 36]
    assert read_metrics(run)[-1]["images"] == 36
    launched(run, 2)
    _assert_same_bits(run, whole[2])


def test_when_one_process_is_killed_the_other_saves(
    whole: dict[int, Path], commands: Any, arguments: Arguments, launched: Callable[..., Path], tmp_path: Path
) -> None:
    """In its fourth step, between two checkpoints: nothing of the three steps before is lost."""
    run = tmp_path / "run"
    commands.launch(2, arguments(run), die_at=("torch.nn.utils:clip_grad_norm_", 4))
    assert commands.wait_all() == [1, -signal.SIGKILL]
    line = commands.log.read_text().splitlines()[-1]
    assert "another process of this launch has ended; its own message says why" in line
    saved = int(checkpoint_folders(run)[-1].name)
    # Rank 0 has the gradient of the fourth step by then; it learns of the death after that step at the latest.
    assert saved in (36, 48)
    assert f"all {saved} images of training are saved" in line
    launched(run, 2)
    _assert_same_bits(run, whole[2])


@pytest.mark.parametrize("moment", ["parting", "telling"])
def test_torchruns_signal_does_not_silence_what_is_saved(
    commands: Any, arguments: Arguments, tmp_path: Path, moment: str
) -> None:
    """It ends the processes that are left once one has died, and may reach one that has saved but not yet said so."""
    at = {"parting": "torch.distributed", "telling": "cascaded_diffusion.cli.app"}[moment]
    name = {"parting": "destroy_process_group", "telling": "is_ours_to_tell"}[moment]
    patch = f"""
import os, signal
import {at} as module
def overtaken(*arguments, **options):
    os.kill(os.getpid(), signal.SIGTERM)
    return honest(*arguments, **options)
honest, module.{name} = module.{name}, overtaken
"""
    told = len(commands.log.read_text())
    commands.launch(2, arguments(tmp_path / "run"), die_at=("torch.nn.utils:clip_grad_norm_", 4), patch=patch)
    assert commands.wait_all() == [143 if moment == "parting" else 1, -signal.SIGKILL]
    line = commands.log.read_text()[told:].splitlines()[-1]
    assert "another process of this launch has ended" in line
    assert "images of training are saved" in line


def test_a_process_that_does_not_answer_is_given_up(
    commands: Any, arguments: Arguments, launched: Callable[..., Path], tmp_path: Path
) -> None:
    """One that sleeps through its third step."""
    patch = """
import os, time
from cascaded_diffusion.training.ema import Averages
os.environ["CDM_RANK_TIMEOUT"] = "4"
def update(averages, batch_size, images):
    if rank == 1 and images == 36:
        time.sleep(9)
    honest(averages, batch_size, images)
honest, Averages.update = Averages.update, update
"""
    told = len(commands.log.read_text())
    commands.launch(2, arguments(tmp_path / "run"), patch=patch)
    assert commands.wait_all() == [1, 1]
    words = commands.log.read_text()[told:]
    assert "another process of this launch has ended" in words
    assert "all 36 images of training are saved" in words
    assert int(checkpoint_folders(tmp_path / "run")[-1].name) == 36


def test_a_batch_that_does_not_divide_is_refused(commands: Any, arguments: Arguments, tmp_path: Path) -> None:
    told = len(commands.log.read_text())
    commands.launch(2, arguments(tmp_path / "run", "--set", "training.batch_size=9", "--set", "training.micro_batch=3"))
    assert commands.wait_all() == [2, 2]
    assert commands.log.read_text()[told:] == (  # by one of them
        "cdm: training.batch_size: 9 does not divide over 2 processes; allowed: a multiple of their number\n"
    )
    assert not (tmp_path / "run").exists()


def test_what_rank_0_refuses_ends_both(
    whole: dict[int, Path], commands: Any, arguments: Arguments, tmp_path: Path
) -> None:
    shutil.copytree(whole[2], tmp_path / "run")
    told = len(commands.log.read_text())
    commands.launch(2, arguments(tmp_path / "run", "--set", "training.learning_rate=0.5"))
    assert commands.wait_all() == [2, 2]
    (line,) = commands.log.read_text()[told:].splitlines()
    assert "training.learning_rate: 0.001 -> 0.5" in line


def test_processes_that_have_drifted_apart_do_not_save(
    whole: dict[int, Path], commands: Any, arguments: Arguments, tmp_path: Path
) -> None:
    """One bit of one weight is enough."""
    patch = """
import torch
from cascaded_diffusion.training.ema import Averages
def update(averages, batch_size, images):
    honest(averages, batch_size, images)
    if rank == 1 and images == 36:
        weight = next(iter(averages._source.values()))
        weight.view(-1)[0] = torch.nextafter(weight.view(-1)[0], torch.tensor(9.0))
honest, Averages.update = Averages.update, update
"""
    commands.launch(2, arguments(tmp_path / "run"), patch=patch)
    assert commands.wait_all() == [1, 1]
    line = commands.log.read_text().splitlines()[-1]
    assert "the processes' weights have drifted apart after 48 images" in line
    assert [int(folder.name) for folder in checkpoint_folders(tmp_path / "run")] == [24]


def _torchrun(*words: str) -> subprocess.CompletedProcess[str]:
    source = Path(__file__).parents[2] / "src"
    path = os.pathsep.join([str(source), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.slow
def test_torchrun_as_it_is_documented(whole: dict[int, Path], arguments: Arguments, tmp_path: Path) -> None:
    where = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"]
    done = _torchrun(*where, "-m", "cascaded_diffusion", *arguments(tmp_path / "run"))
    assert done.stdout.count("sr16: 96 images seen") == 1
    _assert_same_bits(tmp_path / "run", whole[2])


KILLED_ONCE = """
import os, signal, sys
from cascaded_diffusion.cli.app import main
from cascaded_diffusion.training.ema import Averages

def update(averages, batch_size, images):
    if images == 36:
        os.kill(os.getpid(), signal.SIGKILL)
    honest(averages, batch_size, images)

honest = Averages.update
if os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
    Averages.update = update
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_torchrun_starts_again_after_a_lost_process(
    whole: dict[int, Path], arguments: Arguments, tmp_path: Path
) -> None:
    """Of the first launch rank 1 is killed in its third step, after a checkpoint; rank 0 saves, and all start anew."""
    script = tmp_path / "killed_once.py"
    script.write_text(KILLED_ONCE)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = [
        "--master-addr",
        "127.0.0.1",
        "--master-port",
        str(port),
        "--max-restarts",
        "1",
        "--monitor-interval",
        "0.1",
    ]
    done = _torchrun(*where, str(script), *arguments(tmp_path / "run"))
    assert done.stderr.count("cdm: another process of this launch has ended") == 1, done.stderr
    assert "images of training are saved" in done.stderr
    assert done.stdout.count("sr16: 96 images seen") == 1
    _assert_same_bits(tmp_path / "run", whole[2])
