"""The training images that samples come nearest to: does the cascade make pictures, or remember them?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from cascaded_diffusion.cascade.stage import StageConfig
from cascaded_diffusion.data.prepared import PreparedData
from cascaded_diffusion.evaluation.features import Extractor, extract
from cascaded_diffusion.evaluation.neighbours import Memorisation, memorisation, nearest
from cascaded_diffusion.evaluation.reference import reference
from cascaded_diffusion.report.markup import Html, joined, paragraph, tag
from cascaded_diffusion.report.page import missing
from cascaded_diffusion.report.pictures import class_label, pixels_tag

__all__ = ["Neighbours", "Pair", "find_neighbours", "neighbours_html", "why_unfit"]

_SHOWN = 10
_HELD_OUT = 1000
"""Held-out images that samples are compared with: enough for a median, and quick."""


@dataclass(frozen=True, eq=False)
class Pair:
    """A sample and the training image nearest to it: uint8 (R, R, C) each, their classes, and their distance."""

    sample: np.ndarray
    real: np.ndarray
    label: int
    real_label: int
    distance: float


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The nearest training images of samples.

    Attributes:
        pairs: those samples that come nearest, the nearest first.
        summary: how near all samples come, next to real images; or in words why that cannot be said.
        extractor: in whose features.
        count: training images searched.
        class_names: of the data.
    """

    pairs: list[Pair]
    summary: Memorisation | str
    extractor: str
    count: int
    class_names: list[str] | None


def why_unfit(config: StageConfig, data: PreparedData) -> str | None:
    """Why images of a cascade's last stage cannot be compared with the data, or ``None`` if they can."""
    if config.channels != data.channels:
        return f"{data.folder} has {data.channels} image channels, {config.name} has {config.channels}"
    if config.resolution not in data.resolutions:
        have = ", ".join(map(str, data.resolutions))
        return f"{data.folder} has images of {have} pixels, {config.name} makes {config.resolution}"
    return None


def find_neighbours(
    images: np.ndarray,
    labels: np.ndarray,
    data: PreparedData,
    extractor: Extractor,
    *,
    watch: Callable[[str, int, int], None],
) -> Neighbours:
    """Search the training images for the nearest one of every sample.

    Args:
        images: uint8 (N, R, R, C), of a resolution and with the channels of the data.
        labels: int64 (N,), -1 without classes.
        data: what the cascade was trained on.
        extractor: distances are Euclidean, between its features.
        watch: called with what is being done, how much of it is, and the total.
    """
    features = extract(extractor, images).features
    train = _real("train", images.shape[1], data, extractor, watch)
    held_out = _real("val", images.shape[1], data, extractor, watch) if "val" in data.splits else None
    if held_out is not None:
        held_out = held_out[:: -(-len(held_out) // _HELD_OUT)]
    found = nearest(features, train)
    try:
        summary: Memorisation | str = memorisation(features, train, held_out)
    except ValueError as error:  # such as a data set that is full of copies
        summary = str(error)
    split = data.split("train")
    real = split.images(images.shape[1])
    pairs = [
        Pair(images[i], np.asarray(real[j]), int(labels[i]), int(split.labels[j]), float(found.distance[i]))
        for i in found.distance.argsort()[:_SHOWN].tolist()
        for j in [int(found.index[i])]
    ]
    return Neighbours(pairs, summary, extractor.name, len(split), data.class_names)


def _real(
    split: str, side: int, data: PreparedData, extractor: Extractor, watch: Callable[[str, int, int], None]
) -> Tensor:
    """Features (N, D) of a split's images."""

    def told(done: int, total: int) -> None:
        watch(f"features of {split} images", done, total)

    found = reference(data, split, side, extractor, need_features=True, watch=told)
    assert found.features is not None  # they were asked for
    return found.features


def neighbours_html(found: Neighbours | str | None, class_names: Sequence[str] | None) -> Html:
    """What was found, why nothing was, or the command that would search."""
    if found is None:
        return missing("Not searched; give the prepared training data:", "cdm report … --data DIR")
    if isinstance(found, str):
        return paragraph(f"Not searched: {found}.", class_="missing")
    figures = []
    for pair in found.pairs:
        name = class_label(pair.label, class_names) or "sample"
        other = class_label(pair.real_label, found.class_names) or "training image"
        images = [pixels_tag(pair.sample, f"sample: {name}"), pixels_tag(pair.real, f"nearest training image: {other}")]
        words = name if name == other else f"{name}; nearest: {other}"
        caption = tag("figcaption", words, tag("br"), f"distance {pair.distance:.3g}")
        figures.append(tag("figure", tag("div", *images, class_="images"), caption))
    words = (
        f"Left a sample, right the nearest of {found.count:,} training images, by distance in the features of "
        f"{found.extractor}. Of the samples above, these come nearest. {_in_words(found.summary)}"
    )
    return joined([paragraph(words), tag("div", *figures, class_="pairs")])


def _in_words(summary: Memorisation | str) -> str:
    if isinstance(summary, str):
        return f"How near other real images come is not known ({summary})."
    if summary.baseline == "held-out":
        others = f"{summary.real:,} held-out images"
    else:
        others = f"{summary.real:,} training images, each compared with the others"
    return (
        f"The median distance of all {summary.samples:,} samples is {summary.median_ratio:.2f} times that of {others}; "
        "well below 1 would mean copies."
    )
