"""Power-function averages: closed forms, reconstruction of any length, and snapshots of a run that is resumed."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from cascaded_diffusion.cascade.stage import StageConfig
from cascaded_diffusion.data.prepared import PreparedData
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.training.checkpoint import averaged_weights, checkpoint_folders, find_checkpoint
from cascaded_diffusion.training.export import stage_from_run
from cascaded_diffusion.training.loop import train
from cascaded_diffusion.training.power_ema import PowerAverages, Profile, gamma_of, reconstruct, sigma_rel_of
from cascaded_diffusion.training.snapshots import is_length
from cascaded_diffusion.training.trainer import Trainer

Configure = Callable[..., StageConfig]
CPU = torch.device("cpu")


def test_gamma_and_sigma_rel() -> None:
    # The paper's table of section 3.1: sigma_rel 0.05 and 0.10 are gamma 16.97 and 6.94.
    assert gamma_of(0.05) == pytest.approx(16.97, abs=5e-3)
    assert gamma_of(0.10) == pytest.approx(6.94, abs=5e-3)
    assert gamma_of(1 / 12**0.5) == pytest.approx(0, abs=1e-9)
    for sigma_rel in (0.01, 0.13, 0.28):
        assert sigma_rel_of(gamma_of(sigma_rel)) == pytest.approx(sigma_rel)
    # The standard deviation of the profile itself, by sums.
    tau = (np.arange(200_000) + 0.5) / 200_000
    density = tau ** gamma_of(0.13)
    mean = (tau * density).sum() / density.sum()
    assert np.sqrt(((tau - mean) ** 2 * density).sum() / density.sum()) == pytest.approx(0.13, rel=1e-4)


def _steps(count: int) -> torch.Tensor:
    """What one weight is after each step: a smooth way with noise."""
    generator = torch.Generator().manual_seed(0)
    return torch.linspace(0, 3, count).sin() + 0.3 * torch.randn(count, generator=generator)


def _tracked(values: torch.Tensor, sigma_rels: tuple[float, ...], batch: int) -> list[dict[float, float]]:
    """The averages after each step."""
    network = nn.Linear(1, 1, bias=False)
    averages = PowerAverages(network, sigma_rels)
    found = []
    for step, value in enumerate(values, start=1):
        nn.init.constant_(network.weight, value.item())
        averages.update(batch, step * batch)
        found.append({s: averages.weights[f"power-{s:g}"]["weight"].item() for s in sigma_rels})
    return found


def test_the_average_is_the_profiles_integral() -> None:
    """Weights stand still within a step: w_i counts ((i/n)^(gamma+1) - ((i-1)/n)^(gamma+1)), and the start nothing."""
    values = _steps(50)
    for sigma_rel in (0.05, 0.2):
        exponent = gamma_of(sigma_rel) + 1
        edges = (np.arange(51) / 50) ** exponent
        expected = float((np.diff(edges) * values.double().numpy()).sum())
        assert _tracked(values, (sigma_rel,), 8)[-1][sigma_rel] == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("wanted", [0.06, 0.08, 0.12, 0.15])
def test_reconstruction_is_near_what_was_tracked(wanted: float) -> None:
    values = _steps(2000)
    tracked = _tracked(values, (0.05, 0.10, wanted), 4)
    at = range(99, 2000, 100)
    profiles = [Profile(4 * (step + 1), gamma_of(s)) for step in at for s in (0.05, 0.10)]
    solution = reconstruct(profiles, Profile(8000, gamma_of(wanted)))
    found = sum(
        coefficient * tracked[step][s]
        for coefficient, (step, s) in zip(
            solution.coefficients, [(t, s) for t in at for s in (0.05, 0.10)], strict=True
        )
    )
    assert solution.error < 0.01
    assert found == pytest.approx(tracked[-1][wanted], abs=2e-3)
    # No single snapshot is: the lengths matter here.
    assert min(abs(tracked[-1][s] - tracked[-1][wanted]) for s in (0.05, 0.10)) > 2e-3


def test_a_snapshot_reconstructs_itself_and_a_poor_set_says_so() -> None:
    profiles = [Profile(100, 16.97), Profile(100, 6.94)]
    own = reconstruct(profiles, Profile(100, 6.94))
    assert own.coefficients == pytest.approx([0, 1], abs=1e-9)
    assert own.error < 1e-6
    assert reconstruct(profiles, Profile(100, gamma_of(0.25))).error > 0.1
    # By sums on a fine grid: the same least squares, one coefficient being 1 less the other.
    tau = (np.arange(100_000) + 0.5) / 1000
    columns = np.stack([(g + 1) * tau**g / 100 ** (g + 1) for _, g in profiles], axis=1)
    target = 4.0 * tau**3 / 100**4
    difference, rest = columns[:, 0] - columns[:, 1], target - columns[:, 1]
    first = (difference @ rest) / (difference @ difference)
    assert reconstruct(profiles, Profile(100, 3.0)).coefficients == pytest.approx([first, 1 - first], rel=1e-4)


@pytest.fixture(scope="module")
def config(base_config: Configure) -> StageConfig:
    """Eight steps, a snapshot after every second, a checkpoint after every fourth."""
    power = {"power_ema": [0.05, 0.1], "snapshot_every": 16, "checkpoint_every": 32}
    return base_config(4, training={**power, "class_dropout": 0.0, "learning_rate": 0.01})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, config: StageConfig, colour_data: PreparedData) -> Path:
    folder = tmp_path_factory.mktemp("power") / "run"
    train(config, colour_data, folder, device=CPU)
    return folder


def _files(run: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(run)): path.read_bytes()
        for kind in ("snapshots", "checkpoints")
        for path in sorted((run / kind).rglob("*.safetensors"))
    }


def test_a_run_keeps_snapshots(run: Path) -> None:
    assert sorted(path.name for path in (run / "snapshots").iterdir()) == [f"{n:012d}" for n in (16, 32, 48, 64)]
    at_32 = load_file(run / "snapshots/000000000032/power-0.05.safetensors")
    in_checkpoint = load_file(run / "checkpoints/000000000032/ema-power-0.05.safetensors")
    assert all(torch.equal(at_32[key], value) for key, value in in_checkpoint.items())


def test_averages_that_are_not_finite_are_not_kept(
    config: StageConfig, colour_data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss is finite long after a weight that it does not depend on is not."""
    honest = Trainer.step

    def broken(trainer: Trainer, *arguments: Any) -> None:
        honest(trainer, *arguments)
        if trainer.state.images == 24:
            next(iter(trainer.state.power.weights["power-0.1"].values())).view(-1)[0] = math.inf

    monkeypatch.setattr(Trainer, "step", broken)
    with pytest.raises(RuntimeError, match="is not finite after 32 images; nothing was saved"):
        train(config, colour_data, tmp_path, device=CPU)
    assert [path.name for path in (tmp_path / "snapshots").iterdir()] == ["000000000016"]


