"""Batches of each stage: asked for, by memory, and halved."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from cascaded_diffusion.cascade import batching, walk
from cascaded_diffusion.cascade.batching import Batches, StageBatches, fitting_batch
from cascaded_diffusion.cascade.chain import Cascade
from cascaded_diffusion.cascade.stage import Stage, StageConfig
from cascaded_diffusion.errors import UserError

Configure = Callable[..., StageConfig]
CUDA = torch.device("cuda")


@pytest.fixture(scope="module")
def stages(random_stage: Callable[..., Stage], base_config: Configure, sr_config: Configure) -> list[Stage]:
    """8 -> 16 -> 32, truncated at every s."""
    configs = (base_config(8), sr_config(16), sr_config(32, low=16))
    return [random_stage(config, seed=seed) for seed, config in enumerate(configs)]


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, int]]]:
    """The stages and the sizes of their batches, as they are worked on."""
    seen: list[tuple[str, int]] = []
    honest = walk.sample_stage

    def sample_stage(stage: Stage, *rest: Any, index: torch.Tensor, **options: Any) -> Any:
        seen.append((stage.name, len(index)))
        return honest(stage, *rest, index=index, **options)

    monkeypatch.setattr(walk, "sample_stage", sample_stage)
    return seen


@pytest.mark.parametrize("mode", ["truncated", "nontruncated"])
def test_every_stage_has_its_own_batches_and_the_images_stay(
    stages: list[Stage], tried: list[tuple[str, int]], mode: str
) -> None:
    cascade = Cascade(stages)
    settings: dict[str, Any] = {"augmentation": mode, "s": 0.3, "return_stages": True, "sampler": "ancestral"}
    sizes = {"base8": 5, "sr16": 2, "sr32": 3}
    found = cascade.sample(7, batch_size=sizes, **settings)
    block = [("base8", 5), ("sr16", 2), ("sr16", 2), ("sr16", 1), ("sr32", 3), ("sr32", 2)]
    assert tried == [*block, ("base8", 2), ("sr16", 2), ("sr32", 2)]
    expected = cascade.sample(7, batch_size=7, **settings)
    assert all(np.abs(found[name].astype(int) - expected[name]).max() <= 1 for name in sizes)
    assert all(images.std() > 5 for images in expected.values())


def test_a_stage_that_is_not_named_has_auto(stages: list[Stage]) -> None:
    batches = StageBatches(stages, {"base8": 100}, torch.device("cpu"))
    assert batches.block == 100
    assert [(batches.of(s.name).size, batches.of(s.name).is_auto) for s in stages] == [(100, False)] + [(64, True)] * 2


@pytest.mark.parametrize(
    "sizes, words",
    [
        ({"sr64": 2}, "batch_size: no stage 'sr64' in use; allowed: base8, sr16"),
        ({"sr32": 2}, "batch_size: no stage 'sr32' in use; allowed: base8, sr16"),
        ({"base8": 0}, "batch_size: 0 is not allowed; give a number from 1, or auto"),
        ({"base8": "many"}, "batch_size: 'many' is not allowed"),
    ],
)
def test_refusals(stages: list[Stage], sizes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Cascade(stages).sample(2, batch_size=sizes, until="sr16")


def test_auto_goes_by_the_free_memory_of_an_accelerator(stages: list[Stage], monkeypatch: pytest.MonkeyPatch) -> None:
    price = 10_000
    monkeypatch.setattr(batching, "forward_peak", lambda network: price)
    for images, guided, size in ((100, False, 64), (100, True, 32), (1.5, False, 1), (10**6, False, 512)):
        free = int(images * price / 0.7) + 1
        monkeypatch.setattr(batching, "free_memory", lambda device, free=free: free)
        assert fitting_batch(stages[1], CUDA, guided=guided, most=512) == size
    monkeypatch.setattr(batching, "free_memory", lambda device: None)
    assert fitting_batch(stages[1], CUDA, guided=False, most=512) == 512


def test_small_images_get_larger_batches_than_large_ones(stages: list[Stage], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "forward_peak", lambda network: 1000 * network.resolution**2)
    monkeypatch.setattr(batching, "free_memory", lambda device: 100_000 * 32**2)
    batches = StageBatches(stages, "auto", CUDA)
    assert batches.block == 512
    sizes = [batches.of(stage.name).size for stage in stages]
    assert sizes == [512, 256, 64]


def test_on_a_cpu_auto_is_64_and_less_only_of_large_images_that_do_not_fit(
    random_stage: Callable[..., Stage], base_config: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large = (random_stage(base_config(side)) for side in (64, 128))
    monkeypatch.setattr(batching, "forward_peak", lambda network: 10_000)
    monkeypatch.setattr(batching, "free_memory", lambda device: 100_000)
    sizes = [StageBatches([stage], "auto", torch.device("cpu")).of(stage.name).size for stage in (small, large)]
    assert sizes == [64, 4]


def test_what_a_stage_settled_for_is_where_the_next_begins(stages: list[Stage]) -> None:
    batches = StageBatches(stages, "auto", torch.device("cpu"))

    def work(start: int, stop: int) -> int:
        if stop - start > 5:
            raise torch.OutOfMemoryError("too many")
        return stop - start

    assert batches.of("base8").each(12, work) == [3, 3, 3, 3]
    assert batches.of("base8").each(12, work) == [3, 3, 3, 3]
    assert batches.of("sr16").size == 3


def test_a_size_that_was_asked_for_is_kept() -> None:
    def work(start: int, stop: int) -> int:
        raise torch.OutOfMemoryError("too many")

    with pytest.raises(RuntimeError, match="out of memory with 5 samples at once; a smaller batch size needs less"):
        Batches(5).each(7, work)
    with pytest.raises(RuntimeError, match=r"out of memory with 1 samples at once$"):
        Batches("auto").each(7, work)
