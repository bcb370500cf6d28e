"""Stages from guided-diffusion's checkpoints: what the flags make of them, and that they chain and sample."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from cascaded_diffusion.cascade.chain import Cascade
from cascaded_diffusion.cascade.generate import sample_stage
from cascaded_diffusion.cascade.stage import Stage
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.interop.guided_diffusion import load_guided_diffusion
from cascaded_diffusion.interop.guided_stage import import_guided_diffusion
from cascaded_diffusion.interop.script_flags import read_flags
from cascaded_diffusion.interop.stage_folder import write_stage_folder
from cascaded_diffusion.networks.unet import UNet

BASE = "--image_size 16 --channel_mult 1,2 --num_channels 32 --num_res_blocks 1 --attention_resolutions 8"
LARGE = "--large_size 32 --small_size 16 --channel_mult 1,1 --num_channels 32 --num_res_blocks 1"

AdmCheckpoint = Callable[..., tuple[Path, UNet]]


def small(flags: str) -> str:
    """A published model's flags with the least width that keeps its structure."""
    words = flags.split()
    for name, value in (("num_channels", "64"), ("num_head_channels", "32")):
        if f"--{name}" in words:
            words[words.index(f"--{name}") + 1] = value
    return " ".join(words)


def test_small_versions_of_the_published_models(
    published: tuple[str, str, bool, str], shapes_of: Callable[..., dict[str, list[int]]]
) -> None:
    """A state dict of the architecture's own names and shapes, not of ours, fills the network to the last tensor."""
    _, family, upsampler, flags = published
    read = read_flags(small(flags), family)
    arguments = read.constructor_arguments(upsampler=upsampler, classes=10)
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(shape, generator=generator) for name, shape in shapes_of(arguments).items()}
    network = load_guided_diffusion(state, **arguments).network
    assert network.low_res_channels == (3 if upsampler else 0)
    assert network.out_channels == 6
    count = sum(value.numel() for value in network.state_dict().values())
    assert count == sum(value.numel() for value in state.values())


def test_a_base_stage(adm_checkpoint: AdmCheckpoint, tmp_path: Path) -> None:
    flags = (
        f"{BASE} --class_cond True --learn_sigma True --noise_schedule cosine --timestep_respacing ddim25 --use_ddim 1"
    )
    path, network = adm_checkpoint(flags, classes=7)
    imported = import_guided_diffusion(path, f"{flags} --batch_size 4")
    config = imported.stage.config
    assert (config.name, config.resolution, config.channels, config.classes) == ("base16", 16, 3, 7)
    assert config.diffusion.noise_schedule.describe() == "cosine T=1000"
    assert (config.diffusion.prediction, config.diffusion.variance) == ("eps", "learned")
    assert (config.sampling.sampler, config.sampling.steps, config.sampling.clip) == ("ddim", "ddim25", True)
    assert config.training.class_dropout == 0
    assert imported.left_out == ("batch_size 4",)
    assert imported.provenance["from"] == "guided-diffusion"
    assert imported.provenance["file"] == path.name
    assert len(imported.provenance["sha256"]) == 64
    write_stage_folder(imported, tmp_path / "out")
    again = Stage.load(tmp_path / "out")
    x, time, labels = torch.randn(2, 3, 16, 16), torch.tensor([0.0, 999.0]), torch.tensor([0, 6])
    assert torch.equal(again.network(x, time, labels=labels), network(x, time, labels=labels))


@pytest.mark.parametrize(
    ("family", "flags", "first", "last"),
    [
        ("guided-diffusion", "", 0, 999),
        ("guided-diffusion", "--diffusion_steps 4000", 0, 3999),
        ("improved-diffusion", "--diffusion_steps 4000", 0, 999.75),
        ("improved-diffusion", "--diffusion_steps 4000 --rescale_timesteps False", 0, 3999),
        ("guided-diffusion", "--diffusion_steps 4000 --rescale_timesteps True", 0, 999.75),
    ],
)
def test_the_network_is_told_the_timesteps_of_its_training(
    adm_checkpoint: AdmCheckpoint, family: str, flags: str, first: float, last: float
) -> None:
    path, _ = adm_checkpoint(f"{BASE} {flags}", family=family)
    stage = import_guided_diffusion(path, f"{BASE} {flags}", family=family).stage
    told: list[float] = []

    def network(x: Tensor, time: Tensor, **conditions: object) -> Tensor:
        told.append(float(time[0]))
        return x

    stage._run = network  # type: ignore[assignment,method-assign]
    settings = stage.config.sampling.model_copy(update={"steps": 2})
    sample_stage(stage, settings, index=torch.arange(1))
    assert told == [last, first]


@pytest.mark.parametrize("steps", [1000, 4000])
def test_the_linear_schedule_scales_with_its_length(adm_checkpoint: AdmCheckpoint, steps: int) -> None:
    path, _ = adm_checkpoint(BASE)
    stage = import_guided_diffusion(path, f"{BASE} --diffusion_steps {steps}").stage
    table = stage.diffusion.schedule.alphas_cumprod
    assert table is not None
    betas = np.linspace(0.1 / steps, 20 / steps, steps)
    np.testing.assert_allclose(table, np.cumprod(1 - betas), rtol=1e-12)


