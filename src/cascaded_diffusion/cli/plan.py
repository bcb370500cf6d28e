"""``cdm plan``: what a recipe costs, before anything runs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from cascaded_diffusion.cli.places import tell_which
from cascaded_diffusion.cli.values import whole_from
from cascaded_diffusion.errors import UserError

if TYPE_CHECKING:
    from cascaded_diffusion.cascade.stage import StageConfig

__all__ = ["plan_command"]

PEAK_TFLOPS = {"a100": 312, "h100": 989, "h200": 989, "b200": 2250, "rtx4090": 165}
"""Dense bf16 matrix rates from the makers' data sheets, TFLOP/s."""
ASSUMED_UTILISATION = 0.3


def plan_command(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A packaged recipe's name or a YAML file.")],
    gpus: Annotated[
        int, typer.Option("--gpus", parser=whole_from(1), metavar="N", help="GPUs that share the global batch.")
    ] = 1,
    gpu: Annotated[str, typer.Option("--gpu", metavar="NAME", help=f"One of {', '.join(PEAK_TFLOPS)}.")] = "h100",
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size", parser=whole_from(1), metavar="N", help="Global batch size instead of the recipe's."
        ),
    ] = None,
) -> None:
    """Parameters, FLOPs, estimated training memory and time of every stage, found on the meta device.

    Time is arithmetic from 3 x forward FLOPs and an assumed share of the GPU's matrix rate, not a measurement.
    """
    if gpu not in PEAK_TFLOPS:
        raise UserError(f"--gpu: {gpu!r} is not known; allowed: {', '.join(PEAK_TFLOPS)}")
    from cascaded_diffusion.recipes.packaged import packaged_names
    from cascaded_diffusion.recipes.recipe import load_recipe, stage_config

    tell_which("recipe", recipe, packaged_names())
    loaded = load_recipe(recipe)
    channels = 3 if loaded.channels == "from-data" else loaded.channels
    classes = None if loaded.classes == "from-data" else loaded.classes
    assumed = [
        f"{what} from the data, taken as {value}"
        for what, given, value in (("channels", loaded.channels, "3"), ("classes", loaded.classes, "none"))
        if given == "from-data"
    ]
    if assumed:
        typer.echo(f"{loaded.name}: {'; '.join(assumed)}")
    rows = [HEADER]
    for stage in loaded.stages:
        config = stage_config(loaded, stage.name, channels=channels, classes=classes, class_names=None)
        rows.append(_row(config, batch_size or stage.training.batch_size, gpus, PEAK_TFLOPS[gpu] * 1e12))
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADER))]
    for row in rows:
        typer.echo("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    typer.echo(
        "memory: fp32 weights, gradients, Adam, averages and activations of one GPU's share of the batch, "
        f"{gpus} GPU(s); time: at {ASSUMED_UTILISATION:.0%} of {gpu}'s {PEAK_TFLOPS[gpu]} TFLOP/s, "
        "which is assumed and not measured"
    )


HEADER = [
    "stage",
    "parameters",
    "forward GFLOP/image",
    "batch",
    "training memory",
    "images",
    "training FLOP",
    "GPU-hours",
    "hours",
]


def _row(config: StageConfig, batch: int, gpus: int, peak: float) -> list[str]:
    import torch

    from cascaded_diffusion.cascade.stage import build_network
    from cascaded_diffusion.networks.cost import cost

    with torch.device("meta"):
        network = build_network(config)
    price = cost(network)
    share = min(config.training.micro_batch or batch, -(-batch // gpus))
    # A network without attention, the only kind that trains on crops, computes and keeps in proportion to the pixels.
    area = ((config.training.crop or config.resolution) / config.resolution) ** 2
    price_of_training = replace(
        price,
        forward_flops=round(price.forward_flops * area),
        activation_bytes=round(price.activation_bytes * area),
    )
    total = price_of_training.training_flops(config.training.images)
    emas = len(config.training.ema_half_lives) + len(config.training.power_ema)
    gpu_hours = total / (peak * ASSUMED_UTILISATION) / 3600
    return [
        config.name,
        f"{_figure(price.parameters / 1e6)} M",
        _figure(price.forward_flops / 1e9),
        f"{batch:,}",
        f"{_figure(price_of_training.training_bytes(share, emas=emas) / 2**30)} GiB",
        f"{config.training.images:,}",
        f"{total:.2e}",
        _figure(gpu_hours),
        _figure(gpu_hours / gpus),
    ]


def _figure(value: float) -> str:
    if value >= 10:
        return f"{value:,.1f}"
    return f"{value:.2g}" if value >= 0.001 else "<0.001"
