"""What scores are made from: features of samples and of real images, each found once, and what can be said of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cascaded_diffusion.data.prepared import PreparedData
from cascaded_diffusion.evaluation.features import Extractor, Features, extract, score_key
from cascaded_diffusion.evaluation.reference import Reference, reference
from cascaded_diffusion.evaluation.request import reference_resolution, same_classes
from cascaded_diffusion.evaluation.scores import Origin, Provenance
from cascaded_diffusion.ranks import current_ranks, gather_rows
from cascaded_diffusion.version import VERSION

__all__ = ["Evidence", "Watch"]

Watch = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Evidence:
    """Samples, the real images they are compared with, and the extractor.

    Attributes:
        images: uint8 (N, R, R, C) with the data's channels.
        labels: int64 (N,), -1 without classes.
        names_agree: whether the samples' classes are not known to be others than the data's.
        data, extractor: as given.
        origin: which images these are.
        channels: how samples came by the data's channels, in words.
        doubts: warnings that hold for every score.
        stages: stage name to its images, for scores of the stages.
        watch, cache, batch_size, device, seed: as in :func:`evaluate.evaluate_images`.
    """

    images: np.ndarray
    labels: np.ndarray
    names_agree: bool
    data: PreparedData
    extractor: Extractor
    origin: Origin
    channels: str
    doubts: tuple[str, ...]
    stages: Mapping[str, np.ndarray]
    watch: Watch | None
    cache: Path | None
    batch_size: int
    device: torch.device
    seed: int
    _real: dict[str, Reference] = field(default_factory=dict)

    def gather(self, splits: Sequence[str], *, need_features: bool) -> None:
        """Find the features of samples and real images; every rank must call this and does its share."""
        _ = self.sampled
        watch = self.watch
        for split in splits:
            self._real[split] = reference(
                self.data,
                split,
                self.side,
                self.extractor,
                need_features=need_features,
                cache=self.cache,
                batch_size=self.batch_size,
                watch=None if watch is None else _named(watch, f"features of {split} images"),
            )

    @cached_property
    def sampled(self) -> Features:
        """Features of the samples."""
        share = current_ranks().share(len(self.images))
        told = None if self.watch is None else _named(self.watch, "features of samples")
        part = extract(self.extractor, self.images[share.start : share.stop], batch_size=self.batch_size, watch=told)
        return Features(gather_rows(part.features), None if part.logits is None else gather_rows(part.logits))

    def real(self, split: str) -> Reference:
        """What is known of a split's real images, once gathered."""
        return self._real[split]

    def real_features(self, split: str) -> Tensor:
        """float32 (N, D), once gathered with ``need_features``."""
        features = self._real[split].features
        assert features is not None  # whoever reads them has asked for them
        return features

    @property
    def side(self) -> int:
        """Resolution of the real images compared with."""
        return reference_resolution(self.data, self.images.shape[1])

    def key(self, metric: str) -> str:
        """The name of a score in this extractor's features."""
        return score_key(metric, self.extractor.name)

    # -- what is said of a score --------------------------------------------------------------------------------------

    def about(
        self, against: str | None = None, *, doubts: Sequence[str] = (), extractor: bool = True, **changes: Any
    ) -> Provenance:
        """What a score depends on.

        Args:
            against: the split whose real images were compared with.
            doubts: warnings of its own, beside those that all share.
            extractor: whether it depends on the extractor.
            changes: facts that are otherwise for this score.
        """
        facts: dict[str, Any] = {
            "n": len(self.images),
            "resolution": self.images.shape[1],
            "channels": self.channels,
            "data": self.data.manifest.source,
            "versions": {"cascaded_diffusion": VERSION, "torch": str(torch.__version__)},
            "device": str(self.device),
        }
        shared = list(self.doubts)
        if extractor:
            used = self.extractor
            facts |= {"extractor": used.name, "extractor_hash": used.content_hash}
            facts |= {"resize": used.resize, "dtype": used.dtype}
            shared += self._label_doubts
        if against is not None:
            real = self._real[against]
            facts |= {"split": against, "reference_n": real.count, "reference_hash": real.hash}
            facts["reference_resolution"] = real.resolution
            shared += [*self._size_doubts, real.remark]
        warnings = tuple(dict.fromkeys(filter(None, [*shared, *doubts])))
        return Provenance.model_validate({**self.origin.model_dump(), **facts, "warnings": warnings} | changes)

    @cached_property
    def _size_doubts(self) -> list[str]:
        size = self.images.shape[1]
        if size == self.side:
            return []
        have = ", ".join(map(str, self.data.resolutions))
        return [
            f"samples have {size} pixels a side and the data {have}: they are compared with real images of {self.side}"
        ]

    @cached_property
    def recognised(self) -> tuple[float, float] | None:
        """Shares of samples and of real images in which the extractor's classifier sees the label, if it can tell."""
        logits, classes = self.sampled.logits, self.data.classes
        if logits is None or classes is None or not self.names_agree or not same_classes(self.data, self.extractor):
            return None
        if self.labels.min() < 0 or self.labels.max() >= classes or not self._real:
            return None
        # The last split is the one held out from training, if there are two.
        real = next(self._real[split] for split in reversed(self.data.splits) if split in self._real)
        assert real.predicted is not None  # by the same classifier as the samples' logits
        samples = np.mean(logits.argmax(dim=1).numpy() == self.labels)
        return float(samples), float(np.mean(real.predicted.numpy() == real.labels))

    @cached_property
    def _label_doubts(self) -> list[str]:
        if self.recognised is None or self.data.classes is None:
            return []
        samples, real = self.recognised
        chance = 1 / self.data.classes
        # A classifier that hardly knows real images says nothing of samples. Otherwise doubt begins half-way between
        # chance and what real images reach, as for the classification accuracy score.
        if real - chance < 0.3 * (1 - chance) or samples >= (chance + real) / 2:
            return []
        return [
            f"{self.extractor.name} sees the class asked for in {samples:.1%} of the samples (in {real:.1%} of real "
            "images): labels are shuffled or wrong, or samples do not show their class"
        ]


def _named(watch: Watch, what: str) -> Callable[[int, int], None]:
    return lambda done, total: watch(what, done, total)
