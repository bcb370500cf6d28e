"""The part about a cascade: its stages and where they come from, samples by class, and what the samples show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from cascaded_diffusion.cascade.chain import Cascade
from cascaded_diffusion.cascade.manifest import CascadeManifest
from cascaded_diffusion.cascade.walk import Plan, Watch
from cascaded_diffusion.evaluation.colour import colour_drift
from cascaded_diffusion.report.markup import Html, facts, joined, paragraph, table, tag
from cascaded_diffusion.report.neighbours import Neighbours, neighbours_html
from cascaded_diffusion.report.page import Part, missing, subtitle
from cascaded_diffusion.report.pictures import class_label, pixels_tag
from cascaded_diffusion.report.stages import conditioning_words, provenance_facts, sampling_words, settings, stage_facts

__all__ = ["CascadeRecord", "Samples", "cascade_part", "class_rows", "draw_samples", "read_cascade", "sampled_classes"]

_MOST_CLASSES = 20
"""Of more classes, so many are sampled, evenly spaced."""


@dataclass(frozen=True)
class CascadeRecord:
    """A cascade that was opened and checked, its manifest, and what it is called on the page."""

    name: str
    cascade: Cascade
    manifest: CascadeManifest


@dataclass(frozen=True)
class Samples:
    """Samples of a cascade made for the page.

    Attributes:
        plan: the stages and settings they were made with.
        stages: uint8 (N, R, R, C) by stage name; of a stage that is stopped at s, its prediction of the image.
        labels: int64 (N,), -1 without classes.
        classes: classes that the cascade has and that were sampled, or ``None`` without classes.
        seed: of the noise.
    """

    plan: Plan
    stages: dict[str, np.ndarray]
    labels: np.ndarray
    classes: tuple[int, int] | None
    seed: int


def read_cascade(name: str, folder: Path) -> CascadeRecord:
    """Open a cascade; a ``UserError`` names the file that is missing or damaged."""
    return CascadeRecord(name, Cascade.from_pretrained(folder), CascadeManifest.read(folder))


def sampled_classes(cascade: Cascade) -> list[int] | None:
    """The classes that the page shows: all, or twenty evenly spaced ones; ``None`` without classes."""
    ids = cascade.class_ids(None)
    if ids is None or len(ids) <= _MOST_CLASSES:
        return ids
    return [ids[round(i * (len(ids) - 1) / (_MOST_CLASSES - 1))] for i in range(_MOST_CLASSES)]


def draw_samples(
    cascade: Cascade, *, per_class: int, seed: int, batch_size: Any = "auto", watch: Watch | None
) -> Samples:
    """Sample ``per_class`` images of each class shown, with the cascade's default settings."""
    ids = sampled_classes(cascade)
    count = per_class * len(ids or [0])
    plan = cascade.plan()
    images = cascade.sample(count, ids, seed=seed, batch_size=batch_size, return_stages=True, callback=watch)
    assert isinstance(images, dict)  # return_stages asks for it
    labels = cascade.sample_labels(plan, num=count, classes=ids)
    return Samples(plan, images, labels, None if ids is None else (cascade.classes or 0, len(ids)), seed)


def cascade_part(record: CascadeRecord, samples: Samples | None, neighbours: Neighbours | str | None) -> Part:
    """The part of the page about one cascade.

    Args:
        record: the cascade.
        samples: made for the page, if any were.
        neighbours: the samples' nearest training images, why there are none, or ``None`` if nobody gave data.
    """
    cascade = record.cascade
    body = [_what(record), _stage_table(record), *_details(record), subtitle("Samples")]
    if samples is None:
        body.append(missing("None were drawn; they come with", "cdm report … --per-class 4"))
    else:
        body += [_samples_words(samples), class_rows(samples, cascade.class_names)]
        if len(samples.stages) > 1:
            body += [subtitle("Colours from stage to stage"), _drift(samples)]
        body += [subtitle("Nearest training images"), neighbours_html(neighbours, cascade.class_names)]
    return Part(f"Cascade: {record.name}", joined(body))


