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

    def train(run: Path, way: str, *more: object, ends: list[int] | None = None, **how: Any) -> Path:
        ranks, sharding = WAYS[way]
        words = ["train", recipe, "--stage", "base8", "--data", colour_folder, "--out", run, "--device", "cpu"]
        more = ("--set", f"training.sharding={sharding}", "--allow-changes", *more)
        imports = HEAVY if sharding == "full" else ()
        commands.launch(ranks, [str(word) for word in (*words, *more)], imports=imports, **how)
        assert commands.wait_all() == (ends or [0] * ranks), commands.log.read_text()
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


@pytest.mark.parametrize("first, then", [("4", "2"), ("4", "1"), ("4 sharded", "1"), ("1", "2 sharded")])
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
    """Answers are compared, not weights: biases before a norm have gradients of rounding errors, and wander."""
    ours, wanted = (stage_from_run(runs[way])[0] for way in ("4 sharded", "1"))
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(4, 3, 8, 8, generator=draw)
    conditions = {"labels": torch.arange(4), "low_res": None, "s": None}
    found, exact = (stage.network_call(**conditions)(x, torch.linspace(50, 950, 4)) for stage in (ours, wanted))
    error = torch.linalg.vector_norm(found - exact) / torch.linalg.vector_norm(exact)
    assert error < 1e-4


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


def test_when_a_process_is_lost_the_last_checkpoint_stands(
    runs: dict[str, Path], launch: Launch, commands: Any, tmp_path: Path
) -> None:
    run = _half(runs["2 sharded"], tmp_path / "run")
    log = len(commands.log.read_text())
    launch(run, "2 sharded", die_at=("torch.nn.utils:clip_grad_norm_", 3), ends=[1, -9])
    told = commands.log.read_text()[log:]
    assert told.count("cdm: another process of this launch has ended") == 1
    assert f"not saved; the checkpoint at {HALF} images stands, 16 images of training are not in it" in told
    assert [int(folder.name) for folder in checkpoint_folders(run)] == [HALF]


# -- two levels, attention, a low-resolution image, s: every kind of part that is gathered ---------------------------

TELL_NORMS = """
import json
from cascaded_diffusion.training.engine import Engine
from cascaded_diffusion.training.sharding import whole
steps = iter(range(100))
def clip(engine, limit):
    if next(steps) == 3:
        gradients = [(name, parameter.grad) for name, parameter in engine._network.named_parameters()]
        norms = {name: None if g is None else float(whole(g.norm())) for name, g in gradients}
        open(f"PLACE-{rank}", "w").write(json.dumps(norms))
    return honest(engine, limit)
honest, Engine.clip = Engine.clip, clip
"""

Large = Callable[[str], tuple[Path, dict[str, float]]]


@pytest.fixture(scope="module")
def large(
    tmp_path_factory: pytest.TempPathFactory, commands: Any, sr_config: Callable[..., StageConfig], colour_folder: Path
) -> Large:
    """``large("2 sharded")``: four steps of an SR stage in bf16, and the norm of every gradient in the last of them."""
    shape = {"multipliers": [1, 2], "attention": [4], "middle_attention": True}
    config = sr_config(16, low=8, network=shape, training={**TRAINING, "precision": "bf16"})
    recorded = ("channels", "classes", "class_names", "flip", "format_version")
    stage = {key: value for key, value in config.model_dump(mode="json").items() if key not in recorded}
    base = {key: value for key, value in stage.items() if key not in ("conditioning", "sampling")}
    base |= {"name": "base8", "resolution": 8, "network": {"channels": 32, "multipliers": [1], "heads": 1}}
    base["sampling"] = {"sampler": "ddim", "steps": 4}
    folder = tmp_path_factory.mktemp("large")
    recipe = {"name": "large", "channels": 3, "classes": 4, "flip": True, "stages": [base, stage]}
    (folder / "recipe.yaml").write_text(json.dumps(recipe))

    def train(way: str) -> tuple[Path, dict[str, float]]:
        ranks, sharding = WAYS[way]
        run = folder / way
        words = ["train", folder / "recipe.yaml", "--stage", "sr16", "--data", colour_folder, "--out", run]
        words += ["--device", "cpu", "--max-images", 4 * BATCH, "--set", f"training.sharding={sharding}"]
        patch = TELL_NORMS.replace("PLACE", str(folder / "norms"))
        commands.launch(ranks, [str(word) for word in words], patch=patch, imports=HEAVY)
        assert commands.wait_all() == [0] * ranks, commands.log.read_text()
        told = [json.loads((folder / f"norms-{rank}").read_text()) for rank in range(ranks)]
        assert told[0] == told[1]
        return run, told[0]

    return train


def test_every_parameter_gets_a_gradient_and_bf16_is_the_same(large: Large) -> None:
    (one, wanted), (two, found) = large("2"), large("2 sharded")
    assert found.keys() == wanted.keys()
    assert len(found) > 100
    assert [name for norms in (wanted, found) for name, norm in norms.items() if not norm] == []
    losses = [torch.tensor([line["loss"] for line in read_metrics(run)]) for run in (one, two)]
    # bf16 has 8 bits; autocast leaves the norms' weights and embeddings in float32, gathered they are rounded.
    torch.testing.assert_close(losses[1], losses[0], rtol=2**-7, atol=0)
