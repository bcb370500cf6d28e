"""Choosing s after training, by score: the search of CDM (2106.15282), greedily stage by stage.

A gaussian SR stage is trained for every s at once, so s is chosen afterwards: sample with each, compare with real
images, keep the best. What makes that affordable and fair:

- **Shared samples.** Sample i has the same class and noise at every point, so that points differ by what is swept and
  less by luck. 10,000 samples a point is the paper's number.
- **One pass below.** Non-truncated points re-noise the same finished small images: the stages below run once for all of
  them. A truncated point needs its own z_s, so the stage below runs once more for every s.
- **Stage by stage.** A stage is judged at its own resolution, with the best settings of the stages below.
- **Resumable.** Every pass and score is kept; the same command goes on where it stopped.

The samples' distance to the real images has an error bar by bootstrap. Steps, guidance of both kinds and its interval,
end points of a sampling schedule and relay start are swept in the same way.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cascaded_diffusion.cascade.batching import BatchSize
from cascaded_diffusion.cascade.chain import Cascade
from cascaded_diffusion.cascade.find import find_cascade, packaged_cascades
from cascaded_diffusion.cascade.generate import stage_evaluations
from cascaded_diffusion.cascade.manifest import CascadeManifest
from cascaded_diffusion.cascade.sampling import SamplingConfig
from cascaded_diffusion.cascade.search_passes import PassMaker
from cascaded_diffusion.cascade.search_plot import curves
from cascaded_diffusion.cascade.search_points import Pass, Point, count_passes, points_of, stages_up_to
from cascaded_diffusion.cascade.search_store import PointResult, SearchRecord, SearchRequest, SearchStore, StageResult
from cascaded_diffusion.cascade.search_sweep import Sweep, pick_stages
from cascaded_diffusion.cascade.walk import first_batch_size
from cascaded_diffusion.data.prepared import PreparedData
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.evaluation.features import Extractor, extract, score_key
from cascaded_diffusion.evaluation.frechet import frechet_distance, frechet_replicates
from cascaded_diffusion.evaluation.reference import Reference, reference, reference_hash
from cascaded_diffusion.evaluation.statistics import FeatureStatistics
from cascaded_diffusion.files import atomic_write
from cascaded_diffusion.networks.compiling import CompileChoice
from cascaded_diffusion.precision import Precision, settled_precision
from cascaded_diffusion.ranks import current_ranks, from_main, gather_rows, on_main
from cascaded_diffusion.version import VERSION

__all__ = ["Search", "Watch", "evaluations", "open_cascade", "prepare_search", "run_search"]

Watch = Callable[[str, int, int, str], None]
"""Called with the work's name, images through it, their number, and the point or pass at hand."""


@dataclass(frozen=True, eq=False)
class Search:
    """A search that has been checked, and can begin: see :func:`prepare_search`."""

    cascade: Cascade
    data: PreparedData
    extractor: Extractor
    choices: Mapping[str, Sequence[Mapping[str, Any]]]
    """Searched stage to the combinations of settings to try, in the cascade's order."""
    request: SearchRequest
    batch_size: BatchSize

    def points(self, stage: str, settings: Mapping[str, SamplingConfig]) -> list[Point]:
        """The points of one stage, given the settings of those below it."""
        return points_of(self.cascade, stage, self.choices[stage], settings)


def open_cascade(name: str | Path) -> tuple[Path, bool]:
    """The folder of a cascade, and whether it must stay as it is: packaged, however it is named, or the hub's."""
    folder, place = find_cascade(name)
    packaged = {path.resolve() for path in packaged_cascades().values()}
    return folder, place == "hub" or folder.resolve() in packaged


