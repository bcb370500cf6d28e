"""Stages that wait on the host. No accelerator is needed: copies stand in for what would be on one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from cascaded_diffusion.cascade.chain import Cascade
from cascaded_diffusion.cascade.offload import OffloadedStages
from cascaded_diffusion.cascade.stage import Stage, StageConfig
from cascaded_diffusion.errors import UserError

Configure = Callable[..., StageConfig]
CPU = torch.device("cpu")


@pytest.fixture
def stages(random_stage: Callable[..., Stage], base_config: Configure, sr_config: Configure) -> list[Stage]:
    return [random_stage(base_config(8)), random_stage(sr_config(16))]


@pytest.fixture
def offloaded(stages: list[Stage], monkeypatch: pytest.MonkeyPatch) -> OffloadedStages:
    monkeypatch.setattr(OffloadedStages, "_copy", lambda self, tensor: tensor.clone())
    return OffloadedStages(stages, CPU)


def _away(stages: list[Stage], offloaded: OffloadedStages) -> list[bool]:
    """For each stage, whether its weights are those that wait."""
    found = []
    for stage in stages:
        tensors = [*stage.network.parameters(), *stage.network.buffers()]
        waiting = {tensor.data_ptr() for tensor in offloaded._host[stage.name]}
        (where,) = {tensor.data_ptr() in waiting for tensor in tensors}
        found.append(where)
    return found


def test_only_the_stage_at_work_is_on_the_device(stages: list[Stage], offloaded: OffloadedStages) -> None:
    before = [{name: value.clone() for name, value in stage.network.state_dict().items()} for stage in stages]
    assert _away(stages, offloaded) == [True, True]
    with offloaded.at_work("base8", "sr16"):
        assert _away(stages, offloaded) == [False, True]
    with offloaded.at_work("sr16"):
        assert _away(stages, offloaded) == [True, False]
    assert _away(stages, offloaded) == [True, True]
    for stage, weights in zip(stages, before, strict=True):
        assert all(torch.equal(value, weights[name]) for name, value in stage.network.state_dict().items())


def test_nothing_stays_on_the_device_after_sampling(
    stages: list[Stage], offloaded: OffloadedStages, monkeypatch: pytest.MonkeyPatch
) -> None:
    cascade = Cascade(stages)
    cascade.offloaded = offloaded
    cascade.sample(2, seed=0, batch_size=1)
    assert offloaded._fetched == {}


def test_a_stage_that_fails_is_put_away(stages: list[Stage], offloaded: OffloadedStages) -> None:
    work = offloaded.at_work("sr16")
    work.__enter__()
    assert not work.__exit__(KeyError, KeyError(), None)
    assert _away(stages, offloaded) == [True, True]


def test_the_next_stage_is_fetched_where_there_is_room(
    offloaded: OffloadedStages, monkeypatch: pytest.MonkeyPatch
) -> None:
    with offloaded.at_work("base8", "sr16"):
        assert list(offloaded._fetched) == ["sr16"]
    with offloaded.at_work("sr16", "sr16"):
        assert list(offloaded._fetched) == []
    monkeypatch.setattr(offloaded, "_has_room", lambda name: False)
    with offloaded.at_work("base8", "sr16"):
        assert list(offloaded._fetched) == []


def test_images_are_those_of_stages_that_stay(stages: list[Stage], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = Cascade(stages).sample(5, batch_size=3, return_stages=True)
    cascade = Cascade(stages)
    with pytest.raises(UserError, match="offload: cpu holds all stages anyway"):
        cascade.to("cpu", offload=True)
    fetched: list[str] = []
    fetch = OffloadedStages._fetch
    monkeypatch.setattr(OffloadedStages, "_fetch", lambda self, name: (fetched.append(name), fetch(self, name)))
    monkeypatch.setattr(OffloadedStages, "_copy", lambda self, tensor: tensor.clone())
    cascade.offloaded = OffloadedStages(stages, CPU)
    found = cascade.sample(5, batch_size=3, return_stages=True)
    assert fetched == ["base8", "sr16", "sr16", "base8"] * 2  # two blocks; each stage, and the one that follows
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    assert _away(stages, cascade.offloaded) == [True, True]


def test_an_accelerated_stage_stays_where_it_is(stages: list[Stage], offloaded: OffloadedStages) -> None:
    """A recorded graph reads the weights where they were."""
    with pytest.raises(UserError, match="accelerate: base8 is off-loaded"):
        Cascade(stages).accelerate(compile="off")
    Cascade(stages).to("cpu").accelerate(compile="off")
    with pytest.raises(UserError, match="offload: base8 is accelerated"):
        OffloadedStages(stages, CPU)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinned memory and streams need CUDA")
def test_on_a_gpu(stages: list[Stage]) -> None:
    expected = Cascade(stages).to("cuda").sample(5, batch_size=3)
    cascade = Cascade(stages).to("cuda", offload=True)
    assert not next(stages[0].network.parameters()).is_cuda
    assert np.array_equal(cascade.sample(5, batch_size=3), expected)
