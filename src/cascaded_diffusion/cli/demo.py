"""``cdm demo``: the whole story in minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["demo_command"]


def demo_command(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the report.")] = Path("out/demo"),
) -> None:
    """Train a tiny cascade for a minute, sample the packaged one, and write a report with pictures."""
    from cascaded_diffusion.demo.run import run_demo

    run_demo(out)
