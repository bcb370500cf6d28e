from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from cascaded_diffusion.cascade.chain import Cascade
from cascaded_diffusion.cascade.stage import Stage, StageConfig, build_network, fill_network, load_weights
from cascaded_diffusion.config import explain
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.networks.unet import UNet

Configure = Callable[..., StageConfig]


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"name": "base16"}, ["name", "'base16'", "base8, sr8"]),
        ({"name": "first"}, ["name", "'first'", "base8, sr8"]),
        ({"conditioning": {"low_resolution": 4}}, ["conditioning", "base8", "base stage"]),
        ({"network": {"multipliers": [1, 1, 1, 1, 1]}}, ["resolution", "8", "16"]),
        ({"network": {"attention": [5]}}, ["attention", "5", "[8]"]),
        ({"network": {"blocks": [1, 2]}}, ["blocks", "[1, 2]"]),
        ({"sampling": {"augmentation": "truncated"}}, ["sampling.augmentation", "truncated", "gaussian"]),
        ({"sampling": {"endpoints": [1e-4, 0.1]}}, ["sampling.endpoints", "continuous"]),
        (
            {"sampling": {"guidance": 2.0}, "training": {"class_dropout": 0.0}},
            ["sampling.guidance: 2", "class_dropout", "allowed 1"],
        ),
        ({"class_names": ["a", "b"]}, ["class_names", "2 names for 4 classes"]),
        ({"netwrk": {}}, ["netwrk"]),
        ({"network": {"chanels": 3}}, ["network", "chanels"]),
    ],
)
def test_a_base_stages_refusals(changes: dict[str, Any], words: list[str], base_config: Configure) -> None:
    with pytest.raises(ValidationError) as caught:
        base_config(**changes)
    line = explain(caught.value)
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"conditioning": None}, ["conditioning", "sr16", "needs it"]),
        ({"conditioning": {"low_resolution": 16}}, ["conditioning.low_resolution", "16 is not below 16"]),
        ({"conditioning": {"low_resolution": None}}, ["conditioning.low_resolution is missing"]),
        ({"conditioning": {"low_schedule": None}}, ["conditioning.low_schedule is missing"]),
        ({"sampling": {"s": 0.6}}, ["sampling.s: 0.6", "s_max 0.5"]),
    ],
)
def test_an_sr_stages_refusals(changes: dict[str, Any], words: list[str], sr_config: Configure) -> None:
    raw = sr_config().model_dump(mode="json")
    for key, value in changes.items():
        raw[key] = raw[key] | value if isinstance(value, dict) else value
    with pytest.raises(ValidationError) as caught:
        StageConfig.model_validate(raw)
    line = explain(caught.value)
    assert all(word in line for word in words), line


def test_the_network_has_what_the_configuration_says(base_config: Configure, sr_config: Configure) -> None:
    base = build_network(base_config(classes=None))
    assert (base.classes, base.low_res_channels, base.has_s, base.out_channels) == (None, 0, False, 3)
    learned = build_network(base_config(channels=1, diffusion={"variance": "learned"}))
    assert (learned.classes, learned.image_channels, learned.out_channels) == (4, 1, 2)
    gaussian = build_network(sr_config(conditioning={"upsample": "bicubic"}))
    assert (gaussian.low_res_channels, gaussian.has_s, gaussian.upsample) == (3, True, "bicubic")
    blur = build_network(sr_config(conditioning={"augmentation": "blur"}))
    assert (blur.low_res_channels, blur.has_s) == (3, False)


def test_a_stage_folder_comes_back_the_same(
    tmp_path: Path, random_stage: Callable[..., Stage], sr_config: Configure
) -> None:
    stage = random_stage(sr_config(class_names=["a", "b", "c", "d"]))
    stage.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    again = Stage.load(tmp_path)
    assert again.config == stage.config
    assert again.name == "sr16"
    assert all(torch.equal(a, b) for a, b in zip(stage.network.parameters(), again.network.parameters(), strict=True))
    assert not again.network.training
    assert not any(parameter.requires_grad for parameter in again.network.parameters())


def test_half_precision_halves_the_file_and_loads_as_float32(
    tmp_path: Path, random_stage: Callable[..., Stage], base_config: Configure
) -> None:
    stage = random_stage(base_config())
    stage.save(tmp_path / "full")
    stage.save(tmp_path / "half", dtype=torch.float16)
    full, half = ((tmp_path / name / "model.safetensors").stat().st_size for name in ("full", "half"))
    assert half < 0.6 * full
    again = Stage.load(tmp_path / "half")
    for a, b in zip(stage.network.parameters(), again.network.parameters(), strict=True):
        assert b.dtype == torch.float32
        assert torch.equal(a.half().float(), b)


