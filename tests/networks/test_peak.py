"""The memory of a forward pass, against what the allocator really gave."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from cascaded_diffusion.networks import winograd
from cascaded_diffusion.networks.peak import LiveBytes, forward_peak
from cascaded_diffusion.networks.unet import NetworkConfig, UNet


def test_tensors_are_counted_while_they_live_and_views_not_at_all() -> None:
    known = torch.zeros(1000)
    with LiveBytes([known]) as live:
        first = torch.zeros(10)
        assert live.now == 40
        second = known[10:] + first.sum()
        view = known.view(10, 100).t()
        assert live.now == 40 + 4 * 990
        del first
        assert live.now == 4 * 990
    assert live.peak == 40 + 4 + 4 * 990
    assert len(second) + view.numel() == 1990


@pytest.mark.parametrize("resample", ["conv", "block"])
def test_the_estimate_is_what_the_allocator_gave(resample: str) -> None:
    torch.manual_seed(0)
    config = NetworkConfig(channels=32, multipliers=(1, 2), attention=(16,), resample=resample)
    network = UNet(config, resolution=32, image_channels=3, out_channels=3, low_res_channels=3, s_embedding=True).eval()
    count = 4

    def taken_at_most() -> int:
        def run() -> Tensor:
            numbers = torch.rand(count)
            x = torch.randn(count, 3, 32, 32).to(memory_format=torch.channels_last)
            answer: Tensor = network(x, numbers, low_res=torch.randn(count, 3, 16, 16), s=numbers)
            return answer

        with torch.no_grad():
            run()
            with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
                run()
        events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
        taken = peak = 0
        for event in sorted(events, key=lambda e: e.start_ns()):
            taken += event.nbytes()
            peak = max(peak, taken)
        return peak

    network.use_fast_path(False)
    assert forward_peak(network) * count == pytest.approx(taken_at_most(), rel=0.25)
    # Winograd's convolutions have two buffers of tiles a thread beside it, and less for borders and kernels, however
    # many images there are.
    network.use_fast_path(True)
    work_space = 3 * 4 * winograd._WORK_SPACE * torch.get_num_threads()
    assert taken_at_most() < 1.25 * forward_peak(network) * count + work_space