def _what(record: CascadeRecord) -> Html:
    cascade = record.cascade
    last = list(cascade.stages.values())[-1].config
    classes = "images without classes" if cascade.classes is None else f"images of {cascade.classes} classes"
    words = f"{' → '.join(cascade.stages)}: makes {last.resolution}x{last.resolution} {classes}."
    return joined([paragraph(words), facts(provenance_facts(record.manifest.provenance))])


def _stage_table(record: CascadeRecord) -> Html:
    cascade = record.cascade
    evaluations = cascade.plan().evaluations()
    rows = []
    for name, stage in cascade.stages.items():
        origin = cascade.provenance[name]
        images = origin.get("images")
        rows.append(
            [
                name,
                f"{sum(parameter.numel() for parameter in stage.network.parameters()):,}",
                f"{images:,}" if isinstance(images, int) else "unknown",
                conditioning_words(stage.config),
                sampling_words(cascade.defaults[name]),
                f"{evaluations[name]:,}",
            ]
        )
    return table(
        ["Stage", "Parameters", "Trained on images", "Starts", "Sampled by default", "Evaluations an image"], rows
    )


def _details(record: CascadeRecord) -> list[Html]:
    """Of every stage, what it was trained as and where it comes from, folded away."""
    found = []
    for entry in record.manifest.stages:
        config = record.cascade.stages[entry.name].config
        hashes = {f"SHA-256 of {name}": value[:16] + "…" for name, value in entry.sha256.items()}
        body = [
            facts(stage_facts(config) | provenance_facts(entry.provenance) | hashes),
            settings("All settings (config.json)", config.model_dump(mode="json")),
        ]
        found.append(tag("details", tag("summary", f"{entry.name}: recipe and provenance"), *body))
    return found


def _samples_words(samples: Samples) -> Html:
    words = [f"Drawn for this page from noise, none picked, seed {samples.seed}; {samples.plan.describe()}."]
    if samples.classes is not None and samples.classes[1] < samples.classes[0]:
        words.append(f"{samples.classes[1]} of {samples.classes[0]:,} classes, evenly spaced.")
    stopped = [stage.name for i, stage in enumerate(samples.plan.stages) if samples.plan.stop(i) > 0]
    if stopped:
        words.append(f"{', '.join(stopped)} stops at s; shown is what it then takes the image to be.")
    return paragraph(" ".join(words))


def class_rows(samples: Samples, class_names: Sequence[str] | None) -> Html:
    """A row for each class, and in it a group of images for each stage."""
    heads = [tag("div", f"{name}", class_="head") for name in samples.stages]
    cells = [tag("div", "", class_="head corner"), *heads]
    for label in dict.fromkeys(samples.labels.tolist()):
        name = class_label(label, class_names)
        cells.append(tag("div", name, class_="name"))
        for stage, images in samples.stages.items():
            shown = [pixels_tag(image, f"{name or 'sample'} from {stage}") for image in images[samples.labels == label]]
            cells.append(tag("div", *shown, class_="images"))
    return tag("div", *cells, class_="classes", style=f"--stages: {len(samples.stages)}")


def _drift(samples: Samples) -> Html:
    rows = []
    for low, high in pairwise(samples.stages):
        drift = colour_drift(samples.stages[low], samples.stages[high])
        rows.append([f"{low} → {high}", _signed(drift.mean), _signed(drift.std)])
    words = (
        f"How each stage shifts the mean of the colour channels, and their spread, on a scale of 255, over these "
        f"{len(samples.labels)} samples. A shifted mean is a tint, a smaller spread washed-out contrast; 0 is best."
    )
    return joined([paragraph(words), table(["Stages", "Mean", "Standard deviation"], rows)])


def _signed(values: np.ndarray) -> str:
    return ", ".join(f"{value:+.2f}" for value in values)
