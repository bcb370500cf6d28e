"""``cdm assemble``: chain trained stages into a cascade."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cascaded_diffusion.cli.places import check_place
from cascaded_diffusion.cli.values import whole_from
from cascaded_diffusion.errors import UserError

__all__ = ["assemble_command"]


def assemble_command(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make; it must not exist yet, or be empty.")],
    parts: Annotated[
        list[Path], typer.Argument(metavar="PART...", help="Run folders or stage folders, the base first.")
    ],
    checkpoint: Annotated[
        int | None,
        typer.Option(
            "--checkpoint",
            parser=whole_from(0),
            metavar="IMAGES",
            help="Which checkpoint of the runs; default the newest.",
        ),
    ] = None,
    ema: Annotated[
        str | None,
        typer.Option(
            "--ema", metavar="HALF_LIFE|raw", help="Which weight average of the runs; default the recipe's first."
        ),
    ] = None,
    no_truncated: Annotated[
        bool,
        typer.Option(
            "--no-truncated", help="Accept an SR stage trained with another schedule than the stage below has."
        ),
    ] = False,
    half: Annotated[bool, typer.Option("--half", help="Store the weights in 16 bits.")] = False,
) -> None:
    """Chain trained stages into a cascade folder that cdm sample takes.

    PART is a run folder, a stage folder, or a stage's sub-folder of another cascade. Stages that do not fit are
    refused.
    """
    import torch

    from cascaded_diffusion.cascade.chain import Cascade
    from cascaded_diffusion.files import refuse_filled
    from cascaded_diffusion.training.export import is_run, load_part

    refuse_filled(out)
    check_place("OUT", out)
    if (checkpoint is not None or ema is not None) and not any(is_run(part) for part in parts):
        option = "--checkpoint" if checkpoint is not None else "--ema"
        given = ", ".join(map(str, parts))
        raise UserError(f"{option}: none of {given} is a run folder with checkpoints to choose from")
    loaded = [load_part(part, images=checkpoint, ema=ema) for part in parts]
    names = [stage.name for stage, _, _ in loaded]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"two parts are called {twice}; a cascade has each stage once")
    cascade = Cascade(
        [stage for stage, _, _ in loaded],
        defaults={stage.name: sampling for stage, sampling, _ in loaded},
        no_truncated=no_truncated,
        provenance={stage.name: provenance for stage, _, provenance in loaded},
    )
    cascade.save_pretrained(out, dtype=torch.float16 if half else torch.float32)
    typer.echo(f"{out}: {' -> '.join(names)}")
