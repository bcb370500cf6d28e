"""The card of a cascade on the hub: what it is, how it was made, how good it is and by which measurement."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from cascaded_diffusion.cascade.chain import Cascade
from cascaded_diffusion.cascade.sampling import SamplingConfig
from cascaded_diffusion.cascade.stage import Stage, StageRecipe
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.evaluation.scores import Score, describe_sampling

__all__ = ["CardNotes", "check_scores", "model_card", "sample_picture"]

_GRID_CLASSES = 10
_GRID_COLUMNS = 6


@dataclass(frozen=True)
class CardNotes:
    """What the cascade's files do not tell.

    Attributes:
        data: the training data, in words.
        dataset: its name on the hub, if it has one.
        licence: of the weights, as the hub abbreviates it, such as apache-2.0.
        scores: measured ones by key, as :func:`cascaded_diffusion.evaluation.scores.read_scores` gives them.
    """

    data: str | None = None
    dataset: str | None = None
    licence: str | None = None
    scores: Mapping[str, Score] | None = None

    def __post_init__(self) -> None:
        """Refuse a licence that the hub would."""
        if self.licence is not None and not re.fullmatch(r"[a-z0-9]+([.-][a-z0-9]+)*", self.licence):
            allowed = "its abbreviation on the hub, such as apache-2.0, mit, cc-by-4.0 or other"
            raise UserError(f"licence: {self.licence!r} is not known; give {allowed}")


def model_card(cascade: Cascade, repository: str, notes: CardNotes, *, picture: str | None = None) -> str:
    """The text of ``README.md``.

    Args:
        cascade: what it is about.
        repository: ``user/name``.
        notes: what the cascade's files do not tell.
        picture: name of the picture of samples beside it.
    """
    first, last = next(iter(cascade.stages)), list(cascade.stages)[-1]
    made = f"{cascade.stages[last].config.resolution}x{cascade.stages[last].config.resolution}"
    classes = "without classes" if cascade.classes is None else f"of {cascade.classes:,} classes"
    chain = " -> ".join(cascade.stages)
    parts = [
        f"---\n{yaml.safe_dump(_metadata(cascade, notes), sort_keys=False)}---",
        f"# {repository.partition('/')[2]}",
        "A cascaded diffusion model (Ho et al., [2106.15282](https://arxiv.org/abs/2106.15282)) that makes "
        f"{made} images {classes}, in {len(cascade.stages)} stages: {chain}. {first} makes a small image, each further "
        "stage enlarges it.",
        f"![Samples, not chosen by hand]({picture})" if picture else "",
        f"## Stages\n\n{_stages(cascade)}",
        f"## Recipe\n\n{_recipe(cascade)}",
        f"## Data\n\n{notes.data or 'Its author has said nothing about the training data.'}"
        + (
            f"\n\nOn the hub: [{notes.dataset}](https://huggingface.co/datasets/{notes.dataset})"
            if notes.dataset
            else ""
        ),
        f"## Scores\n\n{_scores(cascade, notes.scores)}",
        f"## How to load it\n\n{_loading(cascade, repository)}",
        f"## Licence\n\n{notes.licence or 'Its author has not said under which licence the weights may be used.'}",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def sample_picture(cascade: Cascade, *, seed: int = 0) -> Image.Image:
    """A few samples of each class (of at most ten, evenly spaced), a labelled row each, by the default settings."""
    from cascaded_diffusion.cascade.show import class_grid

    ids = cascade.class_ids(None)
    if ids is not None and len(ids) > _GRID_CLASSES:
        ids = [ids[round(i * (len(ids) - 1) / (_GRID_CLASSES - 1))] for i in range(_GRID_CLASSES)]
    count = _GRID_COLUMNS * (len(ids) if ids is not None else 2)
    plan = cascade.plan()
    images = cascade.sample(count, ids, seed=seed)
    assert not isinstance(images, dict)  # not asked for
    labels = cascade.sample_labels(plan, num=count, classes=ids)
    return class_grid(images, labels, cascade.class_names, title=f"seed {seed}", columns=_GRID_COLUMNS)


def _metadata(cascade: Cascade, notes: CardNotes) -> dict[str, Any]:
    kinds = ["diffusion", "cascaded-diffusion", "super-resolution"]
    return {
        "license": notes.licence or "unknown",
        "library_name": "cascaded-diffusion",
        "pipeline_tag": "unconditional-image-generation",
        "tags": kinds if cascade.classes is None else [*kinds, "class-conditional"],
        **({"datasets": [notes.dataset]} if notes.dataset else {}),
    }


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _stages(cascade: Cascade) -> str:
    header = ["stage", "resolution", "parameters", "network", "images seen", "sampled by default with", "s"]
    rows = []
    for name, stage in cascade.stages.items():
        sampling = cascade.defaults[name]
        conditioning = stage.config.conditioning
        low = "" if conditioning is None else f"{conditioning.low_resolution} -> "
        images = cascade.provenance[name].get("images")
        rows.append(
            [
                name,
                f"{low}{stage.config.resolution}",
                f"{sum(each.numel() for each in stage.network.parameters()):,}",
                _network(stage),
                f"{images:,}" if isinstance(images, int) else "not known",
                _sampling(sampling),
                "-" if sampling.augmentation == "none" else f"{sampling.s:g} ({sampling.augmentation})",
            ]
        )
    return _table(header, rows)


def _network(stage: Stage) -> str:
    network = stage.config.network
    attention = (
        f"attention at {', '.join(map(str, network.attention))}" if network.attention else "no attention in levels"
    )
    widths = ", ".join(map(str, network.widths))
    return f"U-Net of widths {widths}; {network.blocks} blocks a level; {attention}"


def _sampling(sampling: SamplingConfig) -> str:
    return ", ".join([sampling.sampler, f"{sampling.steps} steps", *sampling.words()])


def _recipe(cascade: Cascade) -> str:
    """What each stage was trained with, where it differs from the library's defaults."""
    stages = []
    for stage in cascade.stages.values():
        told = stage.config.model_dump(mode="json", exclude_defaults=True)
        stages.append({key: value for key, value in told.items() if key in StageRecipe.model_fields})
    flip = next(iter(cascade.stages.values())).config.flip
    text = yaml.safe_dump({"flip": flip, "stages": stages}, sort_keys=False, allow_unicode=True)
    return f"Settings that differ from the defaults of cascaded-diffusion:\n\n```yaml\n{text}```"


