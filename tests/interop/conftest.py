"""What the tests of imports and exports share: the published models' flags, and checkpoints as others write them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cascaded_diffusion.interop.guided_diffusion import GuidedDiffusionArguments, translate_keys
from cascaded_diffusion.interop.script_flags import read_flags
from cascaded_diffusion.networks.unet import UNet

_ADM = "--diffusion_steps 1000 --learn_sigma True --resblock_updown True --use_fp16 True --use_scale_shift_norm True"
_LSUN = (
    f"{_ADM} --attention_resolutions 32,16,8 --class_cond False --image_size 256 --noise_schedule linear "
    "--num_channels 256 --num_head_channels 64 --num_res_blocks 2"
)
_IDDPM_LSUN = (
    "--image_size 256 --num_channels 128 --num_res_blocks 2 --num_heads 1 --learn_sigma True "
    "--use_scale_shift_norm False --attention_resolutions 16 --diffusion_steps 1000 --noise_schedule linear "
    "--rescale_learned_sigmas False --rescale_timesteps False"
)

PUBLISHED: dict[str, tuple[str, bool, str]] = {
    "64x64_diffusion": (
        "guided-diffusion",
        False,
        f"{_ADM} --attention_resolutions 32,16,8 --class_cond True --dropout 0.1 --image_size 64 "
        "--noise_schedule cosine --num_channels 192 --num_head_channels 64 --num_res_blocks 3 "
        "--use_new_attention_order True",
    ),
    "128x128_diffusion": (
        "guided-diffusion",
        False,
        f"{_ADM} --attention_resolutions 32,16,8 --class_cond True --image_size 128 --noise_schedule linear "
        "--num_channels 256 --num_heads 4 --num_res_blocks 2",
    ),
    "256x256_diffusion": ("guided-diffusion", False, _LSUN.replace("class_cond False", "class_cond True")),
    "256x256_diffusion_uncond": ("guided-diffusion", False, _LSUN),
    "512x512_diffusion": (
        "guided-diffusion",
        False,
        _LSUN.replace("class_cond False", "class_cond True").replace("256 --noise", "512 --noise"),
    ),
    "64_256_upsampler": (
        "guided-diffusion",
        True,
        f"{_ADM} --attention_resolutions 32,16,8 --class_cond True --large_size 256  --small_size 64 "
        "--noise_schedule linear --num_channels 192 --num_heads 4 --num_res_blocks 2",
    ),
    "128_512_upsampler": (
        "guided-diffusion",
        True,
        f"{_ADM} --attention_resolutions 32,16 --class_cond True --large_size 512 --small_size 128 "
        "--noise_schedule linear --num_channels 192 --num_head_channels 64 --num_res_blocks 2",
    ),
    "lsun_bedroom": ("guided-diffusion", False, f"{_LSUN} --dropout 0.1"),
    "lsun_cat": ("guided-diffusion", False, f"{_LSUN} --dropout 0.1"),
    "lsun_horse": ("guided-diffusion", False, f"{_LSUN} --dropout 0.1"),
    "lsun_horse_nodropout": ("guided-diffusion", False, f"{_LSUN} --dropout 0.0"),
    "imagenet64_uncond_100M_1500K": (
        "improved-diffusion",
        False,
        "--image_size 64 --num_channels 128 --num_res_blocks 3 --learn_sigma True "
        "--diffusion_steps 4000 --noise_schedule cosine",
    ),
    "imagenet64_uncond_vlb_100M_1500K": (
        "improved-diffusion",
        False,
        "--image_size 64 --num_channels 128 --num_res_blocks 3 --learn_sigma True "
        "--diffusion_steps 4000 --noise_schedule cosine --use_kl True",
    ),
    "cifar10_uncond_50M_500K": (
        "improved-diffusion",
        False,
        "--image_size 32 --num_channels 128 --num_res_blocks 3 --learn_sigma True --dropout 0.3 "
        "--diffusion_steps 4000 --noise_schedule cosine",
    ),
    "cifar10_uncond_vlb_50M_500K": (
        "improved-diffusion",
        False,
        "--image_size 32 --num_channels 128 --num_res_blocks 3 --learn_sigma True --dropout 0.3 "
        "--diffusion_steps 4000 --noise_schedule cosine --use_kl True",
    ),
    "imagenet64_cond_270M_250K": (
        "improved-diffusion",
        False,
        "--image_size 64 --num_channels 192 --num_res_blocks 3 --learn_sigma True --class_cond True "
        "--diffusion_steps 4000 --noise_schedule cosine --rescale_learned_sigmas False --rescale_timesteps False",
    ),
    "upsample_cond_500K": (
        "improved-diffusion",
        True,
        "--num_channels 192 --num_res_blocks 2 --learn_sigma True --class_cond True "
        "--diffusion_steps 4000 --noise_schedule linear --rescale_learned_sigmas False --rescale_timesteps False",
    ),
    "lsun_uncond_100M_1200K_bs128": ("improved-diffusion", False, _IDDPM_LSUN),
    "lsun_uncond_100M_2400K_bs64": ("improved-diffusion", False, f"{_IDDPM_LSUN} --use_scale_shift_norm False"),
}
"""The published checkpoints: whose scripts, whether an up-sampler, and the flags that the READMEs print for them."""


@pytest.fixture(scope="session", params=sorted(PUBLISHED))
def published(request: pytest.FixtureRequest) -> tuple[str, str, bool, str]:
    """Name, family, whether an up-sampler, and flags of a published checkpoint; a test that takes it runs for each."""
    name: str = request.param
    return (name, *PUBLISHED[name])


def randomise(network: nn.Module, seed: int = 0) -> None:
    """Draw all weights, so that every input matters and answers are of order 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            fan = parameter[0].numel() if parameter.dim() > 1 else 4
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan**0.5)


