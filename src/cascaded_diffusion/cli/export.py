"""``cdm export``: a cascade in the form of another project."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cascaded_diffusion.cli.places import check_place, tell_which
from cascaded_diffusion.errors import UserError

__all__ = ["export_command"]

FORMATS = ("diffusers",)


def export_command(
    cascade: Annotated[str, typer.Argument(metavar="CASCADE", help="A cascade folder, or a packaged name.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make; it must not exist yet, or be empty.")],
    form: Annotated[
        str, typer.Option("--format", metavar="|".join(FORMATS), help="What to write: models that diffusers loads.")
    ] = "diffusers",
) -> None:
    """Write a cascade for diffusers: a UNet2DModel and a scheduler for each stage, and an example that chains them.

    What diffusers cannot express is refused by name before anything is written.
    """
    from cascaded_diffusion.cascade.chain import Cascade
    from cascaded_diffusion.cascade.find import packaged_cascades
    from cascaded_diffusion.files import refuse_filled
    from cascaded_diffusion.interop.diffusers_folder import export_diffusers

    if form not in FORMATS:
        raise UserError(f"--format: {form!r} is not known; allowed: {', '.join(FORMATS)}")
    refuse_filled(out)
    check_place("OUT", out)
    tell_which("cascade", cascade, packaged_cascades())
    loaded = Cascade.from_pretrained(cascade)
    notes = export_diffusers(loaded, out)
    typer.echo(f"{out}: {', '.join(loaded.stages)} for diffusers; load_cascade.py there chains them")
    for note in notes:
        typer.echo(f"{out}: {note}", err=True)
