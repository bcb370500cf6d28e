"""Our U-Net as diffusers' UNet2DModel and back: equal answers, and what neither can be of the other is named."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch

from cascaded_diffusion.cascade.stage import Stage, StageConfig
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.interop.diffusers_unet import (
    DiffusersUNetConfig,
    export_config,
    export_faults,
    export_weights,
    import_weights,
    no_class_row,
)

Configure = Callable[..., StageConfig]
NETWORK: dict[str, Any] = {"channels": 32, "multipliers": [1, 2], "blocks": 1, "attention": [8], "head_channels": 16}
SR: dict[str, Any] = {
    "name": "sr16",
    "conditioning": {"augmentation": "blur", "low_resolution": 8},
    "diffusion": {"variance": "learned"},
}

EXPRESSIBLE: dict[str, dict[str, Any]] = {
    "plain": {},
    "added embedding": {"network": {"scale_shift": False}},
    "residual resampling": {"network": {"resample": "block"}},
    "ADM": {"network": {"resample": "block", "attention": [16, 8], "attention_order": "heads-first"}},
    "heads first": {"network": {"attention_order": "heads-first"}},
    "no attention": {"network": {"attention": [], "middle_attention": False}},
    "no middle attention": {"network": {"middle_attention": False}},
    "one head": {"network": {"attention": [16, 8], "head_channels": None, "heads": 1}},
    "heads of one size": {"network": {"head_channels": None, "heads": 4}},
    "three levels": {"network": {"multipliers": [1, 1, 3], "blocks": 2, "attention": [4]}},
    "fractional width": {"network": {"channels": 64, "multipliers": [1, 1.5], "head_channels": 32}},
    "grey": {"channels": 1},
    "learned variance": {"diffusion": {"variance": "learned"}},
    "classes": {"classes": 5},
    "classes and none": {"classes": 5, "training": {"class_dropout": 0.1}},
    "up-sampler": SR,
    "up-sampler with classes": {**SR, "classes": 5, "channels": 1},
}


def config_of(changes: dict[str, Any]) -> StageConfig:
    raw = {"name": "base16", "resolution": 16, "channels": 3} | changes
    return StageConfig.model_validate(raw | {"network": NETWORK | changes.get("network", {})})


def model_of(stage: Stage) -> Any:
    """diffusers' model of an exported stage."""
    model = diffusers.UNet2DModel(**export_config(stage.config).model_dump())
    weights = export_weights(stage.network, no_class=no_class_row(stage.config) is not None)
    model.load_state_dict(weights)
    return model.eval()


@pytest.mark.parametrize("name", EXPRESSIBLE)
@torch.no_grad()
def test_answers_are_those_of_diffusers(name: str, random_stage: Callable[..., Stage]) -> None:
    config = config_of(EXPRESSIBLE[name])
    assert not list(export_faults(config))
    stage = random_stage(config)
    model = model_of(stage)
    x, time = torch.randn(3, config.channels, 16, 16), torch.tensor([0.0, 12.0, 999.0])
    low_res = torch.randn(3, config.channels, 16, 16) if config.conditioning is not None else None
    labels = torch.tensor([0, 4, 2]) if config.classes else None
    inputs = x if low_res is None else torch.cat([x, low_res], dim=1)
    ours = stage.network(x, time, labels=labels, low_res=low_res)
    assert ours.std() > 0.1
    theirs = model(inputs, time, class_labels=labels).sample
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)

    again = DiffusersUNetConfig.read(dict(model.config) | {"_class_name": "UNet2DModel"}, "x").build(
        "x", low_res_channels=inputs.shape[1] - config.channels, classes=config.classes
    )
    state = model.state_dict()
    if no_class_row(config) is not None:
        state["class_embedding.weight"] = state["class_embedding.weight"][:-1]
    import_weights(again, state, "x")
    back = again.eval()(x, time, labels=labels, low_res=low_res)
    torch.testing.assert_close(back, ours, rtol=0, atol=1e-5)


