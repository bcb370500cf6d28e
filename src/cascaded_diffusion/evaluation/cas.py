"""The classification accuracy score (CAS; Ravuri & Vinyals, 1905.10887): can a classifier learn from samples alone?

A classifier is trained from scratch on samples and their labels and tested on real held-out images, beside the same
classifier trained for as long on equally many real images. Unlike a recognition rate it sees missing variety. With few
samples one classifier says little, for another initialisation would have learned something else: let several train.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed
from pydantic import Field
from torch import Tensor

from cascaded_diffusion.config import StrictModel
from cascaded_diffusion.data.manifest import labels_file
from cascaded_diffusion.data.packed import ImageRows
from cascaded_diffusion.data.prepared import Split
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.evaluation.classification import ClassifierTraining, config_for, predict, train_classifier
from cascaded_diffusion.evaluation.classifier import Classifier, ClassifierConfig, load_classifier, save_classifier
from cascaded_diffusion.precision import computes_in_bf16
from cascaded_diffusion.ranks import current_ranks, gather_objects
from cascaded_diffusion.version import VERSION

__all__ = ["Accuracy", "CasConfig", "CasResult", "classification_accuracy_score", "measure_accuracy"]

Watch = Callable[[str, int, int], None]


class CasConfig(StrictModel):
    """How the classifiers of the score are trained. Samples and real images get the same."""

    epochs: float = Field(default=15, gt=0, le=1e6, description="Times that each image is seen.")
    classifiers: int = Field(
        default=1, ge=1, le=1000, description="Trained on either side, with seeds one after another; figures are means."
    )
    training: ClassifierTraining = Field(
        default=ClassifierTraining(), description="Everything else; its length is replaced by the epochs."
    )

    def for_count(self, count: int, nth: int = 0) -> ClassifierTraining:
        """The training of the ``nth`` classifier on ``count`` images."""
        length = max(round(self.epochs * count), self.training.batch_size)
        return self.training.model_copy(update={"images": length, "seed": (self.training.seed + nth) % 2**63})


@dataclass(frozen=True)
class Accuracy:
    """Shares, from 0 to 1, of real held-out images whose class is found.

    Attributes:
        top1: the most likely class is right.
        top5: it is among the five most likely; ``None`` with at most five classes.
        standard_error: of top1, binomial.
        per_class: top1 of each class; ``None`` for a class without test images.
        count: test images.
    """

    top1: float
    top5: float | None
    standard_error: float
    per_class: tuple[float | None, ...]
    count: int


@dataclass(frozen=True)
class CasResult:
    """The score and what it is compared with, means over the classifiers of either side.

    Attributes:
        samples: of the classifiers trained on samples: the score.
        real: of the same classifiers trained on real images.
        recognition: share of the samples in which a classifier trained on real images sees the class asked for.
        classes_won: classes on which samples train better than real images (the paper counts these).
        count, real_count: training images of either.
        each: top1 of each classifier trained on samples.
        real_each: of each one trained on real images.
    """

    samples: Accuracy
    real: Accuracy
    recognition: float
    classes_won: int
    count: int
    real_count: int
    each: tuple[float, ...] = ()
    real_each: tuple[float, ...] = ()

    @property
    def ratio(self) -> float:
        """Score divided by that of real images; 1 if samples are as good to learn from."""
        return self.samples.top1 / self.real.top1 if self.real.top1 else math.nan

    @property
    def standard_error(self) -> float:
        """Of the score: of so many test images, and, of several classifiers, of their mean."""
        if len(self.each) < 2:
            return self.samples.standard_error
        return math.hypot(self.samples.standard_error, statistics.stdev(self.each) / math.sqrt(len(self.each)))

    @property
    def warnings(self) -> list[str]:
        """What makes the score doubtful, in words."""
        found = []
        if self.real_count < self.count:
            found.append(f"only {self.real_count} real images to compare {self.count} samples with")
        chance = 1 / len(self.real.per_class)
        if self.recognition < (chance + self.real.top1) / 2:
            found.append(
                f"a classifier trained on real images sees the label in {self.recognition:.1%} of the samples (it is "
                f"right on {self.real.top1:.1%} of real images): labels are shuffled or wrong, or samples unlike it"
            )
        elif self.samples.top1 < 1.5 * chance:
            found.append(
                f"the classifier trained on samples guesses, though their labels look right: {self.count} are few, "
                "give it more epochs (--cas-epochs)"
            )
        return found


def measure_accuracy(logits: Tensor, labels: np.ndarray) -> Accuracy:
    """Accuracy of (N, K) logits against int64 (N,) labels."""
    truth = torch.from_numpy(np.array(labels))
    classes = logits.shape[1]
    right = logits.argmax(dim=1) == truth
    top1 = float(right.double().mean())
    top5 = float((logits.topk(5, dim=1).indices == truth[:, None]).any(dim=1).double().mean()) if classes > 5 else None
    totals = torch.bincount(truth, minlength=classes).tolist()
    hits = torch.bincount(truth[right], minlength=classes).tolist()
    return Accuracy(
        top1=top1,
        top5=top5,
        standard_error=math.sqrt(top1 * (1 - top1) / len(truth)),
        per_class=tuple(hit / total if total else None for hit, total in zip(hits, totals, strict=True)),
        count=len(truth),
    )


def classification_accuracy_score(
    images: np.ndarray,
    labels: np.ndarray,
    train: Split,
    val: Split,
    *,
    config: CasConfig | None = None,
    device: str | torch.device,
    cache: str | Path | None = None,
    watch: Watch | None = None,
) -> CasResult:
    """Train on samples alone and on as many real images of each class, and test both on real held-out images.

    Several processes share the classifiers, of which there are two or more; every process gets the result, which does
    not depend on their number.

    Args:
        images: uint8 (N, R, R, C) samples, of a resolution and with the channels of the data.
        labels: int64 (N,), the class of each.
        train, val: the real images to train and to test on.
        config: how to train.
        device: where to train.
        cache: folder that keeps classifiers trained on real images, by hash; ``None`` for none.
        watch: called with what is being done, images seen and their total.

    Raises:
        UserError: images, labels or data that do not go together.
    """
    settings = config or CasConfig()
    device, cache = torch.device(device), None if cache is None else Path(cache)
    classes = _check(images, labels, train, val)
    resolution = images.shape[1]
    chosen = _like_counted(train.labels, labels, classes)
    shape = config_for(train.images(resolution), classes, train.data.class_names)
    test = val.images(resolution)

    def on_samples(nth: int) -> _Outcome:
        training = settings.for_count(len(images), nth)
        told = _told(watch, "classifier on samples", nth, settings.classifiers)
        classifier = train_classifier(images, labels, shape, training, device=device, watch=told)
        return _Outcome(measure_accuracy(predict(classifier, test)[0], val.labels))

    def on_real(nth: int) -> _Outcome:
        # As many steps as for the samples, however few the real images are.
        training = settings.for_count(len(images), nth)
        told = _told(watch, "classifier on real images", nth, settings.classifiers)
        classifier = _real_classifier(train, resolution, chosen, shape, training, device, cache, told)
        seen = predict(classifier, images)[0].argmax(dim=1).numpy()
        return _Outcome(measure_accuracy(predict(classifier, test)[0], val.labels), float(np.mean(seen == labels)))

    jobs = [partial(side, nth) for nth in range(settings.classifiers) for side in (on_samples, on_real)]
    outcomes = _shared(jobs)
    fake, true = outcomes[::2], outcomes[1::2]
    samples, real = (_mean([outcome.accuracy for outcome in side]) for side in (fake, true))
    won = sum(a > b for a, b in zip(samples.per_class, real.per_class, strict=True) if a is not None and b is not None)
    return CasResult(
        samples,
        real,
        recognition=statistics.fmean(outcome.recognition for outcome in true),
        classes_won=won,
        count=len(images),
        real_count=len(chosen),
        each=tuple(outcome.accuracy.top1 for outcome in fake),
        real_each=tuple(outcome.accuracy.top1 for outcome in true),
    )


class _Outcome(NamedTuple):
    """What one classifier gets right on real held-out images, and, trained on real ones, on the samples."""

    accuracy: Accuracy
    recognition: float = math.nan


def _shared(jobs: Sequence[Callable[[], _Outcome]]) -> list[_Outcome]:
    """The outcomes of the jobs, in turn, each of which one process does; the same on every process."""
    ranks = current_ranks()
    everyone = gather_objects([job() for job in jobs[ranks.rank :: ranks.world]])
    return [everyone[i % ranks.world][i // ranks.world] for i in range(len(jobs))]


def _mean(all_of: Sequence[Accuracy]) -> Accuracy:
    """Of classifiers tested on the same images."""
    one, *more = all_of
    if not more:
        return one
    top1 = statistics.fmean(accuracy.top1 for accuracy in all_of)
    top5 = [accuracy.top5 for accuracy in all_of if accuracy.top5 is not None]
    classes = zip(*(accuracy.per_class for accuracy in all_of), strict=True)
    return Accuracy(
        top1=top1,
        top5=statistics.fmean(top5) if top5 else None,
        standard_error=math.sqrt(top1 * (1 - top1) / one.count),
        per_class=tuple(
            None if shares[0] is None else statistics.fmean(share for share in shares if share is not None)
            for shares in classes
        ),
        count=one.count,
    )


def _check(images: np.ndarray, labels: np.ndarray, train: Split, val: Split) -> int:
    classes = train.data.classes
    if classes is None or classes < 2:
        raise UserError(f"cas: {train.data.folder} has no classes to learn")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != images.shape[2]:
        raise UserError(f"cas: images are {images.dtype} {images.shape}; allowed: uint8 (N, R, R, C)")
    if images.shape[3] != train.data.channels:
        raise UserError(f"cas: samples have {images.shape[3]} channels, the data {train.data.channels}")
    if images.shape[1] not in train.data.resolutions:
        have = ", ".join(map(str, train.data.resolutions))
        raise UserError(f"cas: samples are of {images.shape[1]} pixels, the data of {have}")
    if labels.shape != (len(images),) or labels.dtype != np.int64 or not len(labels):
        raise UserError(f"cas: labels are {labels.dtype} {labels.shape}; allowed: int64 ({len(images)},)")
    if labels.min() < 0 or labels.max() >= classes:
        raise UserError(f"cas: labels from {labels.min()} to {labels.max()}; allowed: 0 to {classes - 1}")
    return classes


def _like_counted(real: np.ndarray, wanted: np.ndarray, classes: int) -> np.ndarray:
    """Positions of the first real images of each class, as many as ``wanted`` holds of it or as there are."""
    counts = np.bincount(wanted, minlength=classes)
    chosen = np.concatenate([np.flatnonzero(real == i)[: counts[i]] for i in range(classes)])
    return np.sort(chosen)


class _Chosen:
    """Some rows of images, taken when they are asked for: the data may be larger than memory."""

    def __init__(self, images: ImageRows, chosen: np.ndarray) -> None:
        self._images, self._chosen = images, chosen
        self.shape, self.dtype = (len(chosen), *images.shape[1:]), images.dtype

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, where: Any, /) -> Any:
        return self._images[self._chosen[where]]

    def __array__(self, dtype: Any = None, /) -> npt.NDArray[Any]:
        return np.asarray(self[:], dtype)


def _told(watch: Watch | None, what: str, nth: int, count: int) -> Callable[[int, int], None] | None:
    """Tells one classifier's progress, by number if there are several: each has a clock of its own."""
    name = what if count == 1 else f"{what}, {nth + 1} of {count}"
    return None if watch is None else lambda seen, total: watch(name, seen, total)


