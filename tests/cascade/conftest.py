"""What the tests of the search share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cascaded_diffusion.cascade import search_passes
from cascaded_diffusion.cascade.chain import Cascade
from cascaded_diffusion.cascade.manifest import CascadeManifest
from cascaded_diffusion.cascade.search import Search, prepare_search
from cascaded_diffusion.cascade.search_sweep import Sweep
from cascaded_diffusion.data.prepared import PreparedData


@pytest.fixture(scope="session")
def three_stages(
    tmp_path_factory: pytest.TempPathFactory,
    base_config: Callable[..., Any],
    sr_config: Callable[..., Any],
    random_stage: Callable[..., Any],
) -> Path:
    """A cascade folder 4 -> 8 -> 16 of random weights, both SR stages gaussian, that takes two steps a stage."""
    two = {"sampling": {"steps": 2}}
    configs = [base_config(4, **two), sr_config(8, low=4, **two), sr_config(16, low=8, **two)]
    folder = tmp_path_factory.mktemp("three") / "cascade"
    Cascade([random_stage(config, seed) for seed, config in enumerate(configs)]).save_pretrained(folder)
    return folder


@pytest.fixture
def search_of(colour_data: PreparedData, colour_eye: Any, three_stages: Path) -> Callable[..., Search]:
    """``search_of("sr16", s=[0, 0.1], num=6)``: a search in ``three_stages``, or in the folder ``cascade``."""

    def make(stage: str, *, cascade: Path = three_stages, **options: Any) -> Search:
        swept = {key: options.pop(key) for key in tuple(options) if key in Sweep.model_fields}
        shared = {"num": 6, "batch_size": 4} | options
        manifest, loaded = CascadeManifest.read(cascade), Cascade.from_pretrained(cascade)
        sweep = Sweep.model_validate(swept)
        return prepare_search(loaded, manifest, colour_data, colour_eye, stage=stage, sweep=sweep, **shared)

    return make


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many samples have gone through each stage in a search."""
    counts: Counter[str] = Counter()
    sample = search_passes.sample_stage

    def counting(stage: Any, *args: Any, **options: Any) -> Any:
        counts[stage.name] += len(options["index"])
        return sample(stage, *args, **options)

    monkeypatch.setattr(search_passes, "sample_stage", counting)
    return counts