def test_the_config_records_what_s_refers_to(
    tmp_path: Path, random_stage: Callable[..., Stage], sr_config: Configure
) -> None:
    random_stage(sr_config()).save(tmp_path)
    recorded = json.loads((tmp_path / "config.json").read_text())["conditioning"]
    assert recorded["augmentation"] == "gaussian"
    assert recorded["s_max"] == 0.5
    assert recorded["low_resolution"] == 8
    assert recorded["low_schedule"]["timesteps"] == 40


def test_missing_and_damaged_files_are_named(
    tmp_path: Path, random_stage: Callable[..., Stage], base_config: Configure
) -> None:
    with pytest.raises(UserError, match=r"config\.json: no such file"):
        Stage.load(tmp_path)
    random_stage(base_config()).save(tmp_path)
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    for content in (whole[:-10], whole[:4], b"", b"\xff" * 100):
        weights.write_bytes(content)
        with pytest.raises(UserError, match=r"model\.safetensors: not a readable safetensors file"):
            Stage.load(tmp_path)
    weights.unlink()
    with pytest.raises(UserError, match=r"model\.safetensors: no such file; .* train it first"):
        load_weights(weights)


@pytest.mark.parametrize(
    "changes, words", [({"flipp": True}, "flipp"), ({"format_version": 2}, "format_version"), ({"channels": 9}, "chan")]
)
def test_a_wrong_config_is_named(
    changes: dict[str, Any], words: str, tmp_path: Path, random_stage: Callable[..., Stage], base_config: Configure
) -> None:
    random_stage(base_config()).save(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError) as caught:
        Stage.load(tmp_path)
    assert str(path) in str(caught.value)
    assert words in str(caught.value)


def test_weights_of_another_network_are_told_by_tensor(
    tmp_path: Path, random_stage: Callable[..., Stage], base_config: Configure
) -> None:
    random_stage(base_config()).save(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    network = build_network(base_config())
    with pytest.raises(UserError, match=r"tensors missing for this config\.json: stem\.weight$"):
        fill_network(network, {k: v for k, v in tensors.items() if k != "stem.weight"}, path)
    with pytest.raises(UserError, match=r"tensors unexpected .*: extra$"):
        fill_network(network, {**tensors, "extra": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=r"tensors of another shape .*: stem\.weight$"):
        fill_network(network, {**tensors, "stem.weight": torch.zeros(3)}, path)
    save_file({}, path)
    with pytest.raises(UserError, match=r"tensors missing .* and \d+ more"):
        Stage.load(tmp_path)


class TestGuidance:
    """Guided output = without class + guidance (with class - without)."""

    @pytest.fixture
    def call(self, random_stage: Callable[..., Stage], sr_config: Configure) -> Callable[..., torch.Tensor]:
        stage = random_stage(sr_config(diffusion={"variance": "learned"}))
        x, low = torch.randn(2, 3, 16, 16), torch.randn(2, 3, 8, 8)
        time, s = torch.tensor([300.0, 300.0]), torch.tensor([0.1, 0.1])

        def call(labels: list[int], guidance: float = 1.0) -> torch.Tensor:
            network = stage.network_call(labels=torch.tensor(labels), low_res=low, s=s, guidance=guidance)
            return network(x, time)

        return call

    def test_it_extrapolates_from_without_class_to_with(self, call: Callable[..., torch.Tensor]) -> None:
        with_class, without = call([1, 2]), call([-1, -1])
        guided = call([1, 2], 2.5)
        expected = without + 2.5 * (with_class - without)
        torch.testing.assert_close(guided[:, :3], expected[:, :3], rtol=1e-3, atol=1e-4)
        assert (guided[:, :3] - with_class[:, :3]).abs().max() > 1e-2

    def test_guidance_0_is_without_class(self, call: Callable[..., torch.Tensor]) -> None:
        torch.testing.assert_close(call([1, 2], 0.0)[:, :3], call([-1, -1])[:, :3], rtol=1e-3, atol=1e-4)

    def test_a_learned_variance_is_that_of_the_class(self, call: Callable[..., torch.Tensor]) -> None:
        torch.testing.assert_close(call([1, 2], 2.5)[:, 3:], call([1, 2])[:, 3:], rtol=1e-3, atol=1e-4)


def test_others_may_read_a_saved_stage(
    tmp_path: Path, base_config: Configure, random_stage: Callable[..., Stage]
) -> None:
    (tmp_path / "plain").write_bytes(b"")
    random_stage(base_config(8)).save(tmp_path / "stage")
    modes = {path.stat().st_mode for path in (tmp_path / "plain", *(tmp_path / "stage").iterdir())}
    assert len(modes) == 1


@pytest.fixture
def saved_stage(tmp_path: Path, base_config: Configure, random_stage: Callable[..., Stage]) -> Path:
    random_stage(base_config()).save(tmp_path / "base8")
    return tmp_path / "base8"


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("network.channels", 8192, "model.safetensors: tensors "),
        ("network.multipliers", [64], "model.safetensors: tensors "),
        ("network.channels", 10**9, "network.channels: "),
        ("network.blocks", 10**9, "network.blocks"),
        ("network.multipliers", [1] * 99, "network.multipliers: "),
        ("network.multipliers", [1e308], "network.multipliers"),
        ("network.patch", 10**9, "network.patch: "),
        ("classes", 10**12, "classes: "),
        ("classes", 10**6, "tensors "),
    ],
)
def test_a_configuration_that_asks_for_terabytes_takes_no_memory(
    saved_stage: Path, frugal: Callable[..., str], key: str, value: Any, words: str
) -> None:
    config = json.loads((saved_stage / "config.json").read_text())
    *above, last = key.split(".")
    (config[above[0]] if above else config)[last] = value
    (saved_stage / "config.json").write_text(json.dumps(config | {"class_names": None}))
    outcome = frugal(lambda: Stage.load(saved_stage))
    assert outcome.startswith(f"UserError: {saved_stage}/")
    assert words in outcome


