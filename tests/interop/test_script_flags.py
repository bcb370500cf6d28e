"""Flags of guided-diffusion's scripts: defaults, sizes, what they mean, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cascaded_diffusion.errors import UserError
from cascaded_diffusion.interop.guided_diffusion import GuidedDiffusionArguments, translate_keys
from cascaded_diffusion.interop.script_flags import ScriptFlags, read_flags

PAGE = Path(__file__).parents[2] / "docs" / "importing-and-exporting.md"

MILLIONS = {
    "64x64_diffusion": 296,
    "128x128_diffusion": 422,
    "256x256_diffusion": 554,
    "512x512_diffusion": 559,
    "64_256_upsampler": 312,
    "128_512_upsampler": 309,
    "imagenet64_cond_270M_250K": 270,
}
"""Sizes that the papers state: 2105.05233 (table of hyper-parameters), 2102.09672 (section 3)."""


def arguments_of(flags: str, family: str, upsampler: bool) -> dict[str, Any]:
    return read_flags(flags, family).constructor_arguments(upsampler=upsampler, classes=1000)


def test_published_flags_give_the_published_network(
    published: tuple[str, str, bool, str], shapes_of: Callable[[dict[str, Any]], dict[str, list[int]]]
) -> None:
    """In full size: every tensor of the architecture, under its name, in its shape, and as many as the papers say."""
    name, family, upsampler, flags = published
    arguments = arguments_of(flags, family, upsampler)
    with torch.device("meta"):
        network = GuidedDiffusionArguments(**arguments).build()
    ours = network.state_dict()
    found = {theirs: list(ours[name].shape) for theirs, name in translate_keys(network).items()}
    expected = shapes_of(arguments)
    flat = {
        key: shape[:2] if key.endswith(("qkv.weight", "proj_out.weight")) else shape for key, shape in expected.items()
    }
    assert found == flat
    if name in MILLIONS:
        count = sum(parameter.numel() for parameter in network.parameters())
        assert count / 1e6 == pytest.approx(MILLIONS[name], rel=0.02)


def test_the_short_flags_of_the_page_mean_the_published_ones(published: tuple[str, str, bool, str]) -> None:
    name, family, upsampler, flags = published
    row = re.search(rf"^\| `{name}\.pt` \| `([^`]*)` \|$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert row is not None, f"{name} is not in the table of {PAGE.name}"
    without = {"dropout": 0.0}  # of training only
    short, whole = (read_flags(text, family).values.model_copy(update=without) for text in (row[1], flags))
    assert short == whole
    assert read_flags(row[1], family).names_upsampler <= upsampler


def test_defaults_of_the_families() -> None:
    guided, improved = read_flags("", "guided-diffusion").values, read_flags("", "improved-diffusion").values
    assert guided == ScriptFlags()
    assert (guided.rescale_timesteps, improved.rescale_timesteps) == (False, True)
    assert (guided.attention_resolutions, guided.num_channels, guided.num_heads) == ((16, 8), 128, 4)


@pytest.mark.parametrize(
    ("family", "upsampler", "flags", "expected"),
    [
        ("guided-diffusion", False, "--image_size 64", (1, 2, 3, 4)),
        ("guided-diffusion", False, "--image_size 512", (0.5, 1, 1, 2, 2, 4, 4)),
        ("guided-diffusion", True, "--large_size 512", (1, 1, 2, 2, 4, 4)),
        ("improved-diffusion", False, "--image_size 32", (1, 2, 2, 2)),
        ("guided-diffusion", False, "--image_size 48 --channel_mult 1,1.5,2", (1, 1.5, 2)),
    ],
)
def test_widths_go_by_size(family: str, upsampler: bool, flags: str, expected: tuple[float, ...]) -> None:
    assert arguments_of(flags, family, upsampler)["channel_mult"] == expected


def test_attention_is_given_in_pixels() -> None:
    assert arguments_of("--image_size 64 --attention_resolutions 32,16,8", "guided-diffusion", False)[
        "attention_resolutions"
    ] == (2, 4, 8)
    assert arguments_of("--large_size 512 --attention_resolutions 32,16", "guided-diffusion", True)[
        "attention_resolutions"
    ] == (16, 32)


@pytest.mark.parametrize("word", ["True", "true", "t", "1", "yes"])
def test_ways_to_write_a_flag(word: str) -> None:
    values = read_flags(
        f"--class_cond={word}  --num_heads_upsample -1 \\\n --channel_mult ''", "guided-diffusion"
    ).values
    assert (values.class_cond, values.num_heads_upsample, values.channel_mult) == (True, -1, ())


def test_flags_without_meaning_are_told() -> None:
    read = read_flags("--batch_size 4 --classifier_scale 1.0 --image_size 64 --lr 1e-4", "guided-diffusion")
    assert read.ignored == ("batch_size 4", "classifier_scale 1.0", "lr 1e-4")
    assert read.given == {"image_size"}


def test_the_same_flag_twice_is_fine_if_it_says_the_same() -> None:
    assert read_flags("--class_cond True --class_cond True", "guided-diffusion").values.class_cond


@pytest.mark.parametrize(
    ("family", "flags", "words"),
    [
        ("guided-diffusion", "--num_chanels 128", ["--num_chanels", "did you mean --num_channels?"]),
        ("guided-diffusion", "--zzz 1", ["--zzz is no flag of guided-diffusion", "allowed: attention_resolutions,"]),
        ("improved-diffusion", "--resblock_updown True", ["--resblock_updown is no flag of improved-diffusion"]),
        ("guided-diffusion", "--image_size sixty", ["image_size", "'sixty'"]),
        ("guided-diffusion", "--noise_schedule sqrt", ["noise_schedule", "'linear' or 'cosine'", "'sqrt'"]),
        ("guided-diffusion", "--class_cond maybe", ["class_cond", "'maybe'"]),
        ("guided-diffusion", "--attention_resolutions 16,x", ["attention_resolutions.1", "'x'"]),
        ("guided-diffusion", "--attention_resolutions 0", ["attention_resolutions.0", "'0'"]),
        ("guided-diffusion", "--class_cond True --class_cond False", ["--class_cond is given twice", "False"]),
        ("guided-diffusion", "--class_cond --image_size 64", ["--class_cond has no value"]),
        ("guided-diffusion", "--image_size", ["--image_size has no value"]),
        ("guided-diffusion", "image_size 64", ["'image_size' belongs to no flag"]),
        ("guided-diffusion", "--image_size '64", ["cannot be split"]),
        ("guided-diffusion", "--timestep_respacing fast", ["timestep_respacing 'fast'", "ddim25"]),
        ("guided-diffusion", "--timestep_respacing 0", ["timestep_respacing '0'"]),
        ("openai", "", ["'openai'", "guided-diffusion, improved-diffusion"]),
    ],
)
def test_wrong_flags_are_named(family: str, flags: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        read_flags(flags, family)
    line = str(caught.value)
    assert "\n" not in line
    for word in words:
        assert word in line


def test_a_size_without_widths_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"image_size 48 .* allowed: 64, 128, 256, 512, or any size with --channel_mult"
    ):
        arguments_of("--image_size 48", "guided-diffusion", False)
    with pytest.raises(UserError, match=r"large_size 128 .* improved-diffusion; allowed: 64, 256"):
        arguments_of("--large_size 128", "improved-diffusion", True)


def test_flags_of_the_other_kind_are_refused() -> None:
    read_flags("--image_size 64", "guided-diffusion").check_kind(upsampler=False)
    with pytest.raises(
        UserError, match=r"--image_size is for base models.*an up-sampler; allowed: large_size, small_size"
    ):
        read_flags("--image_size 64", "guided-diffusion").check_kind(upsampler=True)
    with pytest.raises(UserError, match=r"--small_size is for up-samplers.*a base model; allowed: image_size"):
        read_flags("--small_size 64", "guided-diffusion").check_kind(upsampler=False)