@torch.no_grad()
def test_no_class_is_a_last_row_of_zeros(random_stage: Callable[..., Stage]) -> None:
    config = config_of(EXPRESSIBLE["classes and none"])
    stage = random_stage(config)
    assert no_class_row(config) == 5
    x, time = torch.randn(2, 3, 16, 16), torch.tensor([7.0, 7.0])
    ours = stage.network(x, time, labels=torch.tensor([-1, 3]))
    theirs = model_of(stage)(x, time, class_labels=torch.tensor([5, 3])).sample
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert no_class_row(config_of(EXPRESSIBLE["classes"])) is None


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"network": {"patch": 2, "attention": []}}, "network.patch: 2; allowed: 1"),
    ({"network": {"blocks": [1, 2]}}, "network.blocks: [1, 2] differ by level"),
    ({"network": {"multipliers": [2, 4]}}, "network.multipliers: begin with 2"),
    ({"network": {"resample": "plain"}}, "network.resample: plain; allowed: conv, block"),
    (
        {"network": {"attention": [16, 8], "head_channels": None, "heads": 4}},
        "network.heads: heads of 8, 16 channels",
    ),
    ({"network": {"head_channels": None, "heads": 4, "decoder_heads": 2}}, "network.heads: heads of 16, 32 channels"),
    ({"network": {"channels": 48, "head_channels": 24}}, "norms of 16 and 32 groups"),
    (
        {
            "name": "sr16",
            "conditioning": {
                "augmentation": "gaussian",
                "low_resolution": 8,
                "low_schedule": {"kind": "cosine", "timesteps": 1000},
            },
        },
        "conditioning.augmentation: gaussian, for the network has an s embedding; allowed: blur, none",
    ),
]


@pytest.mark.parametrize(("changes", "words"), REFUSED)
def test_what_diffusers_lacks_is_named(changes: dict[str, Any], words: str) -> None:
    faults = list(export_faults(config_of(changes)))
    assert len(faults) == 1
    assert words in faults[0]


def test_all_that_diffusers_lacks_is_named() -> None:
    changes = {"network": {"patch": 2, "attention": [], "resample": "plain", "blocks": [2, 1]}}
    assert len(list(export_faults(config_of(changes)))) == 3


THEIRS: dict[str, Any] = {
    "_class_name": "UNet2DModel",
    "_diffusers_version": "0.42.1",
    "sample_size": 16,
    "block_out_channels": [32, 64],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
}


def test_the_defaults_are_diffusers_own() -> None:
    ours = DiffusersUNetConfig.read({"_class_name": "UNet2DModel"}, "x").model_dump()
    theirs = inspect.signature(diffusers.UNet2DModel.__init__).parameters
    assert ours == {name: theirs[name].default for name in theirs if name != "self"}


