"""What a search will cost, before it begins."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from cascaded_diffusion.cascade.chain import Cascade
from cascaded_diffusion.cascade.generate import stage_passes
from cascaded_diffusion.cascade.search import Search, evaluations
from cascaded_diffusion.cascade.search_points import Pass, Point, count_passes
from cascaded_diffusion.cascade.search_store import SearchStore
from cascaded_diffusion.precision import Precision, autocast
from cascaded_diffusion.ranks import current_ranks

__all__ = ["Forecast", "forecast"]


@dataclass(frozen=True)
class Forecast:
    """The cost of a search, and what of it is still to be paid.

    Attributes:
        points: searched stage to its points in words, and whether each is done.
        passes: stage to how often all samples go through it, finished passes among them.
        missing: passes that are not made yet.
        evaluations: network evaluations of the missing passes, for all samples together.
        seconds: time for them here, from timing each network on one batch; that of features is not in it.
    """

    points: dict[str, dict[str, bool]]
    passes: dict[str, int]
    missing: int
    evaluations: int
    seconds: float


def forecast(search: Search, out: Path) -> Forecast:
    """Count points, passes and evaluations, and time every network once. Writes nothing.

    Raises:
        UserError: ``out`` holds something else than a part of this search.
    """
    store = SearchStore(out)
    store.check(search.request)
    points: dict[str, list[Point]] = {}
    settings = dict(search.cascade.defaults)
    for name in search.choices:
        points[name] = search.points(name, settings)
        known = [store.score(point) for point in points[name]]
        # What will be best below is not known before its search is through; its default stands in for it.
        if all(known):
            winner = min((result for result in known if result is not None), key=lambda result: result.value)
            settings[name] = winner.settings[name]
    missing = [work for found in points.values() for work in store.missing(found)]
    counts = {work: evaluations(search.cascade, work) for work in missing}
    return Forecast(
        points={
            name: {point.label: store.score_path(point).exists() for point in found} for name, found in points.items()
        },
        passes=dict(sum((Counter(count_passes(found)) for found in points.values()), Counter())),
        missing=len(missing),
        evaluations=sum(counts[work] for work in missing) * search.request.num,
        seconds=_seconds(search, missing),
    )


def _seconds(search: Search, missing: list[Pass]) -> float:
    timed: dict[str, float] = {}
    total = 0.0
    for work in missing:
        if work.stage not in timed:
            timed[work.stage] = _seconds_a_pass(search.cascade, work, search.request.precision)
        # A guide's network counts as the stage's own.
        total += timed[work.stage] * stage_passes(search.cascade.stages[work.stage], work.settings, work.stop)
    return total * search.request.num / current_ranks().world


@torch.no_grad()
def _seconds_a_pass(cascade: Cascade, work: Pass, precision: Precision, *, batch: int = 16) -> float:
    """How long a stage's network takes for one image here, from forward passes of one small batch."""
    stage, device = cascade.stages[work.stage], cascade.device
    config, conditioning = stage.config, stage.config.conditioning
    low_res = s = None
    if conditioning is not None and conditioning.low_resolution is not None:
        side = conditioning.low_resolution
        low_res = torch.zeros(batch, config.channels, side, side, device=device)
        s = torch.zeros(batch, device=device) if conditioning.augmentation == "gaussian" else None
    labels = None if config.classes is None else torch.zeros(batch, dtype=torch.int64, device=device)
    network = stage.network_call(labels=labels, low_res=low_res, s=s)
    x = torch.zeros(batch, config.channels, config.resolution, config.resolution, device=device)
    moment = torch.full((batch,), 0.5, device=device)
    with autocast(precision, device):
        network(x, moment)  # the first call also pays for what is set up once
        started = time.perf_counter()
        for _ in range(2):
            output = network(x, moment)
        output.sum().item()  # waits for an accelerator
    return (time.perf_counter() - started) / 2 / batch
