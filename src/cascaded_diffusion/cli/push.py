"""``cdm push``: a cascade to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cascaded_diffusion.cli.places import tell_which

__all__ = ["push_command"]


def push_command(
    cascade: Annotated[str, typer.Argument(metavar="CASCADE", help="A cascade folder, or demo for the packaged one.")],
    repository: Annotated[str, typer.Argument(metavar="USER/NAME", help="The repository; made if it is not there.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[
        str | None, typer.Option("--revision", metavar="BRANCH", help="Another branch than main.")
    ] = None,
    message: Annotated[str | None, typer.Option("--message", metavar="TEXT", help="Of the commit.")] = None,
    scores: Annotated[
        Path | None, typer.Option("--scores", metavar="FILE.json", help="Scores for the card, of cdm evaluate --json.")
    ] = None,
    data_note: Annotated[
        str | None, typer.Option("--data-note", metavar="TEXT", help="The training data in words, for the card.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option("--dataset", metavar="NAME", help="The training data's name on the hub.")
    ] = None,
    licence: Annotated[
        str | None, typer.Option("--licence", metavar="NAME", help="Of the weights, such as apache-2.0 or cc-by-4.0.")
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", metavar="D", help="For the samples on the card; default the best.")
    ] = None,
) -> None:
    """Upload a cascade with a card: stages, recipe, data, scores, samples, how to load it, licence.

    Log in first with hf auth login, or set HF_TOKEN. Needs pip install 'cascaded-diffusion[hub]'.
    """
    from cascaded_diffusion.cascade.chain import Cascade
    from cascaded_diffusion.cascade.find import find_cascade, packaged_cascades
    from cascaded_diffusion.interop.hub import check_repository
    from cascaded_diffusion.interop.publish import Publication, publish
    from cascaded_diffusion.precision import pick_device

    check_repository(repository)
    tell_which("cascade", cascade, packaged_cascades())
    folder, _ = find_cascade(cascade)
    loaded = Cascade.from_pretrained(folder).to(pick_device(device))
    address = publish(
        loaded,
        repository,
        Publication(data_note, dataset, licence, scores),
        folder=folder,
        private=private or None,
        revision=revision,
        message=message,
    )
    typer.echo(f"{address}: {' -> '.join(loaded.stages)}, with a card; cdm sample {repository} takes it")
