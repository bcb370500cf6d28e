"""Scoring what makes images: a cascade, a stage, every checkpoint of a run, or a file of samples."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from cascaded_diffusion.cascade.batching import BatchSize
from cascaded_diffusion.cascade.chain import Cascade
from cascaded_diffusion.cascade.manifest import CascadeManifest
from cascaded_diffusion.cascade.sample_store import weights_hash
from cascaded_diffusion.cascade.sampling import SamplingConfig
from cascaded_diffusion.cascade.settings import Requests, resolve_settings
from cascaded_diffusion.cascade.stage import CONFIG_FILE, GUIDE_FOLDER, WEIGHTS_FILE, Stage, StageConfig
from cascaded_diffusion.cascade.walk import FinishedImages, Plan, first_batch_size, sample_batches
from cascaded_diffusion.data.prepared import PreparedData
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.evaluation.cas import CasConfig
from cascaded_diffusion.evaluation.evaluate import evaluate_images
from cascaded_diffusion.evaluation.evidence import Watch
from cascaded_diffusion.evaluation.features import Extractor, score_key
from cascaded_diffusion.evaluation.given import read_samples
from cascaded_diffusion.evaluation.request import DEFAULT_METRICS, Subject, check_request
from cascaded_diffusion.evaluation.scores import Origin, Score
from cascaded_diffusion.files import sha256_of
from cascaded_diffusion.networks.compiling import CompileChoice
from cascaded_diffusion.precision import Precision, autocast, settled_precision
from cascaded_diffusion.randomness import permutation
from cascaded_diffusion.ranks import current_ranks, from_main, gather_rows
from cascaded_diffusion.samples import write_npz
from cascaded_diffusion.training.checkpoint import checkpoint_folders, ema_file, find_checkpoint, read_checkpoint
from cascaded_diffusion.training.export import stage_from_run

__all__ = [
    "DEFAULT_NUM",
    "Checkpoint",
    "Prepared",
    "Request",
    "best_checkpoint",
    "best_metric",
    "cascade_source",
    "judge_cascade",
    "judge_run",
    "judge_samples",
    "judge_stage",
    "plan_origin",
    "sample_over_ranks",
    "stage_source",
]

_LOG = logging.getLogger(__name__)

DEFAULT_NUM = 10_000
"""Samples by default: as many as the paper selects models and s with."""


@dataclass(frozen=True)
class Request:
    """What is to be measured, and how samples for it are made.

    Attributes:
        data: the real images.
        extractor: gives features.
        metrics, splits: see :func:`evaluate_images`.
        num: samples; default 10,000, all of a file, and as many as there are real images to enlarge.
        seed: of the samples' noise and of every random choice.
        batch_size: samples made at once; the extractor gets at most 256.
        precision: of the networks.
        compile: whether ``torch.compile`` and CUDA graphs make sampling faster, as in :meth:`Stage.accelerate`.
        cas: how the classifiers of the classification accuracy score are trained.
        choices: steps, sampler, augmentation, s, guidance, more as :meth:`Cascade.sample` takes them.
        device: where networks are.
        cache: folder for features of real images.
        keep: where to write the samples, or nowhere.
        watch: called with what is being done, how much of it is, and the total.
    """

    data: PreparedData
    extractor: Extractor
    metrics: tuple[str, ...] = DEFAULT_METRICS
    splits: tuple[str, ...] = ("train",)
    num: int | None = None
    seed: int = 0
    batch_size: BatchSize = "auto"
    precision: Precision = "fp32"
    compile: CompileChoice = "off"
    cas: CasConfig | None = None
    choices: Mapping[str, Any] = field(default_factory=dict)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    cache: Path | None = None
    keep: Path | None = None
    watch: Watch | None = None


class Prepared(NamedTuple):
    """What is to be sampled, all of it settled.

    Attributes:
        plan: stages and settings.
        labels: int64 (N,), what the samples are to show, -1 without classes.
        low_res: uint8 (N, r, r, C) real images for a plan that starts with an SR stage, else ``None``.
        class_names: of the labels.
        origin: all of this for the scores' provenance.
    """

    plan: Plan
    labels: np.ndarray
    low_res: np.ndarray | None
    class_names: tuple[str, ...] | None
    origin: Origin


def judge_samples(path: Path, request: Request) -> dict[str, Score]:
    """Score the images of an ``.npz`` file; ``request.num`` of them drawn at random, or all."""
    with read_samples(path) as given:
        images, labels = given.images, given.labels
        count = len(images) if request.num is None else request.num
        if count > len(images):
            raise UserError(f"num: {count} is more than the {len(images)} images of {path}")
        if count < len(images):
            # Sorted, so that a map of the file is read from front to back.
            chosen = permutation(request.seed, "evaluation/samples", len(images))[:count].sort().values.numpy()
            images, labels = images[chosen], labels[chosen]
        source = {"kind": "samples", "name": given.name, "sha256": given.sha256}
        _check_shares(count)
        # Of a whole file no image is drawn, but several scores draw from its features.
        origin = Origin(source=source, seed=request.seed)
        return _evaluate(request, images, labels, origin)


def judge_cascade(cascade: Cascade, request: Request, *, source: Mapping[str, Any]) -> dict[str, Score]:
    """Sample a cascade from noise and score the images of its last stage.

    Args:
        cascade: on the request's device.
        request: what to measure.
        source: which cascade it is, see :func:`cascade_source`.

    Raises:
        UserError: settings, metrics or data that do not go together, before sampling.
    """
    plan = cascade.plan(**request.choices)
    labels = cascade.sample_labels(plan, num=DEFAULT_NUM if request.num is None else request.num)
    names = None if cascade.class_names is None else tuple(cascade.class_names)
    return _judge(Prepared(plan, labels, None, names, plan_origin(plan, request, source)), request)


def judge_stage(
    stage: Stage, sampling: SamplingConfig, request: Request, *, source: Mapping[str, Any]
) -> dict[str, Score]:
    """Sample one stage and score its images: a base stage from noise, an SR stage from real low-resolution images.

    The real images are drawn at random from the request's first split. An SR stage judged so shows what it adds to
    faultless input, not how it copes with the stage below.

    Args:
        stage: on the request's device.
        sampling: its default settings.
        request: what to measure.
        source: which stage it is, see :func:`stage_source`.

    Raises:
        UserError: as for :func:`judge_cascade`.
    """
    config = stage.config
    if config.conditioning is None:
        return judge_cascade(Cascade([stage], defaults={stage.name: sampling}), request, source=source)
    requests = Requests(**request.choices)
    plan = Plan((stage,), resolve_settings((stage,), {stage.name: sampling}, requests, truncated={}))
    split, side = request.data.split(request.splits[0]), config.conditioning.low_resolution
    assert side is not None  # settled by StageConfig
    _check_fit(config, request.data)
    count = min(DEFAULT_NUM, len(split)) if request.num is None else request.num
    if count > len(split):
        raise UserError(f"num: {count} is more than the {len(split)} {split.name} images to enlarge")
    chosen = permutation(request.seed, "evaluation/low-res", len(split))[:count].numpy()
    low_res = np.asarray(split.images(side)[chosen])
    words = f"real {split.name} images of {side}x{side}, not made by a stage below"
    origin = plan_origin(plan, request, source).model_copy(update={"low_res": words})
    names = None if request.data.class_names is None else tuple(request.data.class_names)
    return _judge(Prepared(plan, np.array(split.labels[chosen]), low_res, names, origin), request)


class Checkpoint(NamedTuple):
    """Scores of a run's state after so many images, with one of its averages."""

    images: int
    ema: str
    scores: dict[str, Score]


