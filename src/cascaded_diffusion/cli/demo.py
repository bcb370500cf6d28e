"""``cdm demo``: the whole story in minutes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cascaded_diffusion.demo.training import StageProgress

__all__ = ["demo_command"]


def demo_command(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the report.")] = Path("out/demo"),
) -> None:
    """Train a tiny cascade for less than a minute, sample the packaged one, and write a report with pictures."""
    from cascaded_diffusion.cli.progress import ProgressDisplay
    from cascaded_diffusion.demo.run import run_demo

    with ProgressDisplay() as display:

        def watch(progress: StageProgress) -> None:
            loss = "" if progress.loss is None else f"loss {progress.loss:.3f}"
            display.advance(f"training {progress.stage}", progress.images, progress.target, note=loss)

        report = run_demo(out, note=display.note, watch=watch)
    typer.echo(str(report))