def prepare_search(
    cascade: Cascade,
    manifest: CascadeManifest,
    data: PreparedData,
    extractor: Extractor,
    *,
    stage: str,
    sweep: Sweep | None = None,
    split: str = "train",
    num: int = 10_000,
    seed: int = 0,
    batch_size: BatchSize = "auto",
    precision: Precision = "fp32",
    compile: CompileChoice = "off",
) -> Search:
    """Settle all that a search will look at, before any work.

    Args:
        cascade: the chain, on its device.
        manifest: its ``cascade.json``, for the hashes of its weights.
        data: prepared data with real images of every searched stage's resolution.
        extractor: gives the features.
        stage: ``NAME``, ``NAME,NAME`` or ``all``.
        sweep: what to sweep; default s, in every mode that the stage has.
        split: the real images to compare with; ``val`` also sees a model that repeats its training images.
        num: samples a point; the paper's number is 10,000. Sample i has class i mod K.
        seed: of the samples.
        batch_size: samples at once; ``auto`` halves it when memory runs out.
        precision: of the networks.
        compile: whether sampling goes through ``torch.compile``, as in :meth:`Cascade.accelerate`.

    Raises:
        UserError: a stage, setting or value that the cascade does not have, or data that does not fit it.
    """
    sweep = sweep or Sweep()
    if num < 2:
        raise UserError(f"num: {num} is not allowed; give a number from 2")
    if cascade.offloaded is not None:
        raise UserError("offload: a search does not go with it; allowed for a cascade that is on its device whole")
    first_batch_size(batch_size)
    choices = pick_stages(cascade, stage, sweep)
    points = {name: points_of(cascade, name, found, cascade.defaults) for name, found in choices.items()}
    channels = next(iter(cascade.stages.values())).config.channels
    if data.channels != channels:
        raise UserError(f"{data.folder}: its images have {data.channels} channels, the cascade's have {channels}")
    request = SearchRequest.checked(
        points={name: tuple(point.label for point in found) for name, found in points.items()},
        **_ground(cascade, manifest, data, extractor, points, split),
        num=num,
        seed=seed,
        split=split,
        features=extractor.name,
        features_hash=extractor.content_hash,
        precision=settled_precision(precision, cascade.device),
        compile=compile,
    )
    if compile != "off":
        cascade.accelerate(compile=compile)
    return Search(cascade, data, extractor, choices, request, batch_size)


def _ground(
    cascade: Cascade,
    manifest: CascadeManifest,
    data: PreparedData,
    extractor: Extractor,
    points: Mapping[str, Sequence[Point]],
    split: str,
) -> dict[str, Any]:
    """What the searched stages stand on: everyone's settings and weights, and the real images."""
    running = [each.name for each in stages_up_to(cascade, list(points)[-1])]
    references = {}
    for name in points:
        resolution = cascade.stages[name].config.resolution
        data.split(split).images(resolution)
        references[name] = reference_hash(data, split, resolution, extractor)
    return {
        "fixed": {name: _fixed(cascade.defaults[name], points.get(name, [])) for name in running},
        "weights": {entry.name: entry.sha256 for entry in manifest.stages if entry.name in running},
        "references": references,
    }


def _fixed(default: SamplingConfig, points: Sequence[Point]) -> dict[str, Any]:
    """The settings that the search leaves alone. Those it sweeps may differ when it is resumed: it changes them.

    Where a default mode is not to be had, the mode taken in its place is fixed; the search makes it the default too.
    """
    swept = {key for point in points for key in point.swept}
    if points:
        taken = points[0].work.settings
        default = default.model_copy(update={"augmentation": taken.augmentation, "s": taken.s})
    return {key: value for key, value in default.identity().items() if key not in swept}


def evaluations(cascade: Cascade, work: Pass) -> int:
    """Evaluations of the denoiser an image in one pass; guidance, which makes some cost more, is not counted."""
    return stage_evaluations(cascade.stages[work.stage], work.settings, work.stop)


def run_search(search: Search, out: Path, *, cache: Path | None = None, watch: Watch | None = None) -> SearchRecord:
    """Search the stages one after the other, each with the best of those below it.

    Args:
        search: from :func:`prepare_search`.
        out: a folder that does not exist, is empty, or holds a part of this very search, which then goes on.
        cache: folder for the features of real images; ``None`` for the user's.
        watch: told of progress.

    Returns:
        What is in ``search.json`` too. The cascade is not changed.

    Raises:
        UserError: ``out`` holds something else.
    """
    store = SearchStore(out)
    from_main(lambda: store.check(search.request))  # the others would look while it writes
    if current_ranks().world > search.request.num:
        raise UserError(f"num: {search.request.num} samples for {current_ranks().world} processes; give more")
    record = SearchRecord(
        request=search.request,
        score=score_key("fd", search.extractor.name),
        provenance={
            "cascaded_diffusion": VERSION,
            "torch": torch.__version__,
            "device": _device_name(search.cascade.device),
        },
    )
    best = dict(search.cascade.defaults)
    for name in search.choices:
        found = _StageSearch(search, name, best, store, cache, watch or _unwatched).run(record)
        record = _with(record, found)
        assert found.winner is not None  # every point has been judged
        best[name] = found.winner.settings[name]
    return record


