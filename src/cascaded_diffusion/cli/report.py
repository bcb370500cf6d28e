"""``cdm report``: one self-contained page about a run, a cascade or a folder of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cascaded_diffusion.cli.options import Device
from cascaded_diffusion.cli.places import check_place, tell_which
from cascaded_diffusion.cli.values import whole_from
from cascaded_diffusion.errors import UserError

__all__ = ["report_command"]


def report_command(
    target: Annotated[
        str,
        typer.Argument(
            metavar="RUN|CASCADE|DIR",
            help="A run, a cascade (demo for the packaged one), a search folder, or a folder searched for them.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE.html", help="The page; an existing file is replaced.")],
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", metavar="DIR", help="Prepared training data: shows the samples' nearest neighbours in it."
        ),
    ] = None,
    scores: Annotated[
        list[Path] | None,
        typer.Option(
            "--scores", metavar="FILE.json", help="A file of cdm evaluate --json; may be given several times."
        ),
    ] = None,
    search: Annotated[Path | None, typer.Option("--search", metavar="DIR", help="A folder of cdm search.")] = None,
    features: Annotated[
        str | None,
        typer.Option(
            "--features", metavar="NAME|PATH", help="Features for the nearest neighbours; default what fits the data."
        ),
    ] = None,
    per_class: Annotated[
        int,
        typer.Option(
            "--per-class", parser=whole_from(0), metavar="N", help="Samples of each class of a cascade; 0 for none."
        ),
    ] = 4,
    seed: Annotated[
        int, typer.Option("--seed", parser=whole_from(0), metavar="N", help="Equal seeds give equal samples.")
    ] = 0,
    device: Device = None,
) -> None:
    """Write one page with what there is: stages and where they come from, loss, previews, samples, scores, searches.

    A folder is searched three folders deep. The page is a single file, needs no network and no JavaScript, and says of
    what is missing which command makes it.
    """
    if out.suffix not in (".html", ".htm") or out.is_dir():
        raise UserError(f"--out: {out} is not the name of an .html file")
    check_place("--out", out)

    from cascaded_diffusion.cascade.find import packaged_cascades
    from cascaded_diffusion.cli.progress import ProgressDisplay
    from cascaded_diffusion.precision import pick_device
    from cascaded_diffusion.report.write import ReportRequest, write_report

    tell_which("cascade", target, packaged_cascades())
    request = ReportRequest(
        target=target,
        data=data,
        scores=tuple(scores or ()),
        search=search,
        features=features,
        per_class=per_class,
        seed=seed,
        device=pick_device(device),
    )
    with ProgressDisplay() as display:
        write_report(request, out, watch=display.advance)
    typer.echo(f"{out}: {out.stat().st_size / 1e6:,.1f} MB, everything in one file")
