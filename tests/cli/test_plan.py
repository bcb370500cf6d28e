"""``cdm plan`` and ``cdm recipe``."""

from __future__ import annotations

import json
import re
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


def tables(text: str) -> list[list[dict[str, str]]]:
    """The tables that were printed: rows by heading."""
    found = []
    for block in text.split("\n\n"):
        lines = [re.split(r" {2,}", line.strip()) for line in block.splitlines() if not line.startswith("photos")]
        if len({len(line) for line in lines}) == 1 and len(lines[0]) > 1:
            found.append([dict(zip(lines[0], line, strict=True)) for line in lines[1:]])
    return found


def number(cell: str) -> float:
    """``1,234.5 GiB`` in bytes, other figures as they are."""
    value, _, unit = cell.partition(" ")
    return float(value.replace(",", "").lstrip("<")) * {"GiB": 2**30, "MiB": 2**20, "M": 1e6}.get(unit, 1)


def test_the_tables_are_the_arithmetic(done: Done) -> None:
    recipe = load_recipe("demo")
    out = done("plan", "demo", "--gpus", 2, "--gpu", "a100", "--batch-size", 64, "--mfu", 0.5, "--price", 3).out
    trained, memory, sampled = tables(out)
    assert "2 GPU(s) at 50% of a100's 312 TFLOP/s" in out
    assert "assumed and not measured" in out
    assert [row["stage"] for row in trained] == ["base8", "sr32"]
    for train, room, sample in zip(trained, memory, sampled, strict=True):
        config = stage_config(recipe, train["stage"], channels=1, classes=10, class_names=None)
        price = cost(build_network(config))
        images, rate = config.training.images, 0.5 * 312e12
        expected = {
            "parameters": price.parameters,
            "forward GFLOP/image": price.forward_flops / 1e9,
            "batch": 64,
            # Weights, gradients, Adam's two moments and one average, and the activations of a GPU's images.
            "training memory": 5 * 4 * price.parameters + 32 * price.activation_bytes,
            "images": images,
            "training FLOP": 3 * price.forward_flops * images,
            "images/s": 2 * rate / (3 * price.forward_flops),
        }
        for key, value in expected.items():
            assert number(train[key]) == pytest.approx(value, rel=0.06), key
        assert (train["GPU-hours"], train["days"], train["cost"]) == ("<0.001", "<0.001", "<0.001")
        assert number(room["activations"]) == pytest.approx(32 * price.activation_bytes, rel=0.06)
        assert number(room["adam"]) == pytest.approx(8 * price.parameters, rel=0.06)
        assert room["most images that fit"] == "32"
        evaluations = config.sampling.steps
        assert sample["evaluations"] == str(evaluations)
        assert number(sample["images/s"]) == pytest.approx(2 * rate / (price.forward_flops * evaluations), rel=0.06)


def test_json_has_every_figure(done: Done) -> None:
    told = json.loads(done("plan", "demo", "--json", "--gpu", "24:165", "--price", 2).out)
    assert (told["recipe"], told["mfu"], told["gpu"]["memory"]) == ("demo", 0.3, 24 * 2**30)
    for stage in told["stages"]:
        training = stage["training"]
        assert training["total_bytes"] == sum(training["bytes"].values())
        assert training["total_flops"] == 3 * stage["forward_flops"] * training["images"]
        assert training["gpu_hours"] == pytest.approx(training["total_flops"] / (0.3 * 165e12) / 3600)
        assert training["days"] == pytest.approx(training["gpu_hours"] / 24)
        assert training["cost"] == pytest.approx(2 * training["gpu_hours"])
        assert stage["warning"] is None


def test_what_does_not_fit_is_said(done: Done, refused: Callable[..., str], here: Path) -> None:
    text = done("recipe", "demo").out.replace("attention: [4]", "attention: [8]")
    (here / "wide.yaml").write_text(text)
    out = done("plan", "wide.yaml", "--gpu", "0.05:1", "--batch-size", 60).out
    lines = [line for line in out.splitlines() if "do not fit; --set training.micro_batch=" in line]
    assert [line.partition(":")[0] for line in lines] == ["base8", "sr32"]
    for line in lines:
        fitting = int(line.partition("micro_batch=")[2].split()[0])
        assert 60 % fitting == 0
    tiny = done("plan", "wide.yaml", "--gpu", "0.001:1").out
    assert "base8: not one image fits in training on 0.001:1" in tiny
    assert "base8: attention at 8 pixels would not fit" in tiny
    assert "--mfu: 0 is not a share; allowed: above 0, at most 1" in refused("plan", "demo", "--mfu", 0)
    assert "--gpu: 'h900' is not known" in refused("plan", "demo", "--gpu", "h900")


def test_time(done: Done, here: Path) -> None:
    (here / "base.yaml").write_text(done("recipe", "photos-64").out.partition("  - name: sr64")[0])
    result = done("plan", "base.yaml", "--gpu", "h100")
    assert "photos-64: channels from the data, taken as 3; classes from the data, taken as none" in result.out
    ((row,), _, _) = tables(result.out)
    (shared,) = json.loads(done("plan", "base.yaml", "--gpus", "4", "--gpu", "a100", "--json").out)["stages"]
    hours = float(row["training FLOP"]) / (989e12 * 0.3) / 3600
    assert number(row["GPU-hours"]) == pytest.approx(hours, rel=0.05)
    assert shared["training"]["gpu_hours"] == pytest.approx(hours * 989 / 312, rel=0.05)
    assert shared["training"]["days"] == pytest.approx(hours * 989 / 312 / 4 / 24, rel=0.06)


def test_a_file_and_a_packaged_name(done: Done, here: Path) -> None:
    text = done("recipe", "demo").out
    (here / "demo").write_text(text.replace("name: demo", "name: mine").replace("24_000", "48_000"))
    result = done("plan", "demo")
    assert tables(result.out)[0][0]["images"] == "24,000"
    assert result.err.startswith("demo: the packaged recipe is used, not what has this name here (write ./demo for")
    result = done("plan", "./demo")
    assert tables(result.out)[0][0]["images"] == "48,000"
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
    whole, crops = (json.loads(done("plan", name, "--json").out)["stages"][1] for name in ("whole.yaml", "crops.yaml"))
    assert whole["sampling"] == crops["sampling"]
    assert whole["training"]["total_flops"] == pytest.approx(4 * crops["training"]["total_flops"], rel=1e-6)
    assert whole["training"]["bytes"]["activations"] == pytest.approx(
        4 * crops["training"]["bytes"]["activations"], rel=1e-6
    )
    assert whole["training"]["bytes"]["adam"] == crops["training"]["bytes"]["adam"]


def test_a_batch_that_training_would_refuse(refused: Callable[..., str]) -> None:
    words = refused("plan", "demo", "--gpus", 8, "--batch-size", 12)
    assert "--gpus: 8 does not divide base8's batch of 12" in words


def test_guidance_is_counted_only_where_there_are_classes(done: Done, here: Path) -> None:
    raw = yaml.safe_load(done("recipe", "demo").out)
    for stage in raw["stages"]:
        stage["sampling"] = stage.get("sampling", {}) | {"guidance": 1.5}
        stage["training"] = stage["training"] | {"class_dropout": 0.1}
    for classes in (10, None):
        (here / "guided.yaml").write_text(yaml.safe_dump(raw | {"classes": classes}))
        for stage in json.loads(done("plan", "guided.yaml", "--json").out)["stages"]:
            told = stage["sampling"]
            assert told["guided"] is (classes is not None)
            assert told["forward_passes"] == told["evaluations"] * (2 if classes else 1)
