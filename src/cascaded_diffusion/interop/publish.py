"""A cascade with its card and picture, put together and pushed to the hub."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cascaded_diffusion.cascade.chain import Cascade
from cascaded_diffusion.cascade.judge import cascade_source
from cascaded_diffusion.cascade.manifest import MANIFEST_FILE, CascadeManifest
from cascaded_diffusion.evaluation.scores import read_scores
from cascaded_diffusion.extras import load_extra
from cascaded_diffusion.interop.card import CardNotes, check_scores, model_card, sample_picture
from cascaded_diffusion.interop.hub import CARD_FILE, SAMPLES_FILE, check_repository, push, stage_files
from cascaded_diffusion.pictures import save_png

__all__ = ["Publication", "publish"]


@dataclass(frozen=True)
class Publication:
    """What the card tells beside the cascade's own files: words on the data, its name on the hub, licence, scores."""

    data: str | None = None
    dataset: str | None = None
    licence: str | None = None
    scores: Path | None = None


def publish(
    cascade: Cascade,
    repository: str,
    about: Publication,
    *,
    folder: Path | None = None,
    dtype: torch.dtype = torch.float32,
    **where: Any,
) -> str:
    """Write the card, sample its picture, and push; the repository's address.

    Args:
        cascade: what is pushed.
        repository: ``user/name``.
        about: for the card.
        folder: where the cascade is on disk, so that its files are pushed as they are; default: they are written anew.
        dtype: of the weights that are written anew.
        where: arguments of :func:`cascaded_diffusion.interop.hub.push`.

    Raises:
        UserError: anything wrong with the arguments, before anything is sampled; or the hub's refusal.
        RuntimeError: the hub does not answer.
    """
    check_repository(repository)
    load_extra("huggingface_hub", "hub", f"hub: pushing to {repository}")
    scores = None if about.scores is None else read_scores(about.scores)
    notes = CardNotes(about.data, about.dataset, about.licence, scores)
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / "cascade"
        if folder is None:
            cascade.save_pretrained(made, dtype=dtype)
        else:
            for name in [MANIFEST_FILE, *stage_files(CascadeManifest.read(folder))]:
                (made / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / name, made / name)
        if scores is not None and about.scores is not None:
            check_scores(scores, cascade_source(repository, folder or made), about.scores)
        save_png(sample_picture(cascade), made / SAMPLES_FILE)
        (made / CARD_FILE).write_text(model_card(cascade, repository, notes, picture=SAMPLES_FILE), encoding="utf-8")
        return push(made, repository, **where)
