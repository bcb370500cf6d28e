"""What can be wrong in a recipe, and the line that tells it: the key's whole path, the value, and what is allowed.

Nothing is built, and no data is opened, to find any of it.
"""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from cascaded_diffusion.errors import UserError
from cascaded_diffusion.recipes.recipe import load_recipe

TEXT = """
name: mine
channels: 3
classes: 10
stages:
  - name: base8
    resolution: 8
    network: {channels: 32, multipliers: [1, 2], attention: [4]}
    diffusion: {noise_schedule: {timesteps: 100}}
    training: {images: 1000, batch_size: 32, learning_rate: 1e-4, class_dropout: 0.1}
  - name: sr16
    resolution: 16
    network: {channels: 32, multipliers: [1, 2]}
    diffusion: {noise_schedule: {timesteps: null}, prediction: v}
    conditioning: {augmentation: gaussian, s_max: 0.5}
    training: {images: 1000, batch_size: 32}
    sampling: {sampler: ddim, steps: 10, augmentation: nontruncated, s: 0.2}
  - name: sr32
    resolution: 32
    network: {channels: 32, multipliers: [1, 2], patch: 2}
    conditioning: {augmentation: blur}
"""

# Each entry is what --set gives, and the fragments that its line must have.
SETTINGS = [
    # names of keys
    ("stages.sr16.trainin.seed=1", "stages.sr16.trainin: unknown key; did you mean training? & allowed: conditioning"),
    ("stages.sr16.training.batchsize=4", "stages.sr16.training.batchsize: unknown key; did you mean batch_size?"),
    ("stages.base8.diffusion.noise_schedule.step=4", "stages.base8.diffusion.noise_schedule.step: unknown key"),
    ("stages.sr16.conditioning.smax=0.5", "stages.sr16.conditioning.smax: unknown key; did you mean s_max?"),
    ("stages.sr16.sampling.sampler_name=x", "stages.sr16.sampling.sampler_name: unknown key; did you mean sampler?"),
    ("stages.sr32.network.chanels=64", "stages.sr32.network.chanels: unknown key; did you mean channels?"),
    ("training.betas.first=0.5", "stages.base8.training.betas: & valid tuple (given: {'first': 0.5}); and 2 more"),
    ("trainng.seed=1", "--set: unknown key 'trainng.seed'; did you mean training? allowed first words: "),
    ("stages.sr61.training.seed=1", "no stage 'sr61'; allowed: base8, sr16, sr32; did you mean sr16?"),
    ("name=other", "--set: unknown key 'name'; & allowed first words"),
    # types
    ("stages.sr16.training.batch_size=many", "stages.sr16.training.batch_size: & valid integer & given: 'many'"),
    ("stages.sr16.training.batch_size=1.5", "stages.sr16.training.batch_size: & fractional part & given: 1.5"),
    ("stages.sr16.training.batch_size=[1]", "stages.sr16.training.batch_size: & valid integer & given: [1]"),
    ("stages.sr16.training=3", "stages.sr16.training: & valid dictionary & given: 3"),
    ("stages.sr16.training.learning_rate=fast", "stages.sr16.training.learning_rate: & valid number & given: 'fast'"),
    ("stages.sr16.training.betas=0.9", "stages.sr16.training.betas: & valid tuple & given: 0.9"),
    ("stages.sr16.training.betas=[0.9]", "stages.sr16.training.betas.1: Field required"),
    ("stages.sr16.network.scale_shift=perhaps", "stages.sr16.network.scale_shift: & valid boolean & given: 'perhaps'"),
    ("stages.sr16.resolution=null", "stages.sr16.resolution: & valid integer & given: None"),
    ("channels=many", "channels: & valid integer & or Input should be 'from-data' (given: 'many')"),
    # ranges
    ("stages.sr16.training.batch_size=0", "stages.sr16.training.batch_size: & equal to 1 (given: 0)"),
    ("stages.sr16.training.learning_rate=0", "stages.sr16.training.learning_rate: & greater than 0 (given: 0)"),
    ("stages.sr16.training.learning_rate=.nan", "stages.sr16.training.learning_rate: & finite number (given: nan)"),
    ("stages.sr16.training.betas=[0.9, 1.0]", "stages.sr16.training.betas.1: & less than 1 (given: 1.0)"),
    ("stages.sr16.training.ema_half_lives=[10, 0]", "stages.sr16.training.ema_half_lives.1: & equal to 1 (given: 0)"),
    ("stages.sr16.training.seed=-1", "stages.sr16.training.seed: & equal to 0 (given: -1)"),
    ("stages.sr16.conditioning.s_max=1.5", "stages.sr16.conditioning.s_max: & equal to 1 (given: 1.5)"),
    (
        "stages.sr32.conditioning.blur_sigma=[0, 1]",
        "stages.sr32.conditioning.blur_sigma.0: & greater than 0 (given: 0)",
    ),
    ("stages.sr16.sampling.guidance=101", "stages.sr16.sampling.guidance: & equal to 100 (given: 101)"),
    ("stages.sr16.sampling.steps=0", "stages.sr16.sampling.steps: 0 is not allowed; give a number from 1 to 1,000,000"),
    ("stages.sr16.sampling.endpoints=[0.1, 2]", "stages.sr16.sampling.endpoints.1: & less than 1 (given: 2)"),
    ("stages.base8.network.multipliers=[1, -1]", "stages.base8.network.multipliers.1: & greater than 0 (given: -1)"),
    ("stages.base8.network.blocks=[2, 0]", "stages.base8.network.blocks.1: & equal to 1 (given: 0)"),
    ("channels=5", "channels: & less than or equal to 4 & (given: 5)"),
    # choices
    ("stages.sr16.training.precision=fp8", "stages.sr16.training.precision: & 'auto', 'fp32' or 'bf16' (given: 'fp8')"),
    ("stages.sr16.sampling.sampler=ddpm", "stages.sr16.sampling.sampler: & 'dpmpp-2m' (given: 'ddpm')"),
    ("stages.sr16.conditioning.augmentation=blurr", "stages.sr16.conditioning.augmentation: & (given: 'blurr')"),
    # what is absurd is refused before memory is taken for it
    (
        "stages.base8.network.channels=1000000000000000000",
        "stages.base8.network.channels: & less than or equal to 8192",
    ),
    ("stages.base8.network.multipliers=[1, 65]", "stages.base8.network.multipliers.1: & less than or equal to 64"),
    (
        "stages.base8.network={channels: 8192, multipliers: [1, 64]}",
        "stages.base8.network.multipliers: [1, 64] of 8192 channels makes a level of 524288 channels; at most 16384",
    ),
    (
        "stages.base8.network.blocks=1e9",
        "stages.base8.network.blocks: & less than or equal to 64 & given: 1000000000.0",
    ),
    ("stages.base8.resolution=1000000000", "stages.base8.resolution: & less than or equal to 4096"),
    ("stages.base8.training.batch_size=1e12", "stages.base8.training.batch_size: & less than or equal to 1000000"),
    (
        "stages.base8.training.images=0x" + "f" * 900,
        "a whole number of 3600 bits, at most 64 are read",
    ),
    (
        "stages.base8.diffusion.noise_schedule.timesteps=1e9",
        "stages.base8.diffusion.noise_schedule.timesteps: & 1000000",
    ),
    (
        "stages.base8.training.ema_half_lives=[" + "1, " * 1000 + "1]",
        "stages.base8.training.ema_half_lives: 1,001 entries; at most 16",
    ),
    (
        "stages.base8.network.attention=[" + "4, " * 1000 + "4]",
        "stages.base8.network.attention: 1,001 entries; at most 12",
    ),
    ("stages.sr16.sampling.steps=" + "1," * 1000 + "1", "stages.sr16.sampling.steps: & is not allowed"),
    # settings that contradict one another
    ("stages.sr16.training.weight_decay=0.1", "stages.sr16.training.weight_decay: 0.1 needs optimizer: adamw"),
    ("stages.sr16.training.micro_batch=5", "stages.sr16.training.micro_batch: 5 does not divide batch_size 32"),
    ("stages.sr16.training.ema_half_lives=[9, 9]", "stages.sr16.training.ema_half_lives: [9, 9] names one twice"),
    ("stages.sr32.sampling.s=0.1", "stages.sr32.sampling.s: 0.1 does not go with augmentation: none; allowed 0"),
    ("stages.sr16.sampling.s=0.6", "stages.sr16.sampling.s: 0.6 is above conditioning.s_max 0.5"),
    ("stages.sr32.sampling.augmentation=truncated", "stages.sr32.sampling.augmentation: truncated needs & gaussian"),
    ("stages.sr16.sampling.guidance=2", "stages.sr16.sampling.guidance: 2 needs training.class_dropout above 0"),
    (
        "stages.base8.sampling.endpoints=[0.1, 0.2]",
        "stages.base8.sampling.endpoints: & needs a continuous noise_schedule",
    ),
    ("stages.sr16.sampling.endpoints=[0.2, 0.1]", "stages.sr16.sampling.endpoints: [0.2, 0.1] is not a pair"),
    ("stages.base8.sampling.steps=101", "stages.base8.sampling.steps: 101 is more than the T=100"),
    ("stages.sr16.sampling.steps=ddim5", "stages.sr16.sampling.steps: 'ddim5' needs a discrete stage"),
    ("stages.sr16.diffusion.variance=learned", "stages.sr16.diffusion.variance: learned needs a discrete schedule"),
    ("stages.base8.diffusion.noise_schedule.beta_end=0.1", "stages.base8.diffusion.noise_schedule.kind: cosine has no"),
    ("stages.sr32.conditioning.blur_sigma=[2, 1]", "stages.sr32.conditioning.blur_sigma: [2, 1] is not a range"),
    ("stages.base8.network.heads=5", "stages.base8.network.heads: 5 does not divide a level's 64 channels"),
    ("stages.base8.network.head_channels=48", "stages.base8.network.head_channels: 48 does not divide"),
    (
        "stages.base8.network.attention=[3]",
        "stages.base8.network.attention: 3 is not the resolution of a level; [8, 4]",
    ),
    ("stages.base8.network.multipliers=[1, 1, 1, 1, 1]", "stages.base8.resolution: 8 cannot be halved into 5 levels"),
    ("stages.base8.network.blocks=[1, 2, 3]", "stages.base8.network.blocks: [1, 2, 3] has 3 entries & 2 multipliers"),
    (
        "stages.base8.network.multipliers=[0.01, 1]",
        "stages.base8.network.multipliers: & leaves a level without channels",
    ),
    # stages that do not chain
    ("stages.base8.conditioning={s_max: 0.5}", "stages.base8.conditioning: base8 is a base stage & remove it"),
    ("stages.sr16.conditioning=null", "stages.sr16.conditioning: sr16 is an SR stage and needs it"),
    ("stages.sr16.resolution=24", "stages.sr16.name: 'sr16' does not fit resolution 24; allowed base24, sr24"),
    (
        "stages.sr16.conditioning.low_resolution=4",
        "stages.sr16.conditioning.low_resolution: 4, but base8 before it has 8",
    ),
    (
        "stages.sr16.conditioning.low_schedule={kind: linear}",
        "stages.sr16.conditioning.low_schedule: linear T=1000 & but base8 before it has cosine T=100",
    ),
]

