"""Scoring images against prepared data: every metric asked for, each with all that it depends on."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cascaded_diffusion.cache import cache_folder
from cascaded_diffusion.data.prepared import PreparedData
from cascaded_diffusion.errors import UserError, one_line
from cascaded_diffusion.evaluation.cas import CasConfig, classification_accuracy_score, measure_accuracy
from cascaded_diffusion.evaluation.colour import colour_drift
from cascaded_diffusion.evaluation.evidence import Evidence, Watch
from cascaded_diffusion.evaluation.features import Extractor
from cascaded_diffusion.evaluation.frechet import frechet_bootstrap, frechet_distance
from cascaded_diffusion.evaluation.given import same_channels
from cascaded_diffusion.evaluation.inception_score import inception_score
from cascaded_diffusion.evaluation.kernel import kernel_distance
from cascaded_diffusion.evaluation.neighbours import memorisation
from cascaded_diffusion.evaluation.precision_recall import precision_recall
from cascaded_diffusion.evaluation.request import (
    DEFAULT_METRICS,
    Subject,
    check_request,
    chosen_metrics,
    chosen_splits,
)
from cascaded_diffusion.evaluation.scores import Origin, Score
from cascaded_diffusion.evaluation.statistics import FeatureStatistics
from cascaded_diffusion.randomness import permutation
from cascaded_diffusion.ranks import from_main

__all__ = ["evaluate_images"]

_LOG = logging.getLogger(__name__)

# The paper's ten splits hold 5,000 samples each; the fewer there are, the less a split can show its classes.
_FEWEST_IN_A_SPLIT = 50


def evaluate_images(
    images: np.ndarray,
    labels: np.ndarray,
    data: PreparedData,
    *,
    splits: Sequence[str] | None = None,
    metrics: Sequence[str] = DEFAULT_METRICS,
    extractor: Extractor,
    provenance: Origin,
    watch: Watch | None = None,
    stages: Mapping[str, np.ndarray] | None = None,
    class_names: Sequence[str] | None = None,
    cache: Path | None = None,
    batch_size: int = 256,
    device: torch.device | None = None,
    seed: int = 0,
    cas: CasConfig | None = None,
) -> dict[str, Score]:
    """Score samples against real images.

    On several ranks every one gets all images, extracts a share of the features, and returns all scores.

    Args:
        images: uint8 (N, R, R, C), an array or a memory map; C 1 or 3, see :func:`given.same_channels`.
        labels: int64 (N,), -1 without classes.
        data: the real images.
        splits: to compare with; the first gives keys such as ``fd_<extractor>``, another one keys that end in ``_val``
            or ``_train``. Default ``train``, and ``val`` if there is one.
        metrics: names from ``request.METRICS``.
        extractor: gives the features.
        provenance: which images these are and how they were made.
        watch: called with what is being done, how much of it is, and the total.
        stages: for ``drift``: stage name to uint8 (N, r, r, C), in order.
        class_names: of the samples' labels, if known.
        cache: folder for features of real images; see :func:`reference.reference`.
        batch_size: images handed to the extractor at once.
        device: where classifiers for ``cas`` are trained; default the CPU.
        seed: of random subsets and resamples.
        cas: how classifiers for ``cas`` are trained.

    A score that turns out not to be defined, and ``cas`` if its training fails, is left out with a warning, where there
    are others.

    Raises:
        UserError: a metric that these samples, data or extractor cannot have, before anything takes long; or the only
            score asked for is not defined.
    """
    wanted, against = chosen_metrics(metrics), chosen_splits(data, splits)
    names = None if class_names is None else tuple(class_names)
    subject = Subject(len(images), images.shape[1], labels, names, tuple(stages or ()))
    check_request(wanted, against, data, extractor, subject)
    fitted = same_channels(images, data.channels)
    evidence = Evidence(
        images=fitted.images,
        labels=labels,
        names_agree=names is None or names == tuple(data.class_names or ()),
        data=data,
        extractor=extractor,
        origin=provenance,
        channels=fitted.words,
        doubts=(fitted.warning,) if fitted.warning else (),
        stages=stages or {},
        watch=watch,
        cache=cache,
        batch_size=batch_size,
        device=device or torch.device("cpu"),
        seed=seed,
    )
    if set(wanted) - {"cas", "drift"}:
        evidence.gather(_needed(wanted, against, data), need_features=bool({"kid", "pr", "nn"} & set(wanted)))
    # The mathematics is quick beside sampling: one rank does it, so that no two can differ.
    found = from_main(lambda: _scores(evidence, wanted, against))
    if "cas" in wanted:
        try:
            found["cas"] = _classification_accuracy(evidence, cas or CasConfig())
        except (ValueError, RuntimeError, MemoryError, OSError) as error:
            if not found:
                raise
            _LOG.warning("cas was not measured (%s); the other scores stand", one_line(error))
    return found


def _needed(metrics: Sequence[str], splits: Sequence[str], data: PreparedData) -> list[str]:
    """The splits whose features are wanted, held-out images last."""
    needed = set(splits) if {"fd", "kid", "pr"} & set(metrics) else set()
    needed |= set(data.splits) if "nn" in metrics else set()
    needed |= {data.splits[-1]} if "recognition" in metrics else set()
    return [split for split in data.splits if split in needed]


def _scores(evidence: Evidence, metrics: Sequence[str], splits: Sequence[str]) -> dict[str, Score]:
    found: dict[str, Score] = {}
    failed: list[UserError] = []
    for metric, of_split in (("fd", _frechet), ("kid", _kernel), ("pr", _precision_recall)):
        if metric in metrics:
            for split in splits:
                suffix = "" if split == splits[0] else f"_{split}"
                found |= {f"{key}{suffix}": score for key, score in of_split(evidence, split).items()}
    for metric, once in (
        ("is", _inception),
        ("nn", _memorisation),
        ("recognition", _recognition),
        ("drift", _drift),
    ):
        if metric in metrics:
            try:
                found |= once(evidence)
            except UserError as error:
                failed.append(error)
    if failed and not found and "cas" not in metrics:
        raise failed[0]
    for problem in failed:  # what was sampled for hours must not be lost for one score
        _LOG.warning("%s; this score is left out", problem)
    return found


def _frechet(evidence: Evidence, split: str) -> dict[str, Score]:
    features, real = evidence.sampled.features, evidence.real(split).statistics
    key, dimensions, fewest = evidence.key("fd"), features.shape[1], min(len(features), real.count)
    few = f"{key}: {fewest:,} images are few for features of {dimensions:,} dimensions; kid needs fewer"
    about = evidence.about(split, doubts=[few] if fewest < 2 * dimensions else [])
    value = frechet_distance(FeatureStatistics.of(features), real)
    return {key: Score(value, about, frechet_bootstrap(features, real, seed=evidence.seed))}


def _kernel(evidence: Evidence, split: str) -> dict[str, Score]:
    found = kernel_distance(evidence.real_features(split), evidence.sampled.features, seed=evidence.seed)
    return {evidence.key("kid"): Score(found.value, evidence.about(split), found.standard_error)}


def _precision_recall(evidence: Evidence, split: str) -> dict[str, Score]:
    """Of equally many real images and samples, as the paper has it: both shares depend on the sizes of the sets."""
    real, samples = evidence.real_features(split), evidence.sampled.features
    count = min(len(real), len(samples))
    found = precision_recall(
        _drawn(real, count, evidence.seed, "evaluation/precision-recall/real"),
        _drawn(samples, count, evidence.seed, "evaluation/precision-recall/samples"),
    )
    about = evidence.about(split, n=count, reference_n=count)
    shares = {"precision": found.precision, "recall": found.recall}
    return {evidence.key(name): Score(value, about, _binomial(value, count)) for name, value in shares.items()}


def _inception(evidence: Evidence) -> dict[str, Score]:
    logits = evidence.sampled.logits
    assert logits is not None  # check_request has seen some
    # Samples often come sorted by class, and splits of one class each would score 1.
    order = permutation(evidence.seed, "evaluation/inception-score", len(logits))
    splits = max(1, min(10, len(logits) // _FEWEST_IN_A_SPLIT))
    found = inception_score(logits[order], splits=splits)
    error = found.std / math.sqrt(splits - 1) if splits > 1 else None
    extra = {"std": found.std, "splits": splits}
    return {evidence.key("is"): Score(found.mean, evidence.about(), error, extra=extra)}


def _memorisation(evidence: Evidence) -> dict[str, Score]:
    held_out = "val" in evidence.data.splits
    try:
        found = memorisation(
            evidence.sampled.features,
            evidence.real_features("train"),
            evidence.real_features("val") if held_out else None,
        )
    except ValueError as error:
        raise UserError(f"nn: {error}") from None
    note = (
        f"share of samples as near to a training image as the nearest {found.expected:.1%} of {found.real:,} "
        f"{found.baseline} images, so {found.expected:.1%} is expected; median distance {found.median_ratio:.3g} times "
        "theirs, where copies are well below 1"
    )
    extra = {
        "median_ratio": found.median_ratio,
        "threshold": found.threshold,
        "expected": found.expected,
        "baseline": found.baseline,
        "baseline_n": found.real,
        "baseline_hash": evidence.real("val").hash if held_out else None,
    }
    spread = _binomial(found.share, found.samples)
    return {evidence.key("nn"): Score(found.share, evidence.about("train"), spread, note, extra)}


def _recognition(evidence: Evidence) -> dict[str, Score]:
    logits, shares = evidence.sampled.logits, evidence.recognised
    assert logits is not None
    assert shares is not None  # check_request has compared the classes
    split = evidence.data.splits[-1]
    seen = measure_accuracy(logits, evidence.labels)
    note = f"share of samples seen as the class asked for; of real {split} images {shares[1]:.4f}"
    extra = {
        "top5": seen.top5,
        "per_class": list(seen.per_class),
        "class_names": evidence.data.class_names,
        "real": shares[1],
    }
    score = Score(seen.top1, evidence.about(split), seen.standard_error, note, extra)
    return {evidence.key("recognition"): score}


def _drift(evidence: Evidence) -> dict[str, Score]:
    found = {}
    for low, high in pairwise(evidence.stages):
        drift = colour_drift(evidence.stages[low], evidence.stages[high])
        means, spreads = (", ".join(f"{value:+.2f}" for value in values) for values in drift)
        note = f"of 255, from {low} to {high}: means of the channels move by {means}, their spreads by {spreads}"
        extra = {"below": low, "mean": drift.mean.tolist(), "std": drift.std.tolist()}
        about = evidence.about(extractor=False, resolution=evidence.stages[high].shape[1])
        found[f"drift_{high}"] = Score(float(np.abs(drift.mean).mean()), about, None, note, extra)
    return found


def _classification_accuracy(evidence: Evidence, config: CasConfig) -> Score:
    train, val = evidence.data.split("train"), evidence.data.split("val")
    found = classification_accuracy_score(
        evidence.images,
        evidence.labels,
        train,
        val,
        config=config,
        device=evidence.device,
        cache=evidence.cache or cache_folder(),
        watch=evidence.watch,
    )
    ratio = found.ratio if math.isfinite(found.ratio) else None
    note = (
        f"share of {len(val):,} val images recognised after training on samples; after {found.real_count:,} real "
        f"images {found.real.top1:.4f}; samples win {found.classes_won} of {len(found.samples.per_class)} classes"
    )
    if config.classifiers > 1:
        note += f"; mean of {config.classifiers} classifiers, from {min(found.each):.4f} to {max(found.each):.4f}"
    extra = {
        "top5": found.samples.top5,
        "per_class": list(found.samples.per_class),
        "class_names": evidence.data.class_names,
        "each": list(found.each),
        "real": found.real.top1,
        "real_top5": found.real.top5,
        "real_per_class": list(found.real.per_class),
        "real_each": list(found.real_each),
        "real_n": found.real_count,
        "ratio": ratio,
        "classes_won": found.classes_won,
        "recognition": found.recognition,
        "classifier": config.model_dump(mode="json"),
    }
    doubts = [f"cas: {warning}" for warning in found.warnings]
    tested = {"split": "val", "reference_n": len(val), "reference_resolution": evidence.images.shape[1]}
    about = evidence.about(doubts=doubts, extractor=False, **tested)
    return Score(found.samples.top1, about, found.standard_error, note, extra)


def _drawn(features: Tensor, count: int, seed: int, purpose: str) -> Tensor:
    return features if count == len(features) else features[permutation(seed, purpose, len(features))[:count]]


def _binomial(share: float, count: int) -> float:
    return math.sqrt(share * (1 - share) / count)
