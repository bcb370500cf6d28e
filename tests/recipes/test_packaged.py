from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import pytest
import torch

from cascaded_diffusion.cascade.generate import stage_grids
from cascaded_diffusion.cascade.manifest import check_chain, schedules_agree
from cascaded_diffusion.cascade.stage import Stage, StageConfig, build_network
from cascaded_diffusion.networks.unet import UNet
from cascaded_diffusion.recipes.packaged import packaged_names, packaged_summary, read_packaged
from cascaded_diffusion.recipes.recipe import Recipe, load_recipe, stage_config

NAMES = packaged_names()


def _configs(recipe: Recipe) -> list[StageConfig]:
    """Every stage as it would be trained, on data like the recipe's own."""
    channels = recipe.channels if isinstance(recipe.channels, int) else 3
    classes = recipe.classes if isinstance(recipe.classes, int) else 7
    return [
        stage_config(recipe, stage.name, channels=channels, classes=classes, class_names=None)
        for stage in recipe.stages
    ]


def test_the_names_that_are_promised() -> None:
    promised = {"demo", "fashion-mnist-32-small", "fashion-mnist-32", "photos-64", "photos-256"}
    promised |= {"fashion-mnist-32-modern", "emoji-256", "emoji-256-small"}
    assert promised | {"imagenet-64", "imagenet-128", "imagenet-256"} <= set(NAMES)
    assert list(NAMES) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_it_loads_under_its_own_name_and_chains(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    configs = _configs(recipe)
    check_chain(configs)
    for low, high in pairwise(configs):
        assert high.conditioning is not None
        if high.conditioning.augmentation == "gaussian":
            assert schedules_agree(low, high)


_BUILT: dict[str, UNet] = {}


def _network(config: StageConfig) -> UNet:
    """On the meta device: shapes only. The paper's recipes share stages, which are built and run once."""
    key = config.model_dump_json(include={"name", "network", "diffusion", "conditioning", "channels", "classes"})
    if key not in _BUILT:
        with torch.device("meta"):
            _BUILT[key] = build_network(config)
        _run(_BUILT[key], config)
    return _BUILT[key]


def _run(network: UNet, config: StageConfig) -> None:
    conditioning, size = config.conditioning, config.resolution
    low = conditioning.low_resolution if conditioning is not None else None
    gaussian = conditioning is not None and conditioning.augmentation == "gaussian"
    with torch.device("meta"), torch.no_grad():
        output = network(
            torch.empty(2, config.channels, size, size),
            torch.empty(2),
            labels=None if config.classes is None else torch.empty(2, dtype=torch.int64),
            low_res=None if low is None else torch.empty(2, config.channels, low, low),
            s=torch.empty(2) if gaussian else None,
        )
    learned = config.diffusion.variance == "learned"
    assert output.shape == (2, config.channels * (2 if learned else 1), size, size)


@pytest.mark.parametrize("name", NAMES)
def test_it_can_be_built_and_sampled(name: str) -> None:
    for config in _configs(load_recipe(name)):
        stage = Stage(config, _network(config))
        assert len(stage_grids(stage, config.sampling)[0]) > 1


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("fashion-mnist")])
def test_fashion_mnist_is_not_flipped(name: str) -> None:
    recipe = load_recipe(name)
    assert not recipe.flip
    assert (recipe.channels, recipe.classes) == (1, 10)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("photos")])
def test_own_pictures_bring_channels_and_classes(name: str) -> None:
    recipe = load_recipe(name)
    assert (recipe.channels, recipe.classes) == ("from-data", "from-data")
    for stage in recipe.stages:
        for channels, classes in ((1, None), (3, 2)):
            config = stage_config(recipe, stage.name, channels=channels, classes=classes, class_names=None)
            assert (config.channels, config.classes) == (channels, classes)


@pytest.mark.parametrize(
    "recipe, stage, millions",
    [
        ("imagenet-64", "base32", 792),
        ("imagenet-64", "sr64", 718),
        ("imagenet-128", "sr128", 536),
        ("imagenet-256", "sr256", 589),
    ],
)
def test_the_papers_networks_have_the_papers_size(recipe: str, stage: str, millions: int) -> None:
    loaded = load_recipe(recipe)
    config = stage_config(loaded, stage, channels=3, classes=1000, class_names=None)
    count = sum(parameter.numel() for parameter in _network(config).parameters())
    assert abs(count / 1e6 - millions) / millions < 0.05


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_it_is(name: str) -> None:
    summary = packaged_summary(name)
    assert summary
    assert all(line and not line.startswith("#") for line in summary)
    assert read_packaged(name).startswith(f"# {summary[0]}")


def test_listing_needs_no_torch() -> None:
    names = "from cascaded_diffusion.recipes.packaged import packaged_names; packaged_names()"
    code = f"import sys; {names}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def _parameters(name: str) -> dict[str, int]:
    return {
        config.name: sum(parameter.numel() for parameter in _network(config).parameters())
        for config in _configs(load_recipe(name))
    }


def test_a_run_of_the_emoji_recipe_carries_little() -> None:
    """Weights, averages, and Adam's two moments in float32: under 60 MB a stage."""
    counts = _parameters("emoji-256")
    for config in _configs(load_recipe("emoji-256")):
        assert 4 * counts[config.name] * (3 + len(config.training.ema_half_lives)) < 60e6, config.name


@pytest.mark.parametrize("name", ["emoji-256", "emoji-256-small"])
def test_an_emoji_cascade_is_small(name: str) -> None:
    """All weights in 16 bits."""
    assert 2 * sum(_parameters(name).values()) < 25e6
