"""Exported cascades load in diffusers without a warning, come back as they were, and say what they cannot be."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cascaded_diffusion.cascade.chain import Cascade
from cascaded_diffusion.cascade.stage import Stage, StageConfig
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.interop.diffusers_folder import export_diffusers, import_diffusers, load_diffusers_unet
from cascaded_diffusion.interop.stage_folder import write_stage_folder

NETWORK = {"channels": 32, "multipliers": [1, 2], "blocks": 1, "attention": [4], "head_channels": 16}
DIFFUSION = {"noise_schedule": {"kind": "cosine", "timesteps": 1000}, "prediction": "v"}
BASE: dict[str, Any] = {
    "name": "base8",
    "resolution": 8,
    "network": NETWORK | {"resample": "block"},
    "diffusion": DIFFUSION,
    "training": {"class_dropout": 0.1},
    "sampling": {"sampler": "ddim", "steps": "ddim4", "guidance": 1.5},
    "channels": 3,
    "classes": 3,
    "class_names": ["Bag", "Hat", "Shoe"],
}
SR: dict[str, Any] = BASE | {
    "name": "sr16",
    "resolution": 16,
    "network": NETWORK | {"attention": [8]},
    "diffusion": {"noise_schedule": {"kind": "linear", "timesteps": 1000}, "variance": "learned"},
    "conditioning": {"augmentation": "blur", "low_resolution": 8, "upsample": "bicubic"},
    "sampling": {"sampler": "ancestral", "steps": 20},
}


@pytest.fixture(scope="session")
def twins(random_stage: Callable[..., Stage]) -> Cascade:
    """A cascade that diffusers can express: 8 -> 16 pixels, three classes, guided, one with learned variance."""
    stages = [random_stage(StageConfig.model_validate(raw), seed) for seed, raw in enumerate((BASE, SR))]
    return Cascade(stages)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, twins: Cascade) -> Path:
    """``twins``, exported."""
    folder = tmp_path_factory.mktemp("exported") / "twins"
    assert export_diffusers(twins, folder) == []
    return folder


@pytest.fixture
def damaged(exported: Path, tmp_path: Path) -> Path:
    """A copy of the exported base stage that a test may damage."""
    shutil.copytree(exported / "base8", tmp_path / "base8")
    return tmp_path / "base8"


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_files(exported: Path) -> None:
    found = {str(path.relative_to(exported)) for path in exported.rglob("*") if path.is_file()}
    stage = ["scheduler/scheduler_config.json", "stage.json"]
    stage += ["unet/config.json", "unet/diffusion_pytorch_model.safetensors"]
    expected = {f"{name}/{file}" for name in ("base8", "sr16") for file in stage}
    assert found == {"README.md", "load_cascade.py", "stages.json", *expected}
    assert "base8" in (exported / "README.md").read_text()


@pytest.mark.parametrize("name", ["base8", "sr16"])
@torch.no_grad()
def test_diffusers_loads_them_without_a_word(
    name: str, exported: Path, twins: Cascade, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    logging.getLogger("diffusers").addHandler(caplog.handler)
    try:
        model, info = diffusers.UNet2DModel.from_pretrained(
            exported / name / "unet", output_loading_info=True, low_cpu_mem_usage=False
        )
        kind = {"base8": diffusers.DDIMScheduler, "sr16": diffusers.DDPMScheduler}[name]
        kind.from_pretrained(exported / name / "scheduler")
    finally:
        logging.getLogger("diffusers").removeHandler(caplog.handler)
    assert not caplog.records
    assert capfd.readouterr() == ("", "")
    assert not any(info.values())
    stage = twins.stages[name]
    side = stage.config.resolution
    x, time, labels = torch.randn(2, 3, side, side), torch.tensor([0, 999]), torch.tensor([2, 0])
    low_res = torch.randn(2, 3, side, side) if name == "sr16" else None
    inputs = x if low_res is None else torch.cat([x, low_res], dim=1)
    theirs = model.eval()(inputs, time, class_labels=labels).sample
    ours = stage.network(x, time.float(), labels=labels, low_res=low_res)
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)


def test_what_diffusers_saves_again_is_the_same(exported: Path, tmp_path: Path) -> None:
    model = diffusers.UNet2DModel.from_pretrained(exported / "base8/unet", low_cpu_mem_usage=False)
    model.save_pretrained(tmp_path)
    ours, theirs = (json.loads((folder / "config.json").read_text()) for folder in (exported / "base8/unet", tmp_path))
    for version in (ours, theirs):
        version.pop("_diffusers_version")
    assert {key: value for key, value in theirs.items() if key != "_name_or_path"} == ours
    weights = [load_file(f / "diffusion_pytorch_model.safetensors") for f in (exported / "base8/unet", tmp_path)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@torch.no_grad()
def test_stages_come_back(exported: Path, twins: Cascade, tmp_path: Path) -> None:
    stages = []
    for name, original in twins.stages.items():
        imported = import_diffusers(exported / name)
        assert imported.provenance["from"] == "diffusers"
        write_stage_folder(imported, tmp_path / name)
        stages.append(Stage.load(tmp_path / name))
        whole = original.config.model_copy(update={"network": stages[-1].config.network})
        assert stages[-1].config == whole
    again = Cascade(stages)
    assert np.array_equal(again.sample(3, seed=4), twins.sample(3, seed=4))


@torch.no_grad()
def test_stages_come_back_without_our_notes(exported: Path, twins: Cascade, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "copy")
    for name in twins.stages:
        (tmp_path / "copy" / name / "stage.json").unlink()
    base = import_diffusers(tmp_path / "copy/base8").stage
    sr = import_diffusers(tmp_path / "copy/sr16", low_resolution=8).stage
    assert (base.name, base.config.classes, base.config.training.class_dropout) == ("base8", 3, 0.1)
    assert (sr.name, sr.config.channels, sr.config.diffusion.variance) == ("sr16", 3, "learned")
    conditioning = sr.config.conditioning
    assert conditioning is not None
    assert (conditioning.augmentation, conditioning.low_resolution) == ("none", 8)
    x, labels = torch.randn(2, 3, 8, 8), torch.tensor([-1, 2])
    time = torch.tensor([3.0, 700.0])
    assert torch.equal(base.network(x, time, labels=labels), twins.stages["base8"].network(x, time, labels=labels))
    images = Cascade([base, sr]).sample(2, steps=2)
    assert isinstance(images, np.ndarray)
    assert images.shape == (2, 16, 16, 3)


@torch.no_grad()
def test_a_network_alone(exported: Path, twins: Cascade, tmp_path: Path) -> None:
    network = load_diffusers_unet(exported / "base8/unet")
    x, time, labels = torch.randn(1, 3, 8, 8), torch.tensor([3.0]), torch.tensor([1])
    assert not network.training
    assert torch.equal(network(x, time, labels=labels), twins.stages["base8"].network(x, time, labels=labels))
    assert load_diffusers_unet(exported / "sr16").low_res_channels == 0
    sr = load_diffusers_unet(exported / "sr16", low_res_channels=3)
    x, low = torch.randn(1, 3, 16, 16), torch.randn(1, 3, 16, 16)
    expected = twins.stages["sr16"].network(x, time, labels=labels, low_res=low)
    torch.testing.assert_close(sr(x, time, labels=labels, low_res=low), expected)
    with pytest.raises(UserError, match=r"low_res_channels: 6 of 6 input channels; allowed: 0 to 5"):
        load_diffusers_unet(exported / "sr16", low_res_channels=6)


@torch.no_grad()
def test_a_pipeline_saved_by_diffusers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = diffusers.UNet2DModel(
        sample_size=16,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    diffusers.DDPMPipeline(model, diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")).save_pretrained(tmp_path)
    stage = import_diffusers(tmp_path).stage
    assert stage.config.diffusion.noise_schedule.describe() == "cosine T=1000"
    x, time = torch.randn(1, 3, 16, 16), torch.tensor([77.0])
    torch.testing.assert_close(stage.network(x, time), model.eval()(x, time).sample, rtol=0, atol=1e-5)
    weights = tmp_path / "unet/diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), tmp_path / "unet/diffusion_pytorch_model.bin")
    weights.unlink()
    assert torch.equal(import_diffusers(tmp_path).stage.network(x, time), stage.network(x, time))


def test_all_that_cannot_be_exported_is_named(
    base_config: Callable[..., StageConfig],
    sr_config: Callable[..., StageConfig],
    random_stage: Callable[..., Stage],
    tmp_path: Path,
) -> None:
    low = base_config(8, diffusion={"noise_schedule": {"timesteps": None}}, network={"resample": "plain"})
    high = sr_config(16, low=8, conditioning={"low_schedule": {"timesteps": None}})
    with pytest.raises(UserError) as caught:
        export_diffusers(Cascade([random_stage(low), random_stage(high)]), tmp_path / "out")
    for words in (
        "export: diffusers cannot express base8: network.resample: plain",
        "base8: diffusion.noise_schedule: cosine continuous",
        "sr16: conditioning.augmentation: gaussian",
        "sr16: network.patch: 2",
    ):
        assert words in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_the_packaged_cascade_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"sr32: conditioning\.augmentation: gaussian"):
        export_diffusers(Cascade.from_pretrained("demo"), tmp_path / "out")


def test_nothing_is_left_of_a_failure(twins: Cascade, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cascaded_diffusion.interop.diffusers_folder.write_tensors", full)
    with pytest.raises(OSError, match="No space"):
        export_diffusers(twins, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_filled_folder_is_refused(twins: Cascade, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("here before")
    with pytest.raises(UserError, match="already there and not an empty folder"):
        export_diffusers(twins, tmp_path)


def test_files_that_are_missing(exported: Path, damaged: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json, nor a sub-folder unet"):
        import_diffusers(exported)
    with pytest.raises(UserError, match=r"a stage needs unet/config\.json and scheduler/scheduler_config\.json"):
        import_diffusers(exported / "base8/unet")
    weights = damaged / "unet/diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    with pytest.raises(UserError, match=r"no diffusion_pytorch_model\.safetensors.*found: .*fp16"):
        import_diffusers(damaged)


def test_damaged_weights(damaged: Path) -> None:
    weights = damaged / "unet/diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    state["conv_out.wait"] = state.pop("conv_out.weight")
    save_file(state, weights)
    with pytest.raises(UserError, match=r"conv_out\.weight is missing; conv_out\.wait is not part"):
        import_diffusers(damaged)
    weights.write_bytes(weights.read_bytes()[:999])
    with pytest.raises(UserError, match=r"safetensors: not a readable safetensors file"):
        import_diffusers(damaged)


def test_files_that_changed_since_the_export(damaged: Path) -> None:
    edit(damaged / "scheduler/scheduler_config.json", prediction_type="epsilon")
    with pytest.raises(UserError, match=r"scheduler_config\.json: not the one that stage\.json .* delete stage\.json"):
        import_diffusers(damaged)
    (damaged / "stage.json").unlink()
    assert import_diffusers(damaged).stage.config.diffusion.prediction == "eps"


def test_a_network_that_changed_since_the_export(damaged: Path) -> None:
    edit(damaged / "unet/config.json", dropout=0.5)
    with pytest.raises(UserError, match=r"unet/config\.json: not the one that stage\.json"):
        import_diffusers(damaged)


def test_kinds_that_do_not_fit(exported: Path, damaged: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--low-resolution: 4 is not what .*stage\.json says: None"):
        import_diffusers(damaged, low_resolution=4)
    (damaged / "stage.json").unlink()
    with pytest.raises(UserError, match="in_channels 3 and out_channels 3 are not those of an up-sampler"):
        import_diffusers(damaged, low_resolution=4)
    shutil.copytree(exported / "sr16", tmp_path / "sr16")
    (tmp_path / "sr16/stage.json").unlink()
    edit(tmp_path / "sr16/unet/config.json", out_channels=3)
    with pytest.raises(UserError, match=r"in_channels 6 and out_channels 3 are not those of a base model.*--low-resol"):
        import_diffusers(tmp_path / "sr16")
    edit(tmp_path / "sr16/unet/config.json", out_channels=6)
    with pytest.raises(UserError, match="low_resolution: 16 is not below 16"):
        import_diffusers(tmp_path / "sr16", low_resolution=16)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"diffusion": DIFFUSION | {"prediction": "edm"}}, "base8: diffusion.prediction: edm; allowed: eps, x0, v"),
        ({"network": BASE["network"] | {"scaled_skips": True}}, "base8: network.scaled_skips: true; allowed: false"),
        ({"network": BASE["network"] | {"up_after_conv": True}}, "base8: network.up_after_conv: true; allowed: false"),
        ({"network": BASE["network"] | {"dropout": [0, 0.1]}}, r"base8: network.dropout: \[0.0, 0.1\] differ by level"),
        (
            {"sampling": {"guidance": 2, "guidance_interval": [0.2, 3]}},
            r"base8: sampling.guidance_interval: \(0.2, 3.0\); allowed: null",
        ),
    ],
)
def test_modern_options_are_refused_by_name(
    changes: dict[str, Any], words: str, random_stage: Callable[..., Stage], tmp_path: Path
) -> None:
    stage = random_stage(StageConfig.model_validate(BASE | changes))
    with pytest.raises(UserError, match=words):
        export_diffusers(Cascade([stage]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_guide_and_a_relay_start_are_refused(random_stage: Callable[..., Stage], tmp_path: Path) -> None:
    base, sr = (random_stage(StageConfig.model_validate(raw)) for raw in (BASE, SR | {"sampling": {"start": 0.5}}))
    base.guided_by(random_stage(StageConfig.model_validate(BASE), 1))
    with pytest.raises(
        UserError, match=r"base8: a guide; assemble it without.*sr16: sampling.start: 0.5; allowed: null"
    ):
        export_diffusers(Cascade([base, sr]), tmp_path / "out")


def test_weights_rounded_for_speed_are_refused(random_stage: Callable[..., Stage], tmp_path: Path) -> None:
    cascade = Cascade([random_stage(StageConfig.model_validate(BASE))])
    cascade.accelerate(compile="off", precision="bf16")
    with pytest.raises(UserError, match="base8: weights rounded by accelerate"):
        export_diffusers(cascade, tmp_path / "out")


def test_the_embedding_of_an_augmentation_is_left_behind(random_stage: Callable[..., Stage], tmp_path: Path) -> None:
    """A sample is told of none, so that the embedding adds nothing."""
    stage = random_stage(StageConfig.model_validate(BASE | {"training": BASE["training"] | {"augment": 0.1}}))
    export_diffusers(Cascade([stage]), tmp_path / "out")
    network = load_diffusers_unet(tmp_path / "out/base8")
    again = import_diffusers(tmp_path / "out/base8")
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    told = {"time": torch.tensor([3.0, 400.0]), "labels": torch.tensor([0, 2])}
    for other in (network, again.stage.network):
        torch.testing.assert_close(other(x, **told), stage.network(x, **told), rtol=1e-4, atol=1e-5)