def test_resuming_makes_the_same_snapshots(
    run: Path, config: StageConfig, colour_data: PreparedData, tmp_path: Path
) -> None:
    again = tmp_path / "run"
    train(config, colour_data, again, device=CPU, max_images=32)
    # One from beyond the checkpoint, as a killed process leaves it, with another's content.
    shutil.copytree(run / "snapshots/000000000016", again / "snapshots/000000000048")
    (again / "snapshots/.writing-000000000064").mkdir()
    train(config, colour_data, again, device=CPU, max_images=40)
    assert not (again / "snapshots/000000000048").exists()
    assert not (again / "snapshots/.writing-000000000064").exists()
    train(config, colour_data, again, device=CPU)
    newest = {name: value for name, value in _files(again).items() if "000000000040" not in name}
    assert newest == {name: value for name, value in _files(run).items() if name in newest}
    assert len([name for name in newest if name.startswith("snapshots")]) == 8


def test_any_length_after_training(
    run: Path, config: StageConfig, colour_data: PreparedData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = find_checkpoint(run)
    tracked, choice = averaged_weights(folder, "0.05")
    assert choice == "0.05"
    assert torch.equal(tracked["stem.weight"], load_file(folder / "ema-power-0.05.safetensors")["stem.weight"])
    between, choice = averaged_weights(folder, "0.08")
    assert choice == "0.08"
    # Four snapshots of eight steps are few, and the profile says how few.
    assert "8 averages of the run give a length of 0.08 with an error of 3 %" in caplog.text
    # The same run, with that length tracked.
    direct_config = config.model_copy(update={"training": config.training.model_copy(update={"power_ema": (0.08,)})})
    train(direct_config, colour_data, tmp_path / "direct", device=CPU)
    direct, _ = averaged_weights(find_checkpoint(tmp_path / "direct"), "0.08")

    def apart(one: dict[str, torch.Tensor]) -> float:
        return float(sum(((one[key] - value) ** 2).sum() for key, value in direct.items()) ** 0.5)

    assert apart(between) < 0.1 * apart(tracked)
    assert apart(between) < 0.1 * apart(averaged_weights(folder, "0.10")[0])
    stage, origin = stage_from_run(run, ema="0.08")
    assert origin == {"images": 64, "ema": "0.08"}
    assert torch.equal(stage.network.stem.weight, between["stem.weight"])


def test_a_length_that_was_asked_for_later_does_not_spoil_the_others(
    config: StageConfig, colour_data: PreparedData, tmp_path: Path
) -> None:
    """The snapshots before it lack it, and are used for what they have."""
    first = config.model_copy(update={"training": config.training.model_copy(update={"power_ema": (0.05,)})})
    train(first, colour_data, tmp_path / "run", device=CPU, max_images=32)
    train(config, colour_data, tmp_path / "run", device=CPU, allow_changes=True)
    assert averaged_weights(find_checkpoint(tmp_path / "run"), "0.08")[1] == "0.08"


def test_lengths_that_cannot_be_had_are_refused(run: Path, tiny_runs: dict[str, Path], tmp_path: Path) -> None:
    folder = find_checkpoint(run)
    with pytest.raises(UserError, match=r"--ema: 0.29 is not a relative length; allowed: above 0, up to 0.288"):
        averaged_weights(folder, "0.29")
    with pytest.raises(UserError, match=r"averages of the run give a length of 0.001 with an error of"):
        averaged_weights(folder, "0.001")
    with pytest.raises(UserError, match=r"--ema: 0.05 needs a run with training.power_ema"):
        averaged_weights(find_checkpoint(tiny_runs["base8"]), "0.05")
    shutil.copytree(run, tmp_path / "run")
    damaged = tmp_path / "run/snapshots/000000000016/power-0.1.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"000000000016/power-0.1.safetensors: damaged"):
        averaged_weights(checkpoint_folders(tmp_path / "run")[-1], "0.08")


def test_what_a_length_looks_like() -> None:
    assert all(map(is_length, ("0.05", ".1", "0.123456789")))
    assert not any(map(is_length, ("5", "raw", "1.5", "0.05x", "10000")))


@pytest.mark.parametrize(
    "values, words",
    [
        ({"power_ema": [0.3]}, "power_ema.* 0.288"),
        ({"power_ema": [0.05, 0.05]}, "power_ema: .* names one twice"),
        ({"snapshot_every": 10}, "snapshot_every: 10 needs power_ema"),
    ],
)
def test_settings_that_do_not_fit(values: dict[str, object], words: str, base_config: Configure) -> None:
    with pytest.raises(ValueError, match=f"(?s){words}"):
        base_config(4, training=values)
