"""``cdm prepare``: from images to prepared data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cascaded_diffusion.cli.values import number_from, whole_from
from cascaded_diffusion.errors import UserError

if TYPE_CHECKING:
    from cascaded_diffusion.data.manifest import Manifest

__all__ = ["parse_resolutions", "prepare_command", "summary"]


def prepare_command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="fashion-mnist, a folder of class folders, a folder of images, a file.npz, hf:NAME[:SPLIT] for a data "
            "set of the Hugging Face hub, or wds:PATTERN for webdataset shards.",
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make; it must not exist yet, or be empty.")],
    resolutions: Annotated[
        str, typer.Option("--resolutions", metavar="R,R,...", help="Sides in pixels to prepare, such as 8,16,32.")
    ],
    val: Annotated[
        float | None,
        typer.Option(
            "--val",
            parser=number_from(0),
            metavar="FRACTION",
            help="Fraction of the images for val, chosen by their content's hash.",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            parser=whole_from(1),
            metavar="N",
            help="Only the first N images of each split, in class-balanced order.",
        ),
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave unreadable files out, and list them, instead of stopping.")
    ] = False,
    allow_upscale: Annotated[
        bool, typer.Option("--allow-upscale", help="Enlarge images that are smaller than the largest resolution.")
    ] = False,
    compress: Annotated[
        bool, typer.Option("--compress", help="Store images above 128 pixels compressed, without loss.")
    ] = False,
    image_column: Annotated[
        str | None, typer.Option("--image-column", metavar="NAME", help="Of hf: data with several columns of images.")
    ] = None,
    label_column: Annotated[
        str | None,
        typer.Option("--label-column", metavar="NAME|none", help="Of hf: data with several columns of classes."),
    ] = None,
    subset: Annotated[
        str | None, typer.Option("--subset", metavar="NAME", help="Of hf: data that comes in several configurations.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            parser=whole_from(0),
            metavar="N",
            help="Processes to use (default: one per processor; 0: none beside this).",
        ),
    ] = None,
) -> None:
    """Crop and resize images once, so that training only has to read them.

    Each image's centre square is area-averaged to every resolution. Splits that the source brings are used. Of hf: and
    wds: sources only the prepared images are kept on this disk.
    OUT appears complete or not at all; after an interruption, the same command starts again.
    """
    sizes = parse_resolutions(resolutions)
    from cascaded_diffusion.cli.progress import ProgressDisplay
    from cascaded_diffusion.data.prepare import prepare
    from cascaded_diffusion.data.streams import Columns

    try:
        with ProgressDisplay() as display:
            manifest = prepare(
                source,
                out,
                resolutions=sizes,
                val=val,
                limit=limit,
                skip_bad=skip_bad,
                allow_upscale=allow_upscale,
                compress=compress,
                columns=Columns(image=image_column, label=label_column, subset=subset),
                workers=workers,
                progress=display.advance,
                note=display.note,
            )
    except KeyboardInterrupt:
        typer.echo(f"interrupted: {out} was not made; the same command starts again", err=True)
        raise typer.Exit(130) from None
    typer.echo(summary(out, manifest))


def parse_resolutions(text: str) -> list[int]:
    """``"8,16,32"`` as numbers; anything but whole numbers separated by commas is a ``UserError``."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(
            f"--resolutions {text!r}: give whole numbers above 0 separated by commas, such as 8,16,32"
        ) from None


def summary(out: Path, manifest: Manifest) -> str:
    """One line on what a folder of prepared data holds."""
    counts = f"{manifest.counts.train:,} train and {manifest.counts.val:,} val images"
    classes = "no classes" if manifest.class_names is None else f"{len(manifest.class_names):,} classes"
    kind = "grey" if manifest.channels == 1 else "colour"
    extras = [
        f"{number:,} {what}"
        for number, what in [(manifest.skipped, "skipped"), (manifest.upscaled, "enlarged")]
        if number
    ]
    sizes = ", ".join(map(str, manifest.resolutions))
    return "; ".join([f"{out}: {counts}, {kind}, {classes}, at {sizes}", *extras])
