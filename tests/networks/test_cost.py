"""Prices against sums done by hand and against what autograd really keeps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from cascaded_diffusion.networks.cost import Cost, cost
from cascaded_diffusion.networks.unet import NetworkConfig, UNet


def test_flops_of_a_network_small_enough_to_count() -> None:
    config = NetworkConfig(channels=4, multipliers=(1,), blocks=1, middle_attention=True, heads=1)
    network = UNet(config, resolution=8, image_channels=1, out_channels=1)
    pixels, signal = 64, 16
    embedding = 4 * signal + signal * signal
    # One encoder block, two in the middle: 4 -> 4; two decoder blocks: 8 -> 4 with a 1x1 shortcut. Told 2 * 4 numbers.
    blocks = 3 * 2 * 9 * 16 * pixels + 2 * (9 * 32 + 9 * 16 + 32) * pixels + 5 * signal * 8
    attention = (3 * 16 + 16) * pixels + 2 * pixels * pixels * 4
    ends = 2 * 9 * 4 * pixels
    assert cost(network).forward_flops == 2 * (embedding + blocks + attention + ends)


def test_activations_are_what_a_real_forward_pass_keeps() -> None:
    torch.manual_seed(0)
    config = NetworkConfig(channels=16, multipliers=(1, 2), attention=(16, 8), resample="block", dropout=0.1)
    network = UNet(
        config, resolution=16, image_channels=3, out_channels=6, classes=4, low_res_channels=3, s_embedding=True
    )
    weights = {parameter.data_ptr() for parameter in network.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    x = torch.randn(4, 3, 16, 16).to(memory_format=torch.channels_last)
    numbers = torch.rand(4)
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        network(x, numbers, labels=torch.arange(4), low_res=torch.randn(4, 3, 8, 8), s=numbers)
    real = sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / 4
    assert cost(network).activation_bytes == pytest.approx(real, rel=0.02)


def test_the_work_of_training_adds_up() -> None:
    assert Cost(parameters=100, forward_flops=7, activation_bytes=1000).training_flops(10) == 210


def test_a_network_is_priced_wherever_it_lives() -> None:
    config = NetworkConfig(channels=8, multipliers=(1, 2), attention=(4,), heads=2, patch=2)
    arguments = {"resolution": 16, "image_channels": 3, "out_channels": 3}
    real = UNet(config, **arguments)
    with torch.device("meta"):
        meta = UNet(config, **arguments)
    assert cost(real) == cost(meta)
    assert cost(real).parameters == sum(parameter.numel() for parameter in real.parameters())