def test_an_opened_stage_has_memory_and_the_saved_weights(saved_stage: Path) -> None:
    stage = Stage.load(saved_stage)
    weights = load_file(saved_stage / "model.safetensors")
    for name, value in stage.network.state_dict().items():
        assert value.device.type == "cpu"
        assert value.dtype == torch.float32
        assert torch.equal(value, weights[name])


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_files_elsewhere_are_not_read(saved_stage: Path, name: str) -> None:
    (saved_stage / name).rename(saved_stage.parent / "elsewhere")
    (saved_stage / name).symlink_to("../elsewhere")
    with pytest.raises(UserError, match=rf"{name}: a link that leads out of"):
        Stage.load(saved_stage)


def test_weights_that_are_not_finite_are_refused(saved_stage: Path) -> None:
    path = saved_stage / "model.safetensors"
    weights = load_file(path)
    weights["stem.bias"][0] = float("nan")
    save_file(weights, path)
    with pytest.raises(UserError, match=r"model\.safetensors: stem\.bias holds values that are not finite"):
        Stage.load(saved_stage)


def test_a_compiled_stage_makes_the_same_samples(
    base_config: Configure, random_stage: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = random_stage(base_config())
    plain = Cascade([stage]).sample(3, batch_size=2, guidance=2.0)
    seen: list[int] = []

    def counting(network: UNet, choice: str, device: torch.device) -> Callable[..., torch.Tensor]:
        def call(x: torch.Tensor, time: torch.Tensor, **conditions: Any) -> torch.Tensor:
            seen.append(len(x))
            out: torch.Tensor = network(x, time, **conditions)
            return out

        assert (choice, device.type) == ("on", "cpu")
        return call

    monkeypatch.setattr("cascaded_diffusion.cascade.stage.cuda_graphs", counting)
    found = Cascade([stage]).accelerate(compile="on").sample(3, batch_size=2, guidance=2.0)
    assert set(seen) == {4, 2}  # with and without class at once
    np.testing.assert_array_equal(found, plain)


def test_weights_rounded_for_speed_are_not_saved(
    base_config: Configure, random_stage: Callable[..., Stage], tmp_path: Path
) -> None:
    stage = random_stage(base_config())
    plain = Cascade([stage]).sample(3).astype(int)
    stage.accelerate(compile="off", precision="fp32")
    stage.save(tmp_path / "exact")
    rounded = Cascade([stage]).accelerate(compile="off", precision="bf16").sample(3)
    assert stage.network.stem.weight.dtype == torch.bfloat16
    assert 0 < np.abs(rounded - plain).mean() < 8
    with pytest.raises(UserError, match=r"base8: accelerate\(precision=bf16\) has rounded its weights"):
        stage.save(tmp_path / "rounded")
    assert not (tmp_path / "rounded").exists()


def test_a_guides_weights_rounded_for_speed_are_its_owners_too(
    base_config: Configure, random_stage: Callable[..., Stage], tmp_path: Path
) -> None:
    stage, guide = random_stage(base_config()), random_stage(base_config(), seed=1)
    stage.guided_by(guide)
    stage.accelerate(compile="off", precision="bf16")
    with pytest.raises(UserError, match="has rounded its weights"):
        guide.save(tmp_path / "rounded")
    assert Cascade([guide]).sample(1).shape == (1, 8, 8, 3)