TEXTS = [
    ("name: mine", "name: mine\nname: yours", "line 3: 'name' is given a second time (first in line 2)"),
    (
        "images: 1000, batch_size: 32, learning",
        "images: 1000, images: 9, learning",
        "line 10: 'images' is given a second",
    ),
    ("name: mine", "colour: 3", "colour: unknown key; & allowed: channels, classes"),
    ("name: mine\n", "", "name: Field required"),
    ("name: mine", "name: ''", "name: String should have at least 1 character (given: '')"),
    ("    resolution: 8\n", "", "stages.base8.resolution: Field required"),
    ("  - name: sr16", "  - name: base16", "stages.base16.conditioning: base16 is a base stage"),
    ("  - name: sr16", "  - label: sr16", "stages.1.label: unknown key"),
    (
        "name: sr32\n    resolution: 32",
        "name: sr16\n    resolution: 16",
        "sr16 must have a higher resolution than sr16",
    ),
    ("name: sr32\n    resolution: 32", "name: sr12\n    resolution: 12", "stages.sr12.resolution: & not 12 after 16"),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A recipe of three stages."""
    path = tmp_path / "mine.yaml"
    path.write_text(TEXT)
    return path


def _check(line: str, fragments: str) -> None:
    assert "\n" not in line
    assert len(line) < 700, line
    for fragment in fragments.split(" & "):
        assert fragment in line, line


def test_the_recipe_itself_is_right(path: Path) -> None:
    recipe = load_recipe(str(path))
    assert recipe.stage("base8").training.learning_rate == 1e-4
    assert len(SETTINGS) + len(TEXTS) >= 40


@pytest.mark.parametrize("setting, fragments", SETTINGS, ids=[setting[:60] for setting, _ in SETTINGS])
def test_settings(setting: str, fragments: str, path: Path) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(UserError) as caught:
            load_recipe(str(path), overrides=[setting])
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    _check(str(caught.value), fragments)
    assert most < 64 * 2**20


@pytest.mark.parametrize("old, new, fragments", TEXTS)
def test_texts(old: str, new: str, fragments: str, path: Path) -> None:
    assert TEXT.count(old) == 1
    path.write_text(TEXT.replace(old, new))
    with pytest.raises(UserError) as caught:
        load_recipe(str(path))
    line = str(caught.value)
    _check(line, fragments)
    assert "mine.yaml" in line


def test_a_million_stages(path: Path) -> None:
    path.write_text("name: mine\nstages: [" + "{}, " * 20_000 + "{}]")
    with pytest.raises(UserError) as caught:
        load_recipe(str(path))
    _check(str(caught.value), "more than 20000 values")


@pytest.mark.parametrize(
    "setting, value",
    [
        ("training.images=1e6", 1_000_000),
        ("training.learning_rate=1e-4", 1e-4),
        ("training.learning_rate='1e-4'", 1e-4),
        ("training.images=1_000", 1000),
    ],
)
def test_numbers_in_every_form_work(setting: str, value: float, path: Path) -> None:
    key = setting.partition("=")[0].partition(".")[2]
    stage = load_recipe(str(path), overrides=[setting], stage="sr16").stage("sr16")
    assert getattr(stage.training, key) == value
    assert isinstance(getattr(stage.training, key), type(value))