def _with(record: SearchRecord, found: StageResult) -> SearchRecord:
    return record.model_copy(update={"searched": (*record.searched, found)})


def _device_name(device: torch.device) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return f"{device.type} ({name})"


class _StageSearch:
    """The search of one stage."""

    def __init__(
        self,
        search: Search,
        name: str,
        settings: Mapping[str, SamplingConfig],
        store: SearchStore,
        cache: Path | None,
        watch: Watch,
    ) -> None:
        self.search, self.name, self.store, self.cache, self.watch = search, name, store, cache, watch
        self.points = search.points(name, settings)
        request = search.request
        self.passes = PassMaker(
            search.cascade,
            store,
            num=request.num,
            seed=request.seed,
            batch_size=search.batch_size,
            precision=request.precision,
            watch=self._tell,
        )
        self.missing = store.missing(self.points)
        self.begun: list[Pass] = []
        self.point = self.points[0]
        self.real: Reference | None = None

    def run(self, record: SearchRecord) -> StageResult:
        """Judge every point; ``record`` holds the stages before, and is written with this one after every point."""
        done: list[PointResult] = []
        found = self._result(done)
        self._write(_with(record, found))
        for point in self.points:
            is_main = current_ranks().is_main
            known = on_main((self.store.score(point),) if is_main else None)[0]
            done.append(known or self._judge(point))
            found = self._result(done)
            self._write(_with(record, found))
        if current_ranks().is_main:
            for setting, picture in curves(_with(record, found)).items():
                with atomic_write(self.store.folder / f"{setting}-curve.png") as file:
                    file.write(picture)
        return found

    def _result(self, done: Sequence[PointResult]) -> StageResult:
        complete = len(done) == len(self.points)
        return StageResult(
            stage=self.name,
            swept=tuple(self.points[0].swept),
            passes=count_passes(self.points[: len(done)]),
            points=tuple(done),
            # Of equal values the first listed wins: no augmentation before some, no stopping before stopping.
            best=min(done, key=lambda result: result.value).key if complete else None,
        )

    def _write(self, record: SearchRecord) -> None:
        if current_ranks().is_main:
            self.store.write(record)

    def _judge(self, point: Point) -> PointResult:
        """Frechet distance of a point's images to the real ones of their resolution."""
        real = self._reference()
        self.point = point
        images = self.passes.images(point)
        features = gather_rows(extract(self.search.extractor, images).features)
        if not current_ranks().is_main:
            return on_main(None)
        cascade, request = self.search.cascade, self.search.request
        # One seed for all points: the same samples are drawn, so that differences between points have an error too.
        replicates = frechet_replicates(features, real.statistics, seed=request.seed)
        result = PointResult(
            key=point.key,
            label=point.label,
            stage=self.name,
            settings=point.settings,
            evaluations={work.stage: evaluations(cascade, work) for work in point.work.chain},
            value=frechet_distance(FeatureStatistics.of(features), real.statistics),
            standard_error=replicates.std().item(),
            replicates=tuple(replicates.tolist()),
            n=request.num,
            dimensions=features.shape[1],
            reference_n=real.count,
        )
        self.store.save_score(point, result)
        return on_main(result)

    def _reference(self) -> Reference:
        if self.real is None:
            search, resolution = self.search, self.search.cascade.stages[self.name].config.resolution
            self.real = reference(
                search.data,
                search.request.split,
                resolution,
                search.extractor,
                cache=self.cache,
                watch=lambda done, total: self.watch(f"real images of {resolution} pixels", done, total, ""),
            )
        return self.real

    def _tell(self, work: Pass, done: int) -> None:
        if work not in self.begun:
            self.begun.append(work)
        share = len(self.passes.share)
        note = self.point.label if work == self.point.work else f"{work.stage} for {self.point.label}"
        self.watch(f"search {self.name}", (len(self.begun) - 1) * share + done, len(self.missing) * share, note)


def _unwatched(what: str, done: int, total: int, note: str) -> None:
    """Nobody wants to know."""
