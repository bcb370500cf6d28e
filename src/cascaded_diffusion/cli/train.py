"""``cdm train``: train one stage of a recipe in a run folder."""

from __future__ import annotations

from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cascaded_diffusion.cli.options import Device, chosen_device
from cascaded_diffusion.cli.places import check_place, tell_which
from cascaded_diffusion.cli.values import number_from, split_trackers, whole_from
from cascaded_diffusion.errors import UserError

if TYPE_CHECKING:
    import torch

    from cascaded_diffusion.cascade.stage import StageConfig
    from cascaded_diffusion.cli.progress import ProgressDisplay
    from cascaded_diffusion.training.loop import Progress, TrainingResult

__all__ = ["train_command"]

_MOST_WAIT = 0.02
"""Share of an interval that training may wait for data before a person is told, once."""
_LONG_ENOUGH = 5.0
"""Seconds of an interval that says something; the first batches of a run are always waited for."""
_PATIENCE = timedelta(hours=1)
"""What a process waits for the others; rank 0 alone writes checkpoints and previews, which takes its time."""


def train_command(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A packaged recipe's name or a YAML file.")],
    stage: Annotated[str, typer.Option("--stage", metavar="NAME", help="The stage to train, such as base16 or sr32.")],
    data: Annotated[Path, typer.Option("--data", metavar="DIR", help="Prepared data.")],
    out: Annotated[Path, typer.Option("--out", metavar="RUN", help="Run folder; the same command resumes it.")],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY.PATH=VALUE", help="Change a setting, e.g. training.batch_size=64."),
    ] = None,
    max_images: Annotated[
        int | None,
        typer.Option(
            "--max-images",
            parser=whole_from(1),
            metavar="N",
            help="Stop at this total, rounded up to a whole batch.",
        ),
    ] = None,
    max_seconds: Annotated[
        float | None,
        typer.Option("--max-seconds", parser=number_from(0), metavar="S", help="Stop, and save, after this time."),
    ] = None,
    device: Device = None,
    data_workers: Annotated[
        int | None,
        typer.Option(
            "--data-workers",
            parser=whole_from(0),
            metavar="N",
            help="Threads that make batches ahead, which changes no result; default 1 for a GPU, 0 on a CPU.",
        ),
    ] = None,
    allow_changes: Annotated[
        bool, typer.Option("--allow-changes", help="Resume although settings differ from the run's.")
    ] = False,
    track: Annotated[
        str | None,
        typer.Option("--track", metavar="NAME,NAME", help="Show the run in tensorboard, wandb or trackio too."),
    ] = None,
) -> None:
    """Train one stage. Each stage is a run of its own, so stages can train at the same time on different machines.

    The same command again resumes from the newest whole checkpoint. SIGTERM, Ctrl-C, SIGUSR1 and SIGHUP save and
    leave. Many GPUs: torchrun --nproc-per-node 8 -m cascaded_diffusion train ... (the batch is divided among them).
    """
    from cascaded_diffusion.recipes.packaged import packaged_names
    from cascaded_diffusion.recipes.recipe import load_recipe, stage_config

    trackers = split_trackers(track)
    tell_which("recipe", recipe, packaged_names())
    loaded = load_recipe(recipe, overrides=settings or (), stage=stage)
    loaded.stage(stage)
    from cascaded_diffusion.cli.progress import ProgressDisplay
    from cascaded_diffusion.data.prepared import PreparedData
    from cascaded_diffusion.ranks import launched_ranks
    from cascaded_diffusion.training.loop import train

    prepared = PreparedData.open(data)
    config = stage_config(
        loaded, stage, channels=prepared.channels, classes=prepared.classes, class_names=prepared.class_names
    )
    if out.exists() and not out.is_dir():
        raise UserError(f"--out: {out} is a file; give a folder")
    check_place("--out", out)
    place = chosen_device(device)
    with launched_ranks(place, timeout=_PATIENCE) as ranks:
        if ranks.is_main:
            _warn_of_attention(config, place, ranks.world)
        with ProgressDisplay() if ranks.is_main else nullcontext() as display:
            result = train(
                config,
                prepared,
                out,
                device=place,
                max_images=max_images,
                max_seconds=max_seconds,
                allow_changes=allow_changes,
                data_workers=data_workers,
                watch=None if display is None else _Watcher(display, stage),
                trackers=trackers,
            )
        if ranks.is_main:
            _tell(stage, result)
    if result.signal is not None:
        raise typer.Exit(128 + result.signal)


def _warn_of_attention(config: StageConfig, device: torch.device, world: int) -> None:
    """One line before any memory is taken; only what torch chooses later decides whether it comes to that."""
    from cascaded_diffusion.cascade.budget import StageBudget, too_large_attention
    from cascaded_diffusion.memory import total_memory

    memory = total_memory(device)
    images = StageBudget(config, config.training.batch_size, world).share
    warning = None if memory is None else too_large_attention(config, images, memory)
    if warning is not None:
        typer.echo(warning, err=True)


def _tell(stage: str, result: TrainingResult) -> None:
    typer.echo(f"{stage}: {result.images:,} images seen; checkpoint {result.checkpoint}")
    if result.signal is not None:
        typer.echo("stopped by a signal with everything saved; the same command goes on", err=True)


class _Watcher:
    """Shows the loop's progress; counts speed from where this process began, not the run."""

    def __init__(self, display: ProgressDisplay, stage: str) -> None:
        self._display, self._stage = display, stage
        self._begun = self._warned = False
        self._last = 0

    def __call__(self, progress: Progress) -> None:
        if not self._begun:
            self._display.begin(self._stage, progress.images)
            self._begun, self._last = True, progress.images
        self._display.advance(self._stage, progress.images, progress.target)
        if progress.metrics is not None:
            metrics = progress.metrics
            loss = "not finite" if metrics["loss"] is None else f"{metrics['loss']:.4f}"
            self._display.note(
                f"{self._stage}: {metrics['images']:,} images, loss {loss}, lr {metrics['lr']:.2e}, "
                f"{metrics['images_per_second']:.1f} images/s, {metrics['data_wait']:.1%} waiting for data"
            )
            seconds = (metrics["images"] - self._last) / metrics["images_per_second"]
            self._last = metrics["images"]
            if metrics["data_wait"] > _MOST_WAIT and seconds >= _LONG_ENOUGH and not self._warned:
                self._warned = True
                self._display.note(
                    f"{self._stage}: {metrics['data_wait']:.1%} of the time went into waiting for data, more than "
                    f"{_MOST_WAIT:.0%}; try a larger --data-workers, or a faster disk"
                )
