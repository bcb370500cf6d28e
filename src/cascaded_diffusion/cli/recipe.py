"""``cdm recipe``: list the packaged recipes, or print one."""

from __future__ import annotations

from typing import Annotated

import typer

from cascaded_diffusion.errors import UserError
from cascaded_diffusion.recipes.packaged import packaged_names, packaged_summary, read_packaged

__all__ = ["recipe_command"]


def recipe_command(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="The recipe to print.")] = None,
    list_all: Annotated[bool, typer.Option("--list", help="List the packaged recipes.")] = False,
) -> None:
    """List the packaged recipes with expected time, memory and score, or print one to edit.

    cdm recipe photos-64 > mine.yaml gives a recipe to start from.
    """
    if name is not None and list_all:
        raise UserError(f"recipe: give --list or a name ({name}), not both")
    if name is None:
        for known in packaged_names():
            typer.echo(f"{known}\n    " + "\n    ".join(packaged_summary(known)))
        return
    if name not in packaged_names():
        raise UserError(f"recipe: {name!r} is not packaged; allowed: {', '.join(packaged_names())}")
    typer.echo(read_packaged(name), nl=False)
