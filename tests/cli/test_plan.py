"""``cdm plan`` and ``cdm recipe``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cascaded_diffusion.cascade.stage import build_network
from cascaded_diffusion.networks.cost import cost
from cascaded_diffusion.recipes.packaged import packaged_names
from cascaded_diffusion.recipes.recipe import load_recipe, stage_config

Done = Callable[..., Any]


def table(text: str) -> list[list[str]]:
    """The rows below the heading, as cells."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if "parameters" in line) + 1
    return [line.split() for line in lines[start:] if not line.startswith("memory:")]


def test_numbers_are_those_of_cost(done: Done) -> None:
    recipe = load_recipe("demo")
    rows = table(done("plan", "demo", "--gpus", 2, "--gpu", "a100", "--batch-size", 64).out)
    assert [row[0] for row in rows] == ["base8", "sr32"]
    for row in rows:
        config = stage_config(recipe, row[0], channels=1, classes=10, class_names=None)
        network = build_network(config)
        price = cost(network)
        images = config.training.images
        assert price.parameters == sum(parameter.numel() for parameter in network.parameters())
        parameters, unit, flops, batch, memory, gib, length, total, gpu_hours, hours = row[1:]
        assert (unit, gib, batch, length) == ("M", "GiB", "64", f"{images:,}")
        assert float(parameters) == pytest.approx(price.parameters / 1e6, rel=0.05)
        assert float(flops) == pytest.approx(price.forward_flops / 1e9, rel=0.05)
        assert float(total) == pytest.approx(3 * price.forward_flops * images, rel=0.01)
        assert float(memory) == pytest.approx(price.training_bytes(32, emas=1) / 2**30, rel=0.05)
        assert (gpu_hours, hours) == ("<0.001", "<0.001")


def test_time(done: Done, here: Path) -> None:
    (here / "base.yaml").write_text(done("recipe", "photos-64").out.partition("  - name: sr64")[0])
    result = done("plan", "base.yaml")
    assert "photos-64: channels from the data, taken as 3; classes from the data, taken as none" in result.out
    assert "assumed and not measured" in result.out
    (row,) = table(result.out)
    (shared,) = table(done("plan", "base.yaml", "--gpus", "4", "--gpu", "a100").out)
    hours = float(row[-3]) / (989e12 * 0.3) / 3600
    assert float(row[-2]) == pytest.approx(hours, rel=0.05)
    assert float(shared[-2]) == pytest.approx(hours * 989 / 312, rel=0.05)
    assert float(shared[-1]) == pytest.approx(hours * 989 / 312 / 4, rel=0.06)


def test_a_file_and_a_packaged_name(done: Done, here: Path) -> None:
    text = done("recipe", "demo").out
    (here / "demo").write_text(text.replace("name: demo", "name: mine").replace("24_000", "48_000"))
    result = done("plan", "demo")
    assert table(result.out)[0][7] == "24,000"
    assert result.err.startswith("demo: the packaged recipe is used, not what has this name here (write ./demo for")
    result = done("plan", "./demo")
    assert table(result.out)[0][7] == "48,000"
    assert result.err == ""


def test_recipe_list(done: Done) -> None:
    out = done("recipe", "--list").out
    listed = [line for line in out.splitlines() if not line.startswith(" ")]
    assert listed == list(packaged_names())
    assert {"demo", "fashion-mnist-32-small", "fashion-mnist-32", "photos-64", "photos-256"} <= set(listed)
    assert {"imagenet-64", "imagenet-128", "imagenet-256"} <= set(listed)
    assert done("recipe").out == out


@pytest.mark.parametrize("name", packaged_names())
def test_a_recipe_is_printed_as_it_is(done: Done, here: Path, name: str) -> None:
    text = done("recipe", name).out
    assert yaml.safe_load(text)["name"] == name
    (here / "mine.yaml").write_text(text)
    assert load_recipe("mine.yaml") == load_recipe(name)


def test_training_on_crops_costs_in_proportion_to_their_pixels(done: Done, here: Path) -> None:
    raw = yaml.safe_load(done("recipe", "demo").out)
    sr = raw["stages"][1]
    sr["network"] = sr["network"] | {"attention": [], "middle_attention": False}
    (here / "whole.yaml").write_text(yaml.safe_dump(raw))
    sr["training"] = sr["training"] | {"crop": 16}  # the stages of the file share theirs
    (here / "crops.yaml").write_text(yaml.safe_dump(raw))
    whole, crops = (table(done("plan", name).out)[1] for name in ("whole.yaml", "crops.yaml"))
    assert whole[:4] == crops[:4]  # parameters, and what an image costs to sample
    assert float(crops[-3]) == pytest.approx(float(whole[-3]) / 4, rel=0.01)
    assert float(crops[5]) < float(whole[5])