def judge_run(
    run: Path,
    request: Request,
    *,
    images: int | None = None,
    ema: str | None = None,
    every: bool = False,
    keep: Callable[[list[Checkpoint]], None] | None = None,
) -> list[Checkpoint]:
    """Score a run's newest checkpoint, the one at ``images``, or with ``every`` all of them, oldest first.

    Every checkpoint makes samples of the same noise and classes, so that their scores differ by the weights alone.

    Args:
        run: the run folder.
        request: what to measure.
        images: which checkpoint.
        ema: which average of the weights, as :func:`stage_from_run` takes it.
        every: score all checkpoints but one from before the first step, and but those that cannot be read, which are
            told of.
        keep: called with all that are scored, after each.

    Raises:
        UserError: no checkpoint, none that can be read, or as for :func:`judge_stage`.
    """
    if every and images is not None:
        raise UserError(f"--all-checkpoints: does not go with --checkpoint {images}")
    if every:
        best_metric(request.metrics)
    folders = [f for f in checkpoint_folders(run) if int(f.name) > 0] if every else []
    found: list[Checkpoint] = []
    for folder in folders or [find_checkpoint(run, images)]:
        number = int(folder.name)
        try:
            # Rank 0 asks for all: a run that is still training may delete one in between.
            files = from_main(lambda: read_checkpoint(folder))["files"]  # noqa: B023 - called at once
            stage, state = stage_from_run(run, images=number, ema=ema)
        except UserError as error:
            if not folders or (folder == folders[-1] and not found):
                raise
            _LOG.warning("%s; the other checkpoints are scored", error)
            continue
        choice = str(state["ema"])
        weights = WEIGHTS_FILE if choice == "raw" else ema_file(choice)
        # A reconstructed average lies in no file.
        sha256 = files[weights] if weights in files else weights_hash(stage.network)
        source = {
            "kind": "run",
            "name": run.resolve().name,
            "stage": stage.name,
            "images": number,
            "ema": choice,
            "sha256": sha256,
        }
        stage.to(request.device)
        told = replace(request, watch=_prefixed(request.watch, f"{number:,}: ")) if every else request
        found.append(Checkpoint(number, choice, judge_stage(stage, stage.config.sampling, told, source=source)))
        if keep is not None:
            keep(found)
    return found


