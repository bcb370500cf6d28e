"""Options that several commands have, each with one name, one way of being read and one line of help."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import torch

__all__ = [
    "PER_STAGE",
    "Augmentation",
    "BatchSize",
    "Cache",
    "CascadeName",
    "Compile",
    "Device",
    "Features",
    "Guidance",
    "More",
    "Precision",
    "RealImages",
    "Sampler",
    "Steps",
    "Strength",
    "chosen_device",
]

PER_STAGE = "One value for all stages, or stage=value,stage=value."

CascadeName = Annotated[str, typer.Argument(metavar="CASCADE", help="A cascade folder, or demo for the packaged one.")]
RealImages = Annotated[Path, typer.Option("--data", metavar="DIR", help="Prepared data: the real images.")]
Device = Annotated[str | None, typer.Option("--device", metavar="D", help="cpu, cuda, ...; default the best.")]
Precision = Annotated[
    str,
    typer.Option("--precision", metavar="P", help="fp32, bf16, or auto: bf16 where the hardware computes in it."),
]
Compile = Annotated[
    str, typer.Option("--compile", metavar="C", help="torch.compile and CUDA graphs: off, auto (on CUDA), on.")
]
BatchSize = Annotated[
    str, typer.Option("--batch-size", metavar="N|auto", help="Images at once; auto halves until they fit.")
]
Features = Annotated[
    str | None,
    typer.Option(
        "--features",
        metavar="NAME|PATH",
        help="fashion-mnist, efficientnet-lite0, inception:WEIGHTS.pth, a .pt2 file, or a folder of cdm "
        "train-classifier; default what fits the data.",
    ),
]
Cache = Annotated[
    Path | None,
    typer.Option("--cache", metavar="DIR", help="Folder for what is found of real images; default the user's cache."),
]

Steps = Annotated[str | None, typer.Option("--steps", metavar="V", help=f"Sampling steps. {PER_STAGE}")]
Sampler = Annotated[
    str | None, typer.Option("--sampler", metavar="V", help=f"ancestral, ddim, heun or dpmpp-2m. {PER_STAGE}")
]
Augmentation = Annotated[
    str | None, typer.Option("--augmentation", metavar="V", help=f"truncated, nontruncated or none. {PER_STAGE}")
]
Strength = Annotated[
    str | None, typer.Option("--s", metavar="V", help=f"Strength of the conditioning augmentation. {PER_STAGE}")
]
Guidance = Annotated[
    str | None, typer.Option("--guidance", metavar="V", help=f"Classifier-free guidance, 1 is none. {PER_STAGE}")
]
More = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="STAGE.KEY=VALUE", help="Another sampling setting, such as sr32.start=0.6."),
]


def chosen_device(name: str | None) -> torch.device:
    """The device of ``--device``, or the best; on a CPU the process keeps from now on what memory it frees.

    Raises:
        UserError: there is none of that name.
    """
    from cascaded_diffusion.memory import keep_freed
    from cascaded_diffusion.precision import pick_device

    place = pick_device(name)
    if place.type == "cpu":
        keep_freed()
    return place