def _real_classifier(
    train: Split,
    resolution: int,
    chosen: np.ndarray,
    shape: ClassifierConfig,
    training: ClassifierTraining,
    device: torch.device,
    cache: Path | None,
    watch: Callable[[int, int], None] | None,
) -> Classifier:
    """The classifier trained on real images, from the cache if it is there."""
    place = None if cache is None else cache / f"cas-{_key(train, resolution, chosen, shape, training, device)}"
    if place is not None and place.is_dir():
        try:
            return load_classifier(place).to(device)
        except UserError:  # damaged: train it again, but leave the folder, which is not ours to delete
            place = None
    real = _Chosen(train.images(resolution), chosen)
    classifier = train_classifier(real, train.labels[chosen], shape, training, device=device, watch=watch)
    if place is not None:
        try:
            save_classifier(classifier, place)
        except (OSError, UserError):  # a cache that cannot be written, or another process was faster
            pass
    return classifier


def _key(
    train: Split,
    resolution: int,
    chosen: np.ndarray,
    shape: ClassifierConfig,
    how: ClassifierTraining,
    device: torch.device,
) -> str:
    files = train.data.manifest.files
    known = {
        "images": files[train.data.manifest.images_file(train.name, resolution)],
        "labels": files[labels_file(train.name)],
        "chosen": hashlib.sha256(np.asarray(chosen, np.int64).tobytes()).hexdigest(),
        "network": shape.model_dump(mode="json"),
        "training": how.model_dump(mode="json"),
        # What is trained elsewhere in other numbers must not stand beside samples' classifiers trained here.
        "precision": "bf16" if computes_in_bf16(how.precision, device) else "fp32",
        "device": device.type,
        "cascaded_diffusion": VERSION,
        "torch": torch.__version__,
    }
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:32]
