"""guided-diffusion's networks: its recorded answers, its names, and what does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from cascaded_diffusion.errors import UserError
from cascaded_diffusion.interop.guided_diffusion import (
    GuidedDiffusionArguments,
    load_guided_diffusion,
    translate_keys,
)
from cascaded_diffusion.networks.unet import NetworkConfig, UNet

GOLDENS = Path(__file__).parents[1] / "goldens"


def golden(name: str) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    """Constructor arguments, state dict, and inputs with the answer, of one recorded network."""
    with safe_open(GOLDENS / f"guided_{name}.safetensors", "pt") as file:
        arguments = json.loads(file.metadata()["config"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    state = {key.removeprefix("model."): value for key, value in tensors.items() if key.startswith("model.")}
    return arguments, state, {key.removeprefix("io."): value for key, value in tensors.items() if key.startswith("io.")}


@pytest.mark.parametrize("name", ["base", "sr"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_answers_match_the_recorded_ones(name: str, layout: torch.memory_format) -> None:
    arguments, state, io = golden(name)
    network = load_guided_diffusion(state, **arguments)
    with torch.no_grad():
        out = network(io["x"].to(memory_format=layout), io["t"], io["y"], io.get("low_res"))
    assert (out - io["out"]).abs().max() < 1e-4


def test_super_resolution_is_found_out_from_the_stem() -> None:
    arguments, state, _ = golden("sr")
    del arguments["super_res"]
    assert load_guided_diffusion(state, **arguments).network.low_res_channels == 3


def test_the_other_attention_order_gives_other_answers() -> None:
    arguments, state, io = golden("base")
    network = load_guided_diffusion(state, **(arguments | {"use_new_attention_order": False}))
    assert (network(io["x"], io["t"], io["y"]) - io["out"]).abs().max() > 1e-2


def test_loading_neither_shares_nor_changes_the_callers_tensors() -> None:
    arguments, state, _ = golden("base")
    network = load_guided_diffusion(state, **arguments)
    assert not network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert state["input_blocks.0.0.weight"].any()


ARGUMENTS: dict[str, Any] = {
    "image_size": 16,
    "in_channels": 3,
    "model_channels": 32,
    "out_channels": 3,
    "num_res_blocks": 1,
    "attention_resolutions": (2,),
    "channel_mult": (1, 2),
}


@pytest.mark.parametrize(
    ("changes", "present", "absent"),
    [
        (
            {},
            {
                "input_blocks.2.0.op.weight": "encoder.0.down.conv.weight",
                "output_blocks.1.2.conv.bias": "decoder.0.up.conv.bias",
                "output_blocks.1.1.qkv.weight": "decoder.0.units.1.attention.query_key_value.weight",
                "middle_block.1.proj_out.weight": "middle.attention.project.weight",
            },
            ["label_emb.weight"],
        ),
        (
            {"attention_resolutions": (4,), "num_classes": 10},
            {
                "output_blocks.1.1.conv.weight": "decoder.0.up.conv.weight",
                "label_emb.weight": "class_embedding.table.weight",
            },
            ["input_blocks.3.1.qkv.weight"],
        ),
        (
            {"conv_resample": False},
            {"input_blocks.3.0.skip_connection.weight": "encoder.1.units.0.residual.shortcut.weight"},
            ["input_blocks.2.0.op.weight", "output_blocks.1.2.conv.weight"],
        ),
        (
            {"resblock_updown": True},
            {
                "input_blocks.2.0.in_layers.0.weight": "encoder.0.down.norm_in.weight",
                "output_blocks.1.2.out_layers.3.bias": "decoder.0.up.conv_out.bias",
            },
            ["input_blocks.2.0.skip_connection.weight"],
        ),
    ],
)
def test_names_are_translated_one_to_one(changes: dict[str, Any], present: dict[str, str], absent: list[str]) -> None:
    with torch.device("meta"):
        network = GuidedDiffusionArguments(**(ARGUMENTS | changes)).build()
    names = translate_keys(network)
    assert sorted(names.values()) == sorted(network.state_dict())
    assert names.items() >= {**present, "time_embed.0.weight": "time_embedding.expand.weight"}.items()
    assert not set(absent) & set(names)


@pytest.mark.parametrize(
    "changes",
    [
        {"conv_resample": False, "num_heads": 2, "num_heads_upsample": 4},
        {"channel_mult": (1, 1.5, 2), "num_res_blocks": 2, "attention_resolutions": (1, 4, 32)},
        {"resblock_updown": True, "use_scale_shift_norm": True, "super_res": True},
    ],
)
def test_a_translated_network_is_the_network(changes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    ours = GuidedDiffusionArguments(**(ARGUMENTS | changes)).build().eval()
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.1)
    state = {
        theirs: ours.state_dict()[name][..., None]
        if name.endswith(("query_key_value.weight", "project.weight"))
        else ours.state_dict()[name]
        for theirs, name in translate_keys(ours).items()
    }
    low_res = torch.randn(2, 3, 4, 4) if changes.get("super_res") else None
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([0, 999])
    again = load_guided_diffusion(state, **(ARGUMENTS | changes))
    torch.testing.assert_close(again(x, t, low_res=low_res), ours(x, t.float(), low_res=low_res))


def test_arguments_mean_what_theirs_mean() -> None:
    arguments = GuidedDiffusionArguments(
        **(ARGUMENTS | {"attention_resolutions": (1, 2, 8), "num_head_channels": 16, "num_heads_upsample": 8})
    )
    config = arguments.network_config()
    assert config.attention == (16, 8)  # no level has factor 8
    assert (config.head_channels, config.decoder_heads) == (16, 8)
    assert (config.attention_order, config.resample, config.scale_shift) == ("heads-first", "conv", False)


def test_every_tensor_that_does_not_fit_is_named() -> None:
    arguments, state, _ = golden("base")
    del state["out.2.bias"]
    state["extra.weight"] = torch.zeros(1)
    state["middle_block.1.qkv.weight"] = torch.zeros(192, 32, 1)
    state["time_embed.0.bias"] = torch.zeros(3)
    with pytest.raises(UserError) as caught:
        load_guided_diffusion(state, **arguments)
    for part in (
        "out.2.bias is missing",
        "extra.weight is not part of this network",
        "middle_block.1.qkv.weight has shape [192, 32, 1], expected [192, 64]",
        "time_embed.0.bias has shape [3], expected [128]",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dims": 3}, r"dims: .*given: 3"),
        ({"num_resblocks": 3}, "num_resblocks: unknown key; did you mean num_res_blocks"),
        ({"num_head_channels": 24}, "head_channels: 24 does not divide"),
        ({"image_size": 15}, "resolution: 15"),
    ],
)
def test_wrong_arguments_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_guided_diffusion({}, **(ARGUMENTS | changes))


def test_missing_arguments_are_named() -> None:
    with pytest.raises(UserError, match="missing: image_size, in_channels, model_channels, out_channels"):
        load_guided_diffusion({})


def test_parts_that_guided_diffusion_lacks_are_refused() -> None:
    network = UNet(NetworkConfig(channels=8, multipliers=(1,), patch=2), resolution=8, image_channels=3, out_channels=3)
    with pytest.raises(UserError, match="patch above 1"):
        translate_keys(network)


def test_the_names_of_the_room_are_loaded_when_used() -> None:
    from cascaded_diffusion import interop

    assert interop.load_guided_diffusion is load_guided_diffusion
    assert all(callable(getattr(interop, name)) for name in interop.__all__)
    with pytest.raises(AttributeError, match="load_nothing"):
        interop.load_nothing  # noqa: B018
