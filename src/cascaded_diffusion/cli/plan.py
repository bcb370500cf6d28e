"""``cdm plan``: what a recipe costs, before anything runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cascaded_diffusion.cli.places import tell_which
from cascaded_diffusion.cli.values import number_from, whole_from
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.hardware import DEFAULT_GPU, GPUS, Gpu, detect_gpu, find_gpu

if TYPE_CHECKING:
    from cascaded_diffusion.cascade.budget import StageBudget
    from cascaded_diffusion.recipes.recipe import Recipe

__all__ = ["plan_command"]

ASSUMED_UTILISATION = 0.3


def plan_command(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A packaged recipe's name or a YAML file.")],
    gpus: Annotated[
        int, typer.Option("--gpus", parser=whole_from(1), metavar="N", help="GPUs that share the global batch.")
    ] = 1,
    gpu: Annotated[
        str | None,
        typer.Option(
            "--gpu",
            metavar="NAME",
            help=f"One of {', '.join(GPUS)}, or GIB:TFLOPS; default the one of this machine, or {DEFAULT_GPU}.",
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size", parser=whole_from(1), metavar="N", help="Global batch size instead of the recipe's."
        ),
    ] = None,
    mfu: Annotated[
        float,
        typer.Option(
            "--mfu",
            parser=number_from(0),
            metavar="SHARE",
            help=f"Assumed share of the GPU's matrix rate; default {ASSUMED_UTILISATION:g}.",
        ),
    ] = ASSUMED_UTILISATION,
    price: Annotated[
        float | None,
        typer.Option("--price", parser=number_from(0), metavar="P", help="Of a GPU for an hour: adds what it costs."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON instead.")] = False,
) -> None:
    """Parameters, FLOPs, memory and time of every stage, in training and in sampling, found on the meta device.

    Time is arithmetic from operations and an assumed share of the GPU's matrix rate, not a measurement. Training
    counts 3 x the forward pass, sampling the default settings' evaluations, twice with guidance.
    """
    if not 0 < mfu <= 1:
        raise UserError(f"--mfu: {mfu:g} is not a share; allowed: above 0, at most 1")
    chosen = find_gpu(gpu) if gpu is not None else detect_gpu() or find_gpu(DEFAULT_GPU)
    from cascaded_diffusion.recipes.packaged import packaged_names
    from cascaded_diffusion.recipes.recipe import load_recipe

    tell_which("recipe", recipe, packaged_names())
    loaded = load_recipe(recipe)
    budgets, assumed = _budgets(loaded, batch_size, gpus)
    figures = [_figures(budget, chosen, mfu, price) for budget in budgets]
    if as_json:
        device = {"name": chosen.name, "memory": chosen.memory, "bf16_flops": chosen.peak, "source": chosen.source}
        told = {"recipe": loaded.name, "gpus": gpus, "gpu": device, "mfu": mfu, "assumed": assumed, "stages": figures}
        typer.echo(json.dumps(told, indent=2))
        return
    if assumed:
        typer.echo(f"{loaded.name}: {'; '.join(assumed)}")
    _tell(figures, chosen, gpus, mfu, price)


def _budgets(recipe: Recipe, batch_size: int | None, gpus: int) -> tuple[list[StageBudget], list[str]]:
    """Every stage's, and in words what the data would settle."""
    from cascaded_diffusion.cascade.budget import StageBudget
    from cascaded_diffusion.recipes.recipe import stage_config

    channels = 3 if recipe.channels == "from-data" else recipe.channels
    classes = None if recipe.classes == "from-data" else recipe.classes
    assumed = [
        f"{what} from the data, taken as {value}"
        for what, given, value in (("channels", recipe.channels, "3"), ("classes", recipe.classes, "none"))
        if given == "from-data"
    ]
    for stage in recipe.stages:
        batch = batch_size or stage.training.batch_size
        if batch % gpus:
            raise UserError(f"--gpus: {gpus} does not divide {stage.name}'s batch of {batch}, which training refuses")
    budgets = [
        StageBudget(
            stage_config(recipe, stage.name, channels=channels, classes=classes, class_names=None),
            batch_size or stage.training.batch_size,
            gpus,
        )
        for stage in recipe.stages
    ]
    return budgets, assumed