def _prefixed(watch: Watch | None, prefix: str) -> Watch | None:
    return None if watch is None else lambda what, done, total: watch(prefix + what, done, total)


def best_metric(metrics: Sequence[str]) -> str:
    """The metric that chooses among checkpoints: ``fd``, or else ``kid``."""
    for name in ("fd", "kid"):
        if name in metrics:
            return name
    raise UserError(f"--all-checkpoints: {', '.join(metrics)} does not choose the best; add fd or kid to the metrics")


def best_checkpoint(checkpoints: Sequence[Checkpoint], request: Request) -> Checkpoint:
    """The one with the smallest Frechet distance (or kernel distance) from the request's first split."""
    key = score_key(best_metric(request.metrics), request.extractor.name)
    return min(checkpoints, key=lambda checkpoint: checkpoint.scores[key].value)


def _check_fit(config: StageConfig, data: PreparedData) -> None:
    """Refuse to enlarge images that the stage was not made for."""
    if config.channels != data.channels:
        raise UserError(
            f"{config.name} enlarges images of {config.channels} channels, {data.folder} has {data.channels}"
        )
    names = None if data.class_names is None else tuple(data.class_names)
    if config.classes is not None and (config.classes, config.class_names or names) != (data.classes, names):
        known = "no classes" if data.classes is None else f"{data.classes} classes"
        raise UserError(f"{config.name} has {config.classes} classes, {data.folder} has {known}, or others")


def _judge(prepared: Prepared, request: Request) -> dict[str, Score]:
    last = prepared.plan.stages[-1].config
    names = [
        *(["real images"] if prepared.low_res is not None else []),
        *(stage.name for stage in prepared.plan.stages),
    ]
    first_batch_size(request.batch_size)
    subject = Subject(len(prepared.labels), last.resolution, prepared.labels, prepared.class_names, tuple(names))
    check_request(request.metrics, request.splits, request.data, request.extractor, subject)
    every = "drift" in request.metrics
    images = sample_over_ranks(prepared, request, every=every)
    if request.keep is not None and current_ranks().is_main:
        try:
            write_npz(request.keep, images[last.name], prepared.labels)
        except OSError as error:  # hours of sampling are not lost for it
            _LOG.warning("--keep: %s cannot be written (%s); the samples are scored and not kept", request.keep, error)
    stages = {"real images": prepared.low_res} if prepared.low_res is not None else {}
    stages |= images
    return _evaluate(
        request,
        images[last.name],
        prepared.labels,
        prepared.origin,
        stages if every else None,
        class_names=prepared.class_names,
    )