def their_state(network: UNet) -> dict[str, Tensor]:
    """The network's weights as guided-diffusion would save them."""
    ours = network.state_dict()
    convolved = ("query_key_value.weight", "project.weight")
    return {
        theirs: ours[name][..., None] if name.endswith(convolved) else ours[name]
        for theirs, name in translate_keys(network).items()
    }


AdmCheckpoint = Callable[..., tuple[Path, UNet]]


@pytest.fixture
def adm_checkpoint(tmp_path: Path) -> AdmCheckpoint:
    """``adm_checkpoint("--image_size 64 ...", upsampler=False)``: a random checkpoint file and the network it is of."""

    def make(
        flags: str, *, upsampler: bool = False, family: str = "guided-diffusion", classes: int = 1000, seed: int = 0
    ) -> tuple[Path, UNet]:
        arguments = read_flags(flags, family).constructor_arguments(upsampler=upsampler, classes=classes)
        network = GuidedDiffusionArguments(**arguments).build().eval()
        randomise(network, seed)
        path = tmp_path / f"{'upsampler' if upsampler else 'base'}-{seed}.pt"
        torch.save(their_state(network), path)
        return path, network

    return make


def adm_shapes(arguments: dict[str, Any]) -> dict[str, list[int]]:
    """Names and shapes of the network that guided-diffusion builds, written down from the architecture (2105.05233)."""
    base, mult = arguments["model_channels"], arguments["channel_mult"]
    embedding, per_level = 4 * base, arguments["num_res_blocks"]
    widths = [int(share * base) for share in mult]
    shapes: dict[str, list[int]] = {}

    def layer(name: str, out: int, *rest: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = [out, *rest], [out]

    def residual(name: str, inner: int, out: int) -> None:
        layer(f"{name}.in_layers.0", inner)
        layer(f"{name}.in_layers.2", out, inner, 3, 3)
        layer(f"{name}.emb_layers.1", 2 * out if arguments["use_scale_shift_norm"] else out, embedding)
        layer(f"{name}.out_layers.0", out)
        layer(f"{name}.out_layers.3", out, out, 3, 3)
        if inner != out:
            layer(f"{name}.skip_connection", out, inner, 1, 1)

    def attention(name: str, width: int) -> None:
        layer(f"{name}.norm", width)
        layer(f"{name}.qkv", 3 * width, width, 1)
        layer(f"{name}.proj_out", width, width, 1)

    def resample(name: str, width: int, conv: str) -> None:
        if arguments["resblock_updown"]:
            residual(name, width, width)
        else:
            layer(f"{name}.{conv}", width, width, 3, 3)

    layer("time_embed.0", embedding, base)
    layer("time_embed.2", embedding, embedding)
    if arguments["num_classes"]:
        shapes["label_emb.weight"] = [arguments["num_classes"], embedding]
    layer("input_blocks.0.0", widths[0], 6 if arguments["super_res"] else 3, 3, 3)
    at, now, skips = 1, widths[0], [widths[0]]
    for level, width in enumerate(widths):
        for _ in range(per_level):
            residual(f"input_blocks.{at}.0", now, width)
            now = width
            if 2**level in arguments["attention_resolutions"]:
                attention(f"input_blocks.{at}.1", now)
            skips.append(now)
            at += 1
        if level < len(widths) - 1:
            resample(f"input_blocks.{at}.0", now, "op")
            skips.append(now)
            at += 1
    residual("middle_block.0", now, now)
    attention("middle_block.1", now)
    residual("middle_block.2", now, now)
    at = 0
    for level, width in reversed(list(enumerate(widths))):
        for block in range(per_level + 1):
            residual(f"output_blocks.{at}.0", now + skips.pop(), width)
            now, members = width, 1
            if 2**level in arguments["attention_resolutions"]:
                attention(f"output_blocks.{at}.1", now)
                members = 2
            if level and block == per_level:
                resample(f"output_blocks.{at}.{members}", now, "conv")
            at += 1
    layer("out.0", now)
    layer("out.2", arguments["out_channels"], now, 3, 3)
    return shapes


@pytest.fixture(scope="session")
def shapes_of() -> Callable[[dict[str, Any]], dict[str, list[int]]]:
    """:func:`adm_shapes`."""
    return adm_shapes
