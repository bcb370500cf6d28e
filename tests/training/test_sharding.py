"""One, two and four processes, whole or sharded, train as one; what one launch saves, any other takes up."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from cascaded_diffusion.cascade.stage import StageConfig
from cascaded_diffusion.training.checkpoint import checkpoint_folders, read_checkpoint
from cascaded_diffusion.training.export import stage_from_run
from cascaded_diffusion.training.loop import read_metrics
from cascaded_diffusion.training.sharding import laid_out_as, whole

BATCH, STEPS = 8, 20
IMAGES, HALF = BATCH * STEPS, BATCH * STEPS // 2
TRAINING = {
    "images": IMAGES,
    "batch_size": BATCH,
    "log_every": BATCH,
    "checkpoint_every": HALF,
    "preview_every": IMAGES,
    "preview_count": 2,
    "keep_checkpoints": None,
    "precision": "fp32",
}
WAYS = {"1": (1, "none"), "2": (2, "none"), "4": (4, "none"), "2 sharded": (2, "full"), "4 sharded": (4, "full")}

HEAVY = ("torch.distributed.fsdp", "torch.distributed.tensor", "torch._dynamo")

Launch = Callable[..., Path]


@pytest.fixture(scope="module")
def launch(
    tmp_path_factory: pytest.TempPathFactory,
    commands: Any,
    base_config: Callable[..., StageConfig],
    colour_folder: Path,
) -> Launch:
    """``launch(run, "4 sharded", "--max-images", 80)``: train a base stage in so many processes."""
    config = base_config(8, training=TRAINING)
    recorded = ("channels", "classes", "class_names", "flip", "format_version")
    stage = {key: value for key, value in config.model_dump(mode="json").items() if key not in recorded}
    recipe = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    recipe.write_text(json.dumps({"name": "many", "channels": 3, "classes": 4, "flip": True, "stages": [stage]}))

    def train(run: Path, way: str, *more: object, patch: str = "") -> Path:
        ranks, sharding = WAYS[way]
        words = ["train", recipe, "--stage", "base8", "--data", colour_folder, "--out", run, "--device", "cpu"]
        more = ("--set", f"training.sharding={sharding}", "--allow-changes", *more)
        commands.launch(
            ranks, [str(word) for word in (*words, *more)], patch=patch, imports=HEAVY if sharding == "full" else ()
        )
        assert commands.wait_all() == [0] * ranks, commands.log.read_text()
        return run

    return train


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, launch: Launch) -> dict[str, Path]:
    """A run of each way, never interrupted."""
    root = tmp_path_factory.mktemp("ways")
    return {way: launch(root / way.replace(" ", "-"), way) for way in WAYS}


def _losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(run)]


def _assert_close(found: list[float], wanted: list[float]) -> None:
    assert len(found) == len(wanted) == STEPS
    # What the losses agree to over 20 steps of float32 whose sums are in other orders.
    torch.testing.assert_close(torch.tensor(found), torch.tensor(wanted), rtol=1e-4, atol=0)


def _tensors(folder: Path) -> dict[str, Tensor]:
    read_checkpoint(folder)
    found = {f"{path.name}/{name}": t for path in folder.glob("*.safetensors") for name, t in load_file(path).items()}
    moments: Mapping[int, Mapping[str, Tensor]] = torch.load(folder / "optimizer.pt", weights_only=True)["state"]
    return found | {f"{i}/{key}": value for i, state in moments.items() for key, value in state.items()}


@pytest.mark.parametrize("way", [way for way in WAYS if way != "1"])
def test_every_way_gives_the_same_losses(way: str, runs: dict[str, Path]) -> None:
    _assert_close(_losses(runs[way]), _losses(runs["1"]))
    norms = [[line["grad_norm"] for line in read_metrics(runs[key])] for key in (way, "1")]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)
    assert [path.name for path in sorted((runs[way] / "previews").iterdir())] == [
        path.name for path in sorted((runs["1"] / "previews").iterdir())
    ]


@pytest.mark.parametrize(
    "first, then", [("4", "2"), ("4", "1"), ("4 sharded", "1"), ("4 sharded", "2 sharded"), ("1", "2 sharded")]
)
def test_a_checkpoint_is_taken_up_by_any_other_launch(
    first: str, then: str, runs: dict[str, Path], launch: Launch, tmp_path: Path
) -> None:
    launch(_half(runs[first], tmp_path / "run"), then)
    _assert_close(_losses(tmp_path / "run"), _losses(runs["1"]))
    last = checkpoint_folders(tmp_path / "run")[-1]
    assert {name: value.shape for name, value in _tensors(last).items()} == {
        name: value.shape for name, value in _tensors(checkpoint_folders(runs["1"])[-1]).items()
    }


@pytest.mark.parametrize("way", ["4", "2 sharded"])
def test_the_same_launch_resumes_to_the_bit(way: str, runs: dict[str, Path], launch: Launch, tmp_path: Path) -> None:
    """Of four, sums in another order would show; two numbers have but one."""
    launch(_half(runs[way], tmp_path / "run"), way)
    one, two = (_tensors(checkpoint_folders(run)[-1]) for run in (tmp_path / "run", runs[way]))
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


def test_a_sharded_run_is_assembled_like_any_other(runs: dict[str, Path]) -> None:
    ours, wanted = (stage_from_run(runs[way])[0].network.state_dict() for way in ("4 sharded", "1"))
    for name, value in wanted.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=2e-3)


def _half(run: Path, copy: Path) -> Path:
    """The run as it was after its first checkpoint."""
    shutil.copytree(run, copy)
    first, *later = checkpoint_folders(copy)
    assert int(first.name) == HALF
    for folder in later:
        shutil.rmtree(folder)
    return copy


def test_whole_tensors_are_laid_out_as_their_targets() -> None:
    value = torch.arange(24.0).reshape(2, 3, 2, 2)
    target = torch.zeros(2, 3, 2, 2).contiguous(memory_format=torch.channels_last)
    found = laid_out_as(value, target)
    assert found.stride() == target.stride()
    assert torch.equal(found, value)
    assert laid_out_as(value, torch.zeros(2, 3, 2, 2)) is value
    steps = torch.tensor(3.0)
    assert laid_out_as(steps, target) is steps
    assert whole(value) is value