@torch.no_grad()
def test_a_model_made_with_diffusers() -> None:
    torch.manual_seed(0)
    arguments = {key: value for key, value in THEIRS.items() if not key.startswith("_")}
    model = diffusers.UNet2DModel(**arguments, num_class_embeds=4).eval()
    network = DiffusersUNetConfig.read(THEIRS | {"num_class_embeds": 4}, "x").build("x", classes=4)
    import_weights(network, model.state_dict(), "x")
    x, time, labels = torch.randn(2, 3, 16, 16), torch.tensor([3, 500]), torch.tensor([0, 3])
    theirs = model(x, time, class_labels=labels).sample
    torch.testing.assert_close(network(x, time, labels=labels), theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"_class_name": "UNet2DConditionModel"}, ["_class_name is 'UNet2DConditionModel'; allowed: 'UNet2DModel'"]),
        ({"freq_shift": 1}, ["freq_shift: 1.0; allowed: 0"]),
        ({"flip_sin_to_cos": False}, ["flip_sin_to_cos: False; allowed: True"]),
        ({"downsample_padding": 0}, ["downsample_padding: 0; allowed: 1"]),
        ({"norm_eps": 1e-6}, ["norm_eps: 1e-06; allowed: 1e-05"]),
        ({"time_embedding_type": "fourier"}, ["time_embedding_type: 'fourier'; allowed: 'positional'"]),
        ({"time_embedding_dim": 64}, ["time_embedding_dim: 64; allowed: None, 128"]),
        ({"mid_block_type": None}, ["mid_block_type: None"]),
        ({"class_embed_type": "timestep"}, ["class_embed_type: 'timestep'"]),
        ({"center_input_sample": True}, ["center_input_sample: True"]),
        ({"sample_size": None}, ["sample_size: None"]),
        ({"sample_size": [16, 32]}, ["sample_size: (16, 32)"]),
        ({"act_fn": "gelu"}, ["act_fn: 'gelu'; allowed: 'silu', 'swish'"]),
        ({"mid_block_scale_factor": 1.4}, ["mid_block_scale_factor: 1.4"]),
        ({"norm_num_groups": 8}, ["norm_num_groups: 8, where our network of these widths has 32"]),
        ({"resnet_time_scale_shift": "scale_shift"}, ["attn_norm_num_groups: None; allowed: 32"]),
        ({"attn_norm_num_groups": 8}, ["attn_norm_num_groups: 8; allowed: 32"]),
        ({"down_block_types": ["SkipDownBlock2D", "AttnDownBlock2D"]}, ["down_block_types: SkipDownBlock2D; allowed:"]),
        ({"down_block_types": ["DownBlock2D"]}, ["down_block_types: 1 levels for 2 block_out_channels"]),
        ({"up_block_types": ["UpBlock2D", "AttnUpBlock2D"]}, ["attention at other levels"]),
        ({"upsample_type": "resnet"}, ["resolutions change by conv, resnet"]),
        ({"attention_head_dim": 24}, ["head_channels: 24 does not divide"]),
        ({"new_option": 1}, ["new_option: unknown key"]),
        ({"freq_shift": 1, "norm_eps": 1e-6}, ["freq_shift: 1.0", "norm_eps: 1e-06"]),
    ],
)
def test_what_our_network_lacks_is_named(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        DiffusersUNetConfig.read(THEIRS | changes, "a/config.json").build("a/config.json")
    assert "a/config.json" in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_tensors_that_do_not_fit_are_named(random_stage: Callable[..., Stage]) -> None:
    stage = random_stage(config_of({}))
    state = export_weights(stage.network, no_class=False)
    state["conv_in.wait"] = state.pop("conv_in.weight")
    state["mid_block.attentions.0.to_k.bias"] = torch.zeros(3)
    network = DiffusersUNetConfig.read(THEIRS | {"attention_head_dim": 16}, "x").build("x")
    with pytest.raises(UserError) as caught:
        import_weights(network, state, "model.bin")
    for words in (
        "model.bin: tensors do not fit",
        "conv_in.weight is missing",
        "conv_in.wait is not part of this network",
        "mid_block.attentions.0.to_k.bias has shape [3], expected [64]",
    ):
        assert words in str(caught.value)


def test_names_of_old_attentions_are_known() -> None:
    torch.manual_seed(0)
    arguments = {key: value for key, value in THEIRS.items() if not key.startswith("_")}
    state = diffusers.UNet2DModel(**arguments).state_dict()
    old = {}
    for name, value in state.items():
        for new, before in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            name = name.replace(new, before)
        old[name] = value
    assert "mid_block.attentions.0.proj_attn.weight" in old
    networks = [DiffusersUNetConfig.read(THEIRS, "x").build("x") for _ in range(2)]
    for network, weights in zip(networks, (state, old), strict=True):
        import_weights(network, weights, "x")
    one, other = (network.state_dict() for network in networks)
    assert all(torch.equal(one[name], other[name]) for name in one)