def _scores(cascade: Cascade, scores: Mapping[str, Score] | None) -> str:
    parts = []
    if scores:
        header = ["score", "value", "standard error", "samples", "real images", "features", "sampling", "seed"]
        parts.append(_table(header, [_score_row(key, score) for key, score in scores.items()]))
        warnings = dict.fromkeys(line for score in scores.values() for line in score.provenance.warnings)
        parts += [f"- Doubtful: {line}" for line in warnings]
    for name, origin in cascade.provenance.items():
        search = origin.get("search")
        if isinstance(search, dict) and {"chosen", "of", "score", "value", "n"} <= search.keys():
            error = search.get("standard_error")
            told = f"{search['value']:.4g}" + (f" ± {error:.2g}" if isinstance(error, float) else "")
            parts.append(
                f"The default settings of {name} ({search['chosen']}) are the best of {search['of']} that were "
                f"searched: {search['score']} {told} with {search['n']:,} samples against the {search.get('split')} "
                f"split (features {search.get('features')}, seed {search.get('seed')}). The best of many is lower "
                "by luck."
            )
    return "\n\n".join(parts) or "None were measured."


def _score_row(key: str, score: Score) -> list[str]:
    about = score.provenance
    real = "-" if about.reference_n is None else f"{about.reference_n:,} of {about.data} ({about.split})"
    hashed = f" {about.extractor_hash[:8]}" if about.extractor_hash else ""
    return [
        key,
        f"{score.value:.5g}",
        "-" if score.standard_error is None else f"{score.standard_error:.2g}",
        f"{about.n:,}",
        real,
        f"{about.extractor or '-'}{hashed}",
        describe_sampling(about) or "-",
        "-" if about.seed is None else str(about.seed),
    ]


def _loading(cascade: Cascade, repository: str) -> str:
    some = "" if cascade.classes is None else f", classes=[0, {cascade.classes - 1}]"
    return (
        "```\npip install 'cascaded-diffusion[hub]'\n"
        f"cdm sample {repository} --out samples.npz --num 16 --grid samples.png\n```\n\n"
        "```python\nfrom cascaded_diffusion import Cascade\n\n"
        f'cascade = Cascade.from_pretrained("{repository}")\n'
        f"images = cascade.sample(16{some}, seed=1)  # uint8 (N, H, W, C)\n```\n\n"
        "The files are safetensors and JSON; their SHA-256 are in `cascade.json` and checked when it is loaded."
    )


def check_scores(scores: Mapping[str, Score], source: Mapping[str, Any], path: Path) -> None:
    """``UserError`` if scores are not of this cascade."""
    for key, score in scores.items():
        about = score.provenance.source
        if about.get("kind") != "cascade":
            raise UserError(
                f"{path}: {key} was measured on a {about.get('kind')} ({about.get('name')}), which may be anything; "
                "score the cascade itself"
            )
        if about.get("sha256") != source["sha256"]:
            raise UserError(f"{path}: {key} was measured on another cascade ({about.get('name')}, other weights)")