def _evaluate(
    request: Request,
    images: np.ndarray,
    labels: np.ndarray,
    origin: Origin,
    stages: Mapping[str, np.ndarray] | None = None,
    class_names: Sequence[str] | None = None,
) -> dict[str, Score]:
    batch = 256 if request.batch_size == "auto" else min(256, request.batch_size)
    return evaluate_images(
        images,
        labels,
        request.data,
        splits=request.splits,
        metrics=request.metrics,
        extractor=request.extractor,
        provenance=origin,
        watch=request.watch,
        stages=stages,
        class_names=class_names,
        cache=request.cache,
        cas=request.cas,
        batch_size=batch,
        device=request.device,
        seed=request.seed,
    )


def _check_shares(count: int) -> None:
    world = current_ranks().world
    if count < world:
        raise UserError(f"num: {count} samples for {world} processes; at least one for each is needed")


def sample_over_ranks(prepared: Prepared, request: Request, *, every: bool = False) -> dict[str, np.ndarray]:
    """Sample what is planned, each rank its share, and give every rank all images: uint8 (N, R, R, C) by stage.

    Args:
        prepared: what to sample.
        request: seed, batch size, precision, device and watch.
        every: whether the images of all stages are wanted, not only the last one's.

    Raises:
        UserError: fewer samples than processes.
    """
    _check_shares(len(prepared.labels))
    share = current_ranks().share(len(prepared.labels))
    part = slice(share.start, share.stop)
    callback = None if request.watch is None else FinishedImages(request.watch, len(share), prepared.plan)
    if request.compile != "off":
        for stage in prepared.plan.stages:
            stage.accelerate(compile=request.compile)
    with autocast(request.precision, request.device):
        images = sample_batches(
            prepared.plan,
            torch.from_numpy(prepared.labels[part]),
            None if prepared.low_res is None else prepared.low_res[part],
            seed=request.seed,
            batch_size=request.batch_size,
            device=request.device,
            callback=callback,
            first=share.start,
        )
    kept = images if every else {name: images[name] for name in (prepared.plan.stages[-1].name,)}
    return {name: gather_rows(torch.from_numpy(part)).numpy() for name, part in kept.items()}


# -- which images these are -------------------------------------------------------------------------------------------


def plan_origin(plan: Plan, request: Request, source: Mapping[str, Any]) -> Origin:
    """A plan's settings as the scores' provenance has them."""
    settings = {name: plan.settings[name].model_dump(mode="json") for name in (stage.name for stage in plan.stages)}
    by_setting = {key: {name: values[key] for name, values in settings.items()} for key in SamplingConfig.model_fields}
    return Origin(
        source=dict(source),
        seed=request.seed,
        precision=settled_precision(request.precision, request.device),
        evaluations=plan.evaluations(),
        passes=plan.passes(),
        **by_setting,
    )


def cascade_source(name: str, folder: Path) -> dict[str, Any]:
    """Which cascade this is: its name, and one SHA-256 for the files of all stages, whatever its default settings."""
    manifest = CascadeManifest.read(folder)
    sums = "".join(f"{entry.name} {file} {sha}\n" for entry in manifest.stages for file, sha in entry.sha256.items())
    return {"kind": "cascade", "name": name, "sha256": hashlib.sha256(sums.encode()).hexdigest()}


def stage_source(folder: Path, stage: str) -> dict[str, Any]:
    """Which stage folder this is; SHA-256 of its weights, and of a guide's."""
    files = {"sha256": sha256_of(folder / WEIGHTS_FILE), "config_sha256": sha256_of(folder / CONFIG_FILE)}
    guide = folder / GUIDE_FOLDER / WEIGHTS_FILE
    if guide.is_file():
        files["guide_sha256"] = sha256_of(guide)
    return {"kind": "stage", "name": folder.resolve().name, "stage": stage, **files}
