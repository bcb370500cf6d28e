"""``cdm import``: a stage from what another project wrote."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cascaded_diffusion.cli.places import check_place
from cascaded_diffusion.cli.values import whole_from
from cascaded_diffusion.errors import UserError

if TYPE_CHECKING:
    from cascaded_diffusion.cascade.stage import Stage
    from cascaded_diffusion.interop.stage_folder import ImportedStage

__all__ = ["import_command"]

KINDS = ("guided-diffusion", "improved-diffusion", "diffusers")


def import_command(
    kind: Annotated[str, typer.Argument(metavar="|".join(KINDS), help="Whose files they are.")],
    source: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT|FOLDER", help="A .pt or .safetensors file; of diffusers, a folder.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make; it must not exist yet, or be empty.")],
    flags: Annotated[
        str | None,
        typer.Option(
            "--flags",
            metavar='"--image_size 64 ..."',
            help="What their README prints for the checkpoint; the rest has their scripts' defaults.",
        ),
    ] = None,
    low_resolution: Annotated[
        int | None,
        typer.Option(
            "--low-resolution",
            parser=whole_from(1),
            metavar="R",
            help="Of diffusers: the U-Net enlarges images of R pixels, which it takes behind the noisy ones.",
        ),
    ] = None,
) -> None:
    """Write a stage folder, for cdm assemble, from another project's weights."""
    from cascaded_diffusion.files import refuse_filled
    from cascaded_diffusion.interop.stage_folder import write_stage_folder

    if kind not in KINDS:
        raise UserError(f"import: {kind!r} is not known; allowed: {', '.join(KINDS)}")
    refuse_filled(out)
    check_place("OUT", out)
    imported = _read(kind, source, flags, low_resolution)
    write_stage_folder(imported, out)
    typer.echo(f"{out}: {_describe(imported.stage)}")
    if imported.left_out:
        typer.echo(f"{out}: without meaning for a stage: {', '.join(imported.left_out)}", err=True)


def _read(kind: str, source: Path, flags: str | None, low_resolution: int | None) -> ImportedStage:
    if kind == "diffusers":
        from cascaded_diffusion.interop.diffusers_folder import import_diffusers

        if flags is not None:
            raise UserError("--flags: a diffusers folder has its settings in its own files; leave the option out")
        return import_diffusers(source, low_resolution=low_resolution)
    from cascaded_diffusion.interop.guided_stage import import_guided_diffusion

    if low_resolution is not None:
        raise UserError(f"--low-resolution {low_resolution}: of {kind} it is --small_size, inside --flags")
    return import_guided_diffusion(source, flags or "", family=kind)


def _describe(stage: Stage) -> str:
    config = stage.config
    side = config.resolution
    words = [f"{stage.name}, {side}x{side} pixels"]
    if config.conditioning is not None:
        words.append(f"from {config.conditioning.low_resolution}")
    words.append("no classes" if config.classes is None else f"{config.classes} classes")
    words.append(config.diffusion.noise_schedule.describe())
    words.append(f"{config.sampling.sampler} {config.sampling.steps} steps")
    return ", ".join(words)