@pytest.mark.parametrize(
    ("flags", "variance", "prediction"),
    [("", "beta", "eps"), ("--sigma_small True", "posterior", "eps"), ("--predict_xstart True", "beta", "x0")],
)
def test_what_the_network_answers(adm_checkpoint: AdmCheckpoint, flags: str, variance: str, prediction: str) -> None:
    path, _ = adm_checkpoint(BASE)
    diffusion = import_guided_diffusion(path, f"{BASE} {flags}").stage.config.diffusion
    assert (diffusion.variance, diffusion.prediction) == (variance, prediction)


def test_every_step_is_the_default(adm_checkpoint: AdmCheckpoint) -> None:
    path, _ = adm_checkpoint(BASE)
    sampling = import_guided_diffusion(path, f"{BASE} --diffusion_steps 30 --clip_denoised False").stage.config.sampling
    assert (sampling.sampler, sampling.steps, sampling.clip) == ("ancestral", 30, False)


def test_two_of_them_are_a_cascade(adm_checkpoint: AdmCheckpoint) -> None:
    respaced = "--timestep_respacing 3 --class_cond True --learn_sigma True"
    low, _ = adm_checkpoint(f"{BASE} {respaced}", classes=4)
    high, _ = adm_checkpoint(f"{LARGE} {respaced}", upsampler=True, classes=4, seed=1)
    stages = [import_guided_diffusion(low, f"{BASE} {respaced}").stage]
    stages.append(import_guided_diffusion(high, f"{LARGE} {respaced}").stage)
    conditioning = stages[1].config.conditioning
    assert conditioning is not None
    assert (conditioning.augmentation, conditioning.upsample, conditioning.low_resolution) == ("none", "bilinear", 16)
    cascade = Cascade(stages)
    images = cascade.sample(3, seed=1)
    assert isinstance(images, np.ndarray)
    assert images.shape == (3, 32, 32, 3)
    assert images.std() > 10
    assert np.array_equal(images[:1], cascade.sample(1, seed=1))


def test_an_upsampler_is_told_by_its_first_layer(adm_checkpoint: AdmCheckpoint) -> None:
    flags = LARGE.replace("--large_size 32 --small_size 16", "")
    path, _ = adm_checkpoint(flags, upsampler=True)
    config = import_guided_diffusion(path, flags).stage.config
    assert config.name == "sr256"  # the scripts' default size
    with pytest.raises(UserError, match="--image_size is for base models"):
        import_guided_diffusion(path, f"{flags} --image_size 256")
    base, _ = adm_checkpoint(BASE)
    with pytest.raises(UserError, match="--large_size is for up-samplers"):
        import_guided_diffusion(base, LARGE)


def test_safetensors_and_half_precision(adm_checkpoint: AdmCheckpoint, tmp_path: Path) -> None:
    path, network = adm_checkpoint(BASE)
    half = {name: value.half() for name, value in torch.load(path, weights_only=True).items()}
    save_file(half, tmp_path / "x.safetensors")
    stage = import_guided_diffusion(tmp_path / "x.safetensors", BASE).stage
    assert {value.dtype for value in stage.network.state_dict().values()} == {torch.float32}
    x, time = torch.randn(1, 3, 16, 16), torch.tensor([5.0])
    torch.testing.assert_close(stage.network(x, time), network(x, time), atol=2e-2, rtol=2e-2)


def test_what_does_not_fit_is_named(adm_checkpoint: AdmCheckpoint, tmp_path: Path) -> None:
    path, _ = adm_checkpoint(BASE)
    state = torch.load(path, weights_only=True)
    state["out.2.weights"] = state.pop("out.2.weight")
    state["middle_block.0.in_layers.2.weight"] = state["middle_block.0.in_layers.2.weight"][:10].clone()
    torch.save(state, path)
    with pytest.raises(UserError) as caught:
        import_guided_diffusion(path, BASE)
    for words in (
        str(path),
        "out.2.weight is missing",
        "out.2.weights is not part of this network",
        "middle_block.0.in_layers.2.weight has shape [10, 64, 3, 3], expected [64, 64, 3, 3]",
    ):
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--timestep_respacing 2000", "steps: 2000 is more than the T=1000"),
        ("--timestep_respacing ddim3 --diffusion_steps 8 --noise_schedule cosine", None),
        ("--timestep_respacing ddim7 --diffusion_steps 8 --noise_schedule cosine", "ddim7 needs an integer stride"),
        ("--class_cond True", "label_emb.weight is missing"),
        ("--learn_sigma True", "out.2.weight has shape [3, 32, 3, 3], expected [6, 32, 3, 3]"),
        ("--num_head_channels 24", "head_channels: 24 does not divide"),
    ],
)
def test_flags_that_do_not_fit(adm_checkpoint: AdmCheckpoint, flags: str, words: str | None) -> None:
    path, _ = adm_checkpoint(BASE)
    if words is None:
        import_guided_diffusion(path, f"{BASE} {flags}")
        return
    with pytest.raises(UserError) as caught:
        import_guided_diffusion(path, f"{BASE} {flags}")
    assert words in str(caught.value)


def test_an_upsampler_needs_a_smaller_image(adm_checkpoint: AdmCheckpoint) -> None:
    flags = LARGE.replace("small_size 16", "small_size 32")
    path, _ = adm_checkpoint(flags, upsampler=True)
    with pytest.raises(UserError, match=r"low_resolution: 32 is not below 32"):
        import_guided_diffusion(path, flags)
