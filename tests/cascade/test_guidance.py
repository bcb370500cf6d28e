"""Guidance in an interval, autoguidance, relay start: what is called, at which levels, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from cascaded_diffusion.cascade.chain import Cascade
from cascaded_diffusion.cascade.generate import sample_stage, stage_evaluations, stage_grids, stage_passes
from cascaded_diffusion.cascade.guidance import stage_denoiser
from cascaded_diffusion.cascade.manifest import CascadeManifest
from cascaded_diffusion.cascade.sample_store import sampling_request
from cascaded_diffusion.cascade.sampling import SamplingConfig
from cascaded_diffusion.cascade.search import run_search
from cascaded_diffusion.cascade.search_write import write_best_copy
from cascaded_diffusion.cascade.stage import Stage, StageConfig
from cascaded_diffusion.cascade.walk import Plan
from cascaded_diffusion.diffusion.levels import alpha_bar_of, sigma_of
from cascaded_diffusion.diffusion.process import q_sample
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.randomness import normal
from cascaded_diffusion.report.stages import sampling_words

Configure = Callable[..., StageConfig]
Draw = Callable[..., Stage]

LABELS = torch.tensor([0, 1, 2])
INDEX = torch.arange(3)
CONTINUOUS = {"noise_schedule": {"kind": "cosine", "timesteps": None}}


def _settings(**values: Any) -> SamplingConfig:
    return SamplingConfig.model_validate({"steps": 5, "sampler": "ddim", **values})


@pytest.fixture
def stage(base_config: Configure, random_stage: Draw) -> Stage:
    return random_stage(base_config(4, diffusion=CONTINUOUS), 0)


@pytest.fixture
def guided(base_config: Configure, random_stage: Draw) -> Stage:
    """base4 with a guide that is smaller and predicts something else."""
    stage = random_stage(base_config(4, diffusion=CONTINUOUS), 0)
    worse = base_config(4, diffusion={**CONTINUOUS, "prediction": "edm"}, network={"channels": 16})
    stage.guided_by(random_stage(worse, 1))
    return stage


@pytest.fixture
def enlarger(sr_config: Configure, random_stage: Draw) -> Stage:
    return random_stage(sr_config(8, low=4, diffusion=CONTINUOUS), 2)


def _count(stage: Stage, monkeypatch: pytest.MonkeyPatch, counts: list[int]) -> None:
    run = stage._run

    def counting(x: torch.Tensor, time: torch.Tensor, **conditions: Any) -> torch.Tensor:
        counts.append(len(x))
        return run(x, time, **conditions)

    monkeypatch.setattr(stage, "_run", counting)


def test_outside_the_interval_the_stage_is_called_once(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    _count(stage, monkeypatch, counts)
    sigmas = [sigma_of(level.alpha_bar) for level in stage_grids(stage, _settings())[0][:-1]]
    settings = _settings(guidance=2.0, guidance_interval=(sigmas[3], sigmas[1]))
    sample_stage(stage, settings, index=INDEX, labels=LABELS)
    # Open below, closed above: the second and third of five levels.
    assert counts == [3, 6, 6, 3, 3]
    assert stage_passes(stage, settings) == sum(counts) // 3 == 7
    assert stage_evaluations(stage, settings) == 5
    assert stage_passes(stage, _settings(guidance=2.0)) == 10
    assert stage_passes(stage, _settings(guidance=2.0, sampler="heun")) == 18


def test_a_sampler_is_told_where_guidance_acts(stage: Stage) -> None:
    levels = stage_grids(stage, _settings())[0][:-1]
    sigmas = [sigma_of(level.alpha_bar) for level in levels]
    settings = _settings(guidance=2.0, guidance_interval=(sigmas[3], sigmas[1]))
    denoise = stage_denoiser(stage, settings, labels=LABELS, low_res=None, s=None)
    x = torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(3))
    assert [denoise(x, level).guided for level in levels] == [False, True, True, False, False]


@pytest.mark.parametrize("sigma", [0.1, 1.0, 10.0])
def test_the_interval_s_ends_are_its_own_whatever_float64_makes_of_them(sigma: float) -> None:
    """A sigma goes through alpha_bar and back: 10 comes back as 10.000000000000002."""
    back = sigma_of(alpha_bar_of(sigma))
    assert _settings(guidance=2.0, guidance_interval=(0.01, sigma)).guided_at(back)
    assert not _settings(guidance=2.0, guidance_interval=(sigma, 100.0)).guided_at(back)


def test_an_interval_of_everything_is_guidance_and_of_nothing_is_none(stage: Stage) -> None:
    def sampled(**values: Any) -> torch.Tensor:
        return sample_stage(stage, _settings(**values), index=INDEX, labels=LABELS).x

    everywhere = sampled(guidance=2.0, guidance_interval=(0, 1e5))
    nowhere = sampled(guidance=2.0, guidance_interval=(5e4, 1e5))
    assert torch.equal(everywhere, sampled(guidance=2.0))
    assert torch.equal(nowhere, sampled())
    assert not torch.equal(everywhere, nowhere)


def test_autoguidance_leads_away_from_the_guides_image(guided: Stage) -> None:
    level = guided.diffusion.schedule.level(0.6)
    x = torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(3))
    conditions: dict[str, Any] = {"labels": LABELS, "low_res": None, "s": None}
    assert guided.guide is not None
    own, _ = guided.diffusion.predict(guided.network_call(**conditions), x, level)
    worse, _ = guided.guide.diffusion.predict(guided.guide.network_call(**conditions), x, level)
    found = stage_denoiser(guided, _settings(guide=2.5, clip=False), **conditions)(x, level)
    torch.testing.assert_close(found.x0, worse + 2.5 * (own - worse))
    # eps is led as far: it belongs to the image.
    torch.testing.assert_close(q_sample(found.x0, found.eps, level.alpha_bar), x, rtol=1e-4, atol=1e-4)
    # With classifier-free guidance too, it is the class-guided image that is led away.
    free, _ = guided.diffusion.predict(guided.network_call(**conditions, guidance=1.5), x, level)
    both = stage_denoiser(guided, _settings(guide=2.5, guidance=1.5, clip=False), **conditions)(x, level)
    torch.testing.assert_close(both.x0, worse + 2.5 * (free - worse))
    outside = _settings(guide=2.5, guidance=1.5, clip=False, guidance_interval=(1e4, 1e5))
    torch.testing.assert_close(stage_denoiser(guided, outside, **conditions)(x, level).x0, own)


def test_a_guides_passes_are_counted(guided: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    assert guided.guide is not None
    _count(guided, monkeypatch, counts)
    _count(guided.guide, monkeypatch, counts)
    settings = _settings(guidance=1.5, guide=2.0)
    sample_stage(guided, settings, index=INDEX, labels=LABELS)
    assert sum(counts) == 3 * stage_passes(guided, settings) == 3 * 15
    plan = Plan((guided,), {"base4": settings})
    assert (plan.evaluations(), plan.passes()) == ({"base4": 5}, {"base4": 15})
    assert plan.describe() == "base4 ddim 5 steps, guidance 1.5, guide 2"


def test_a_guide_lies_in_the_cascades_folder_with_its_hashes(guided: Stage, tmp_path: Path) -> None:
    weight = guided.config.sampling.model_copy(update={"guide": 2.0})
    cascade = Cascade([guided], defaults={"base4": weight})
    cascade.save_pretrained(tmp_path / "guided")
    entry = CascadeManifest.read(tmp_path / "guided").stages[0]
    assert sorted(entry.sha256) == ["config.json", "guide/config.json", "guide/model.safetensors", "model.safetensors"]
    again = Cascade.from_pretrained(tmp_path / "guided")
    np.testing.assert_array_equal(again.sample(4), cascade.sample(4))
    plain = cascade.sample(4, more={"base4": {"guide": 1.0}})
    assert not np.array_equal(plain, cascade.sample(4))
    assert "guide:" in repr(again)
    assert "sampled with:" in repr(again)
    path = tmp_path / "guided/base4/guide/model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"guide/model.safetensors: not the file that was assembled"):
        Cascade.from_pretrained(tmp_path / "guided")


def test_a_guide_that_is_not_there_or_does_not_fit_is_refused(
    stage: Stage, guided: Stage, base_config: Configure, random_stage: Draw
) -> None:
    with pytest.raises(UserError, match=r"base4: sampling.guide: 2 needs a guide"):
        Cascade([stage], defaults={"base4": _settings(guide=2.0)})
    with pytest.raises(UserError, match=r"guide: 2 needs a guide for base4; cdm assemble --guide"):
        Cascade([stage]).plan(more={"base4": {"guide": 2.0}})
    with pytest.raises(UserError, match=r"guide: diffusion.noise_schedule of the guide for base4 differs"):
        stage.guided_by(random_stage(base_config(4)))
    with pytest.raises(UserError, match=r"guide: name of the guide for base4 differs: base8"):
        stage.guided_by(random_stage(base_config(8, diffusion=CONTINUOUS)))


def test_relay_start_is_the_enlarged_image_at_that_level(enlarger: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    run = enlarger._run

    def watching(x: torch.Tensor, time: torch.Tensor, **conditions: Any) -> torch.Tensor:
        seen.append(x)
        return run(x, time, **conditions)

    monkeypatch.setattr(enlarger, "_run", watching)
    low = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(4)) * 2 - 1
    settings = _settings(steps=10, start=0.45, augmentation="nontruncated", s=0.1)
    sample_stage(enlarger, settings, index=INDEX, labels=LABELS, low_res=low, seed=7)
    ab = float(enlarger.diffusion.schedule.alpha_bar(torch.tensor(0.45, dtype=torch.float64)))
    noise = normal(7, "sampling/sr8/init", INDEX, (3, 8, 8))
    large = functional.interpolate(low, size=8, mode="bilinear")
    # The image itself, not what the condition was noised to.
    torch.testing.assert_close(seen[0], ab**0.5 * large + (1 - ab) ** 0.5 * noise)
    # Of ten steps over the whole range, the start and those below it: 0.45, 0.4, 0.3, 0.2, 0.1.
    assert len(seen) == stage_evaluations(enlarger, settings) == 5
    times = [level.time for level in stage_grids(enlarger, settings)[0]]
    assert times == pytest.approx([0.45, 0.4, 0.3, 0.2, 0.1, 0.0])


def test_relay_start_from_the_end_is_the_usual_start(enlarger: Stage) -> None:
    """At time 1 next to nothing of the image is left, and every step is made."""
    low = torch.zeros(3, 3, 4, 4)
    settings = _settings(steps=4, augmentation="nontruncated", s=0.1)
    usual = sample_stage(enlarger, settings, index=INDEX, labels=LABELS, low_res=low)
    relayed = sample_stage(
        enlarger, settings.model_copy(update={"start": 1.0}), index=INDEX, labels=LABELS, low_res=low
    )
    torch.testing.assert_close(relayed.x, usual.x, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"start": 0.5, "augmentation": "truncated", "s": 0.1}, "start: 0.5 needs the whole low-resolution image"),
        ({"guidance_interval": (2, 1)}, "guidance_interval: .* is not a range"),
        ({"sigma_range": (0.01, 50)}, "sigma_range: .* needs grid: edm or log-snr"),
        ({"grid": "edm", "sigma_range": (2, 1)}, "sigma_range: .* is not a pair"),
        ({"grid": "log-snr", "rho": 5}, "rho: 5 needs grid: edm"),
        ({"grid": "edm", "endpoints": (0.1, 0.2)}, "endpoints: .* does not go with grid: edm"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        _settings(**changes)


def test_what_a_stage_lacks_is_refused(base_config: Configure, random_stage: Draw) -> None:
    with pytest.raises(ValueError, match=r"sampling.start: base4 is a base stage"):
        base_config(4, sampling={"start": 0.5})
    with pytest.raises(ValueError, match=r"sampling.grid: edm needs a continuous noise_schedule"):
        base_config(4, sampling={"grid": "edm"})
    with pytest.raises(ValueError, match=r"sampling.guide: 2 needs a guide"):
        base_config(4, sampling={"guide": 2.0})
    cascade = Cascade([random_stage(base_config(4))])
    for more, words in (
        ({"sr8": {"start": 0.5}}, "set: no stage 'sr8' in use; allowed: base4"),
        ({"base4": {"beginning": 0.5}}, "base4: beginning: unknown key"),
        ({"base4": {"s": 0.5}}, "set: base4.s has an option of its own"),
        ({"base4": {"grid": "edm"}}, "base4: sampling.grid: edm needs a continuous"),
    ):
        with pytest.raises(UserError, match=words):
            cascade.plan(more=more)


def test_settings_that_change_nothing_leave_no_trace() -> None:
    """What was kept by a library that did not know them is found again."""
    assert not {"grid", "start", "guide", "guidance_interval", "rho", "sigma_range"} & set(_settings().identity())
    assert _settings(grid="edm").identity()["grid"] == "edm"
    assert SamplingConfig.model_validate(_settings(guide=2.0).identity()) == _settings(guide=2.0)


def test_a_search_knows_guides_and_copies_them(
    guided: Stage, enlarger: Stage, search_of: Callable[..., Any], tmp_path: Path
) -> None:
    defaults = {"base4": _settings(steps=2, guide=2.0), "sr8": _settings(steps=2, start=0.9)}
    Cascade([guided, enlarger], defaults=defaults, no_truncated=True).save_pretrained(tmp_path / "guided")
    search = search_of("base4", cascade=tmp_path / "guided", guidance=[1, 2])
    assert "guide/model.safetensors" in search.request.weights["base4"]
    record = run_search(search, tmp_path / "out", cache=tmp_path / "cache")
    write_best_copy(tmp_path / "guided", tmp_path / "best", record)
    best = Cascade.from_pretrained(tmp_path / "best")
    assert best.stages["base4"].guide is not None
    assert best.defaults["base4"].guide == 2.0
    assert best.plan().passes()["base4"] == (4 if best.defaults["base4"].guidance == 1 else 6)
    # An unfinished sampling is taken up only with the same guide.
    plan = best.plan()
    labels = np.arange(4)
    request = sampling_request(plan, labels, None, device=torch.device("cpu"))
    worse = best.stages["base4"].guide
    with torch.no_grad():
        next(worse.network.parameters()).add_(0.1)
    assert sampling_request(plan, labels, None, device=torch.device("cpu")) != request


def test_reports_tell_of_guide_and_start() -> None:
    assert sampling_words(_settings(guide=2.0)) == "ddim, 5 steps, guide 2"
    told = _settings(start=0.9, grid="edm", guidance=1.5, guidance_interval=(0.2, 3))
    assert sampling_words(told) == "ddim, 5 steps, guidance 1.5, at sigma 0.2 to 3, edm grid rho 7, from time 0.9"