def _figures(budget: StageBudget, gpu: Gpu, mfu: float, price: float | None) -> dict[str, Any]:
    """All of a stage's figures, in bytes, operations and seconds."""
    from cascaded_diffusion.cascade.budget import attentions, images_per_second, too_large_attention

    config, seconds = budget.config, budget.gpu_seconds(gpu.peak, mfu)
    return {
        "stage": config.name,
        "parameters": budget.price.parameters,
        "forward_flops": budget.price.forward_flops,
        "training": {
            "flops_an_image": budget.training_flops,
            "batch": budget.batch,
            "micro_batch": budget.share,
            "bytes": budget.state_bytes | {"activations": budget.share * budget.activation_bytes},
            "total_bytes": budget.training_bytes(budget.share),
            "largest_micro_batch": budget.largest_micro_batch(gpu.memory),
            "images": config.training.images,
            "total_flops": budget.training_flops * config.training.images,
            "images_per_second": budget.gpus * images_per_second(budget.training_flops, gpu.peak, mfu),
            "gpu_hours": seconds / 3600,
            "days": seconds / budget.gpus / 86400,
            "cost": None if price is None else price * seconds / 3600,
        },
        "sampling": {
            "evaluations": budget.evaluations,
            "forward_passes": budget.passes,
            "guided": budget.is_guided,
            "flops_an_image": budget.sampling_flops,
            "images_per_second": budget.gpus * images_per_second(budget.sampling_flops, gpu.peak, mfu),
            "bytes_an_image": budget.sampling_bytes,
            "largest_batch": budget.largest_sampling_batch(gpu.memory),
        },
        "attention": [
            {
                "resolution": one.resolution,
                "positions": one.tokens,
                "heads": one.heads,
                "layers": one.layers,
                "pair_bytes_an_image": one.layers * one.pair_bytes(),
                "fused_bytes_an_image": one.layers * one.fused_bytes(),
            }
            for one in attentions(config)
        ],
        "warning": too_large_attention(config, budget.share, gpu.memory),
    }


def _tell(figures: Sequence[dict[str, Any]], gpu: Gpu, gpus: int, mfu: float, price: float | None) -> None:
    _table([_training_row(each, price) for each in figures])
    typer.echo("")
    _table([_memory_row(each) for each in figures])
    typer.echo("")
    _table([_sampling_row(each) for each in figures])
    typer.echo("")
    typer.echo(
        f"time: {gpus} GPU(s) at {mfu:.0%} of {gpu.name}'s {gpu.peak / 1e12:g} TFLOP/s (dense bf16; {gpu.source}), "
        "which is assumed and not measured"
    )
    typer.echo(
        "memory: an estimate, float32, of one GPU. Weights, gradients, Adam's two moments and each average take 4 "
        "bytes a parameter; activations are those of one forward pass. What fits leaves 10% of "
        f"{gpu.memory / 2**30:.0f} GiB to the driver, work space and fragmentation"
    )
    for each in figures:
        largest, share = each["training"]["largest_micro_batch"], each["training"]["micro_batch"]
        if not largest:
            typer.echo(f"{each['stage']}: not one image fits in training on {gpu.name}")
        elif largest < share:
            batch = each["training"]["batch"]
            fitting = max(n for n in range(1, largest + 1) if batch % n == 0)
            typer.echo(
                f"{each['stage']}: {share} images a forward pass do not fit; --set training.micro_batch={fitting} "
                f"does, and keeps the global batch of {batch:,}"
            )
        if each["warning"]:
            typer.echo(each["warning"])


def _training_row(each: dict[str, Any], price: float | None) -> dict[str, str]:
    training = each["training"]
    row = {
        "stage": each["stage"],
        "parameters": f"{_figure(each['parameters'] / 1e6)} M",
        "forward GFLOP/image": _figure(each["forward_flops"] / 1e9),
        "batch": f"{training['batch']:,}",
        "training memory": _bytes(training["total_bytes"]),
        "images": f"{training['images']:,}",
        "training FLOP": f"{training['total_flops']:.2e}",
        "images/s": _figure(training["images_per_second"]),
        "GPU-hours": _figure(training["gpu_hours"]),
        "days": _figure(training["days"]),
    }
    return row if price is None else row | {"cost": _figure(training["cost"])}


def _memory_row(each: dict[str, Any]) -> dict[str, str]:
    training = each["training"]
    parts = {name: _bytes(size) for name, size in training["bytes"].items()}
    return {
        "training": each["stage"],
        "images a pass": f"{training['micro_batch']:,}",
        **parts,
        "most images that fit": f"{training['largest_micro_batch']:,}",
    }


def _sampling_row(each: dict[str, Any]) -> dict[str, str]:
    sampling = each["sampling"]
    return {
        "sampling": each["stage"],
        "evaluations": f"{sampling['evaluations']:,}",
        "forward passes": f"{sampling['forward_passes']:,}",
        "GFLOP/image": _figure(sampling["flops_an_image"] / 1e9),
        "images/s": _figure(sampling["images_per_second"]),
        "memory an image": _bytes(sampling["bytes_an_image"]),
        "most images that fit": f"{sampling['largest_batch']:,}",
    }


def _table(rows: Sequence[dict[str, str]]) -> None:
    cells = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        typer.echo("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))


def _bytes(size: float) -> str:
    return f"{_figure(size / 2**30)} GiB" if size >= 2**27 else f"{_figure(size / 2**20)} MiB"


def _figure(value: float) -> str:
    if value >= 10:
        return f"{value:,.1f}"
    return f"{value:.2g}" if value >= 0.001 else "<0.001"
