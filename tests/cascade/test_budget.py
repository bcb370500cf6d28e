"""What a stage is said to cost, against counts on networks that really run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from cascaded_diffusion.cascade.budget import RESERVE, StageBudget, attentions, images_per_second, too_large_attention
from cascaded_diffusion.cascade.generate import sample_stage
from cascaded_diffusion.cascade.stage import Stage, StageConfig, empty_network
from cascaded_diffusion.networks.peak import training_peak

Configure = Callable[..., StageConfig]
NETWORK = {"channels": 32, "multipliers": [1, 2], "blocks": 1, "heads": 2, "attention": [8], "patch": 1}


@pytest.fixture(scope="module")
def stage(random_stage: Callable[..., Stage], sr_config: Configure) -> Stage:
    """8 -> 16 with attention and guidance, in torch's own layers: the fast ones do with fewer products."""
    made = random_stage(sr_config(16, network=NETWORK, sampling={"guidance": 2.0, "sampler": "heun", "steps": 3}))
    made.network.use_fast_path(False)
    return made


@pytest.fixture(scope="module")
def budget(stage: Stage) -> StageBudget:
    return StageBudget(stage.config, 64, 4)


def test_sampling_operations_are_those_that_sampling_does(stage: Stage, budget: StageBudget) -> None:
    counter = FlopCounterMode(display=False)
    # The counter knows the products of plain attention, not those of every fused kernel.
    with counter, sdpa_kernel(SDPBackend.MATH):
        index = torch.arange(2)
        sample_stage(stage, stage.config.sampling, index=index, labels=index, low_res=torch.zeros(2, 3, 8, 8))
    assert budget.evaluations == 2 * 3 - 1
    assert 2 * budget.sampling_flops == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_a_training_step_is_three_forward_passes(stage: Stage, budget: StageBudget) -> None:
    """Of what the counter counts, but for the gradient of the input image, which nobody needs."""
    network = stage.network.train().requires_grad_(True)
    counter = FlopCounterMode(display=False)
    try:
        with counter, sdpa_kernel(SDPBackend.MATH):
            numbers = torch.rand(2)
            x, low_res = torch.randn(2, 3, 16, 16), torch.zeros(2, 3, 8, 8)
            network(x, numbers, labels=torch.arange(2), low_res=low_res, s=numbers).sum().backward()
    finally:
        network.eval().requires_grad_(False).zero_grad(set_to_none=True)
    assert budget.training_flops == 3 * budget.price.forward_flops
    assert 2 * budget.training_flops == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_training_memory_is_what_the_allocator_gave(stage: Stage, budget: StageBudget) -> None:
    """Gradients and activations; weights, moments and averages are counted by hand."""
    parameters = sum(parameter.numel() for parameter in stage.network.parameters())
    assert budget.state_bytes == {
        "weights": 4 * parameters,
        "gradients": 4 * parameters,
        "adam": 8 * parameters,
        "averages": 2 * 4 * parameters,
    }
    count = 32
    network = stage.network.train().requires_grad_(True)

    def step() -> None:
        numbers = torch.rand(count)
        x = torch.randn(count, 3, 16, 16).to(memory_format=torch.channels_last)
        low_res = torch.zeros(count, 3, 8, 8)
        network(x, numbers, labels=torch.zeros(count).long(), low_res=low_res, s=numbers).sum().backward()
        network.zero_grad(set_to_none=True)

    try:
        step()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            step()
    finally:
        network.eval().requires_grad_(False)
    taken = peak = 0
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        taken += event.nbytes()
        peak = max(peak, taken)
    assert training_peak(empty_network(stage.config), count) == pytest.approx(peak, rel=0.1)
    with pytest.raises(ValueError, match="the network has numbers"):
        training_peak(stage.network, count)
    estimate = budget.training_bytes(count) - 4 * 4 * parameters - 4 * parameters
    assert estimate == pytest.approx(peak, rel=0.2)


def test_what_fits(budget: StageBudget) -> None:
    assert budget.share == 16
    for images in (1, 7, 16):
        memory = int(budget.training_bytes(images) / (1 - RESERVE)) + 1
        assert budget.largest_micro_batch(memory) == images
        assert budget.largest_micro_batch(memory - 2) == images - 1
    assert budget.largest_micro_batch(10**15) == 16
    assert budget.largest_micro_batch(1000) == 0
    weights = 4 * budget.price.parameters
    assert budget.largest_sampling_batch(int((weights + 9.5 * budget.sampling_bytes) / (1 - RESERVE))) == 9


def test_time(budget: StageBudget) -> None:
    seconds = budget.gpu_seconds(1e12, 0.25)
    assert seconds == pytest.approx(64 * 3 * budget.price.forward_flops / 0.25e12)
    assert images_per_second(10**9, 1e12, 0.25) == 250


def test_attention_is_counted_without_building_it(stage: Stage, sr_config: Configure) -> None:
    (one,) = attentions(stage.config)
    own = [name for name, part in stage.network.named_modules() if type(part).__name__ == "SelfAttention"]
    assert (one.resolution, one.tokens, one.heads, one.layers, one.width) == (8, 64, 2, len(own), 64)
    assert one.pair_bytes() == 2 * 64 * 64 * 4
    assert one.fused_bytes(size=2) == 4 * 64 * 64 * 2
    both = sr_config(16, network={**NETWORK, "attention": [8, 16], "middle_attention": True})
    assert [(each.resolution, each.layers) for each in attentions(both)] == [(16, 3), (8, 4)]
    assert attentions(sr_config(16)) == []
    middle = sr_config(
        16, network={**NETWORK, "attention": [], "middle_attention": True, "heads": 4, "decoder_heads": 3}
    )
    assert [(each.resolution, each.heads) for each in attentions(middle)] == [(8, 4)]


def test_attention_at_full_resolution_is_warned_of(base_config: Configure) -> None:
    shape: dict[str, Any] = {"channels": 32, "multipliers": [1], "blocks": 2, "heads": 4, "attention": [256]}
    config = base_config(256, network=shape)
    # Five layers of four heads over 65,536 positions.
    pairs = 2 * 5 * 4 * 65_536**2 * 4
    line = too_large_attention(config, 2, 80 * 2**30)
    assert line is not None
    assert line.startswith(
        "base256: attention at 256 pixels would not fit: for 2 images the matrices of 65,536 x 65,536"
    )
    assert f"take {pairs / 2**30:,.0f} GiB, and there are 80." in line
    assert "flash" in line
    assert too_large_attention(config, 2, pairs) is None
    assert too_large_attention(base_config(8), 1000, 2**20) is None
    half = base_config(256, network=shape, training={"precision": "bf16"})
    assert too_large_attention(half, 2, pairs // 2) is None
