"""``cdm assemble``: chain trained stages into a cascade."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cascaded_diffusion.cli.places import check_place
from cascaded_diffusion.cli.values import stage_settings, whole_from
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
            "--ema",
            metavar="HALF_LIFE|SIGMA_REL|raw",
            help="Which weight average of the runs: a half-life in images, or "
            "the relative length of a power-function average, such as 0.05; default the recipe's first half-life.",
        ),
    ] = None,
    no_truncated: Annotated[
        bool,
        typer.Option(
            "--no-truncated", help="Accept an SR stage trained with another schedule than the stage below has."
        ),
    ] = False,
    guide: Annotated[
        list[str] | None,
        typer.Option(
            "--guide",
            metavar="STAGE=PART",
            help="A worse copy of a stage to guide it (2406.02507): trained for a shorter time, or smaller. "
            "STAGE=PART@IMAGES takes that checkpoint of a run.",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="STAGE.KEY=VALUE", help="A default sampling setting, such as base16.guide=1.8."),
    ] = None,
    half: Annotated[bool, typer.Option("--half", help="Store the weights in 16 bits.")] = False,
) -> None:
    """Chain trained stages into a cascade folder that cdm sample takes.

    PART is a run folder, a stage folder, or a stage's sub-folder of another cascade. Stages that do not fit are
    refused.
    """
    import torch

    from cascaded_diffusion.cascade.chain import Cascade
    from cascaded_diffusion.cascade.guides import add_guides, default_sampling, parse_guide
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
    add_guides([stage for stage, _, _ in loaded], [parse_guide(text) for text in guide or ()], ema=ema)
    more = stage_settings(settings)
    for name in more:
        if name not in names:
            raise UserError(f"--set: no stage {name!r} among the parts; allowed: {', '.join(names)}")
    cascade = Cascade(
        [stage for stage, _, _ in loaded],
        defaults={
            stage.name: default_sampling(stage, sampling, more.get(stage.name, {})) for stage, sampling, _ in loaded
        },
        no_truncated=no_truncated,
        provenance={stage.name: provenance for stage, _, provenance in loaded},
    )
    cascade.save_pretrained(out, dtype=torch.float16 if half else torch.float32)
    typer.echo(f"{out}: {' -> '.join(names)}")
