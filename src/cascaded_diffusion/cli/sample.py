"""``cdm sample``: images from a cascade."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cascaded_diffusion.cli.options import (
    PER_STAGE,
    Augmentation,
    CascadeName,
    Compile,
    Device,
    Guidance,
    More,
    Precision,
    Sampler,
    Steps,
    Strength,
    chosen_device,
)
from cascaded_diffusion.cli.places import check_place, tell_which
from cascaded_diffusion.cli.values import (
    batch_sizes,
    check_compile,
    check_precision,
    sampling_choices,
    split_classes,
    whole_from,
)
from cascaded_diffusion.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import torch

    from cascaded_diffusion.cascade.chain import Cascade, Plan
    from cascaded_diffusion.cascade.sample_store import BatchStore
    from cascaded_diffusion.cascade.walk import Watch
    from cascaded_diffusion.cli.progress import ProgressDisplay
    from cascaded_diffusion.networks.compiling import CompileChoice

__all__ = ["sample_command"]


def sample_command(
    cascade: CascadeName,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            metavar="FILE.npz|DIR",
            help="An .npz file, replaced if it is there, or a new or empty folder for PNG files.",
        ),
    ],
    classes: Annotated[
        str | None, typer.Option("--classes", metavar="3,Bag", help="Class ids or names; default all.")
    ] = None,
    num: Annotated[
        int | None,
        typer.Option("--num", parser=whole_from(1), metavar="N", help="How many; they cycle through the classes."),
    ] = None,
    per_class: Annotated[
        int | None, typer.Option("--per-class", parser=whole_from(1), metavar="N", help="How many of each class.")
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", parser=whole_from(0), metavar="N", help="Equal seeds give equal images.")
    ] = 0,
    batch_size: Annotated[
        str,
        typer.Option(
            "--batch-size",
            metavar="N|auto",
            help=f"Images at once; auto goes by the memory and halves until they fit. {PER_STAGE}",
        ),
    ] = "auto",
    offload: Annotated[
        bool,
        typer.Option("--offload", help="Only the stage at work is on the device, the others wait in host memory."),
    ] = False,
    device: Device = None,
    rgb: Annotated[bool, typer.Option("--rgb", help="Write grey images with three channels.")] = False,
    steps: Steps = None,
    sampler: Sampler = None,
    augmentation: Augmentation = None,
    s: Strength = None,
    guidance: Guidance = None,
    more: More = None,
    precision: Precision = "fp32",
    compiling: Compile = "off",
    grid: Annotated[
        Path | None, typer.Option("--grid", metavar="FILE.png", help="Also write a labelled picture.")
    ] = None,
    stages: Annotated[
        Path | None, typer.Option("--stages", metavar="DIR", help="Also write the images of every stage.")
    ] = None,
    until: Annotated[str | None, typer.Option("--until", metavar="STAGE", help="The last stage to run.")] = None,
    from_images: Annotated[
        Path | None, typer.Option("--from-images", metavar="DIR|NPZ", help="Enlarge these images instead.")
    ] = None,
    start_stage: Annotated[
        str | None, typer.Option("--start-stage", metavar="STAGE", help="The stage that --from-images starts from.")
    ] = None,
) -> None:
    """Sample images from a cascade, or enlarge given ones with its super-resolution stages.

    Many GPUs: torchrun --nproc-per-node 8 -m -- cascaded_diffusion sample ... (the -- keeps torchrun from reading
    --num); the images are the same.
    """
    choices = sampling_choices(
        steps=steps, sampler=sampler, augmentation=augmentation, s=s, guidance=guidance, more=more
    )
    wanted: list[str] | list[int] | None = split_classes(classes)
    size = batch_sizes(batch_size)
    if num is not None and per_class is not None:
        raise UserError(f"--num {num} and --per-class {per_class}: give one of them")
    check_precision(precision)
    compile_choice = check_compile(compiling, offload=offload)
    if start_stage is not None and from_images is None:
        raise UserError(f"--start-stage: {start_stage} needs --from-images to start from")
    _check_places(out, grid, stages)
    from cascaded_diffusion.ranks import launched_ranks

    place = chosen_device(device)
    with launched_ranks(place):
        loaded = _open(cascade, place, offload=offload)
        names = list(loaded.stages)
        if from_images is not None and start_stage is None:
            start_stage = names[min(1, len(names) - 1)]
        plan = loaded.plan(**choices, start_stage=start_stage, until=until)
        low_res, given_labels = _given(from_images, plan)
        if given_labels is not None and wanted is None and loaded.classes is not None:
            wanted = given_labels
        if per_class is not None:
            if low_res is not None:
                raise UserError(f"--per-class {per_class}: does not go with --from-images, which gives the number")
            num = per_class * len(loaded.class_ids(wanted) or [0])
        arguments: dict[str, Any] = {
            **choices,
            "num": num,
            "classes": wanted,
            "seed": seed,
            "batch_size": size,
            "low_res": low_res,
            "start_stage": start_stage,
            "until": until,
            "precision": precision,
        }
        _run(loaded, plan, arguments, _Places(out, grid, stages, rgb), compile_choice)


@dataclass(frozen=True)
class _Places:
    out: Path
    grid: Path | None
    stages: Path | None
    rgb: bool


_OTHER_FILES = {
    ".gif",
    ".gz",
    ".jpeg",
    ".jpg",
    ".json",
    ".npy",
    ".npz",
    ".png",
    ".pt",
    ".safetensors",
    ".tar",
    ".webp",
    ".zip",
}
"""Endings that nobody gives a folder."""


def _check_places(out: Path, grid: Path | None, stages: Path | None) -> None:
    """Find out before sampling, not after, that a result could not be written."""
    from cascaded_diffusion.files import refuse_filled

    if out.suffix == ".npz":
        if out.is_dir():
            raise UserError(f"--out: {out} is a folder; a name that ends in .npz must be a file's")
    elif out.suffix.lower() in _OTHER_FILES and not out.is_dir():
        raise UserError(f"--out: {out} ends in {out.suffix}; allowed: a file that ends in .npz, or a folder")
    elif not _is_begun(out):
        refuse_filled(out)
    if grid is not None and (grid.suffix != ".png" or grid.is_dir()):
        raise UserError(f"--grid: {grid} is not the name of a .png file")
    if stages is not None:
        if not _is_begun(out):
            refuse_filled(stages)
        if stages.resolve() == out.resolve():
            raise UserError(f"--stages: {stages} is --out too; give another folder")
    places = {option: path for option, path in (("--out", out), ("--grid", grid), ("--stages", stages)) if path}
    for holder in ("--out", "--stages"):
        for option, path in places.items():
            if holder in places and places[holder].resolve() in path.resolve().parents:
                raise UserError(
                    f"{option}: {path} lies in {holder}, which holds its own images alone; give another place"
                )
    for option, path in places.items():
        check_place(option, path)


def _is_begun(out: Path) -> bool:
    """Whether an interrupted command may have put there what is there; ``_refuse_others`` then looks closer."""
    from cascaded_diffusion.cascade.sample_store import store_folder

    return store_folder(out).is_dir()


def _open(name: str, device: torch.device, *, offload: bool) -> Cascade:
    from cascaded_diffusion.cascade.chain import Cascade
    from cascaded_diffusion.cascade.find import packaged_cascades

    tell_which("cascade", name, packaged_cascades())
    return Cascade.from_pretrained(name).to(device, offload=offload)


def _given(path: Path | None, plan: Plan) -> tuple[np.ndarray | None, list[int] | None]:
    if path is None:
        return None, None
    from cascaded_diffusion.data.given import read_given_images

    first = plan.stages[0]
    conditioning = first.config.conditioning
    if conditioning is None or conditioning.low_resolution is None:
        raise UserError(f"--from-images: {first.name} is a base stage and takes no images; name an SR stage")
    given = read_given_images(path, conditioning.low_resolution, first.config.channels)
    return given.images, None if given.labels is None else [int(label) for label in given.labels]


def _run(cascade: Cascade, plan: Plan, arguments: dict[str, Any], places: _Places, compiling: CompileChoice) -> None:
    from cascaded_diffusion.cascade.sample_store import batch_store, sampling_request
    from cascaded_diffusion.precision import settled_precision
    from cascaded_diffusion.ranks import current_ranks, from_main

    low_res = arguments["low_res"]
    labels = cascade.sample_labels(plan, num=arguments["num"], classes=arguments["classes"], low_res=low_res)
    request = sampling_request(
        plan,
        labels,
        low_res,
        device=cascade.device,
        **{key: arguments[key] for key in ("seed", "batch_size")},
        precision=settled_precision(arguments["precision"], cascade.device),
        **({} if compiling == "off" else {"compile": compiling}),
    )
    if compiling != "off":
        cascade.accelerate(compile=compiling)
    with batch_store(places.out, request) as store:
        from_main(lambda: _refuse_others(cascade, plan, labels, places, resumed=store.resumed))
        try:
            if current_ranks().world == 1:
                _sample(cascade, plan, arguments, len(labels), store)
            else:
                _sample_together(cascade, plan, arguments, labels, store)
            if current_ranks().is_main:
                _write(cascade, plan, store, labels, places)
        except (KeyboardInterrupt, SystemExit):
            if store.images and current_ranks().is_main:
                line = f"{store.images:,} of {len(labels):,} images are kept; the same command goes on from there"
                typer.echo(line, err=True)
            raise


def _sample(cascade: Cascade, plan: Plan, arguments: dict[str, Any], count: int, store: BatchStore) -> None:
    """Make all images; they go to the store and not into memory, however many there are."""
    from cascaded_diffusion.cascade.walk import FinishedImages
    from cascaded_diffusion.cli.progress import ProgressDisplay

    with ProgressDisplay() as display:
        done = store.images
        display.begin("samples", done)
        callback = FinishedImages(display.advance, count, plan, done=done)
        cascade.sample(**arguments, callback=callback, keep=store, collect=False)


def _sample_together(
    cascade: Cascade, plan: Plan, arguments: dict[str, Any], labels: np.ndarray, store: BatchStore
) -> None:
    """As ``_sample``, each process of the launch a part; rank 0 shows how far all are."""
    from cascaded_diffusion.cascade.sample_ranks import fill_store
    from cascaded_diffusion.cli.progress import ProgressDisplay
    from cascaded_diffusion.ranks import current_ranks

    choices = {key: arguments[key] for key in ("seed", "batch_size", "precision")}
    is_main, count = current_ranks().is_main, len(labels)
    with ProgressDisplay() if is_main else nullcontext() as display:
        watch = None if display is None else _everyones_progress(display, store, plan, count)
        fill_store(
            plan,
            labels,
            arguments["low_res"],
            store,
            device=cascade.device,
            watch=watch,
            offloaded=cascade.offloaded,
            **choices,
        )
        if display is not None:
            display.advance("samples", count, count)


def _everyones_progress(display: ProgressDisplay, store: BatchStore, plan: Plan, count: int) -> Callable[[int], Watch]:
    """Shows the images that all processes have kept, and this one's share of steps on its way to the next."""
    from cascaded_diffusion.cascade.walk import FinishedImages

    kept, saved, asked = store.images, 0, time.monotonic()
    display.begin("samples", kept)

    def show(what: str, done: int, total: int) -> None:
        nonlocal kept, saved, asked
        kept, saved = kept + store.saved - saved, store.saved
        if time.monotonic() - asked > 1:
            kept, asked = store.images, time.monotonic()
        display.advance(what, min(kept + max(done - store.saved, 0), count), count)

    return lambda mine: FinishedImages(show, mine, plan)


def _png_places(cascade: Cascade, plan: Plan, labels: np.ndarray, places: _Places) -> dict[Path, list[str]]:
    """The folders of PNG files that were asked for, and the names of their files."""
    from cascaded_diffusion.samples import png_names

    found: dict[Path, list[str]] = {}
    if places.stages is not None:
        marks = {stage.name: _mark(plan, position) for position, stage in enumerate(plan.stages)}
        found[places.stages] = [
            f"{name}/{path}" for name, mark in marks.items() for path in png_names(labels, cascade.class_names, mark)
        ]
    if places.out.suffix != ".npz":
        found[places.out] = png_names(labels, cascade.class_names)
    return found


def _mark(plan: Plan, position: int) -> str:
    return "-predicted-z0" if plan.stop(position) > 0 else ""


def _is_written(folder: Path, names: list[str]) -> bool:
    """Whether a folder holds just these files. As a whole it appears, so it is then what an earlier process wrote."""
    return sorted(names) == sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def _refuse_others(cascade: Cascade, plan: Plan, labels: np.ndarray, places: _Places, *, resumed: bool) -> None:
    """``UserError`` for a folder with something else in it than what this very command wrote before it was killed."""
    from cascaded_diffusion.files import refuse_filled

    for folder, names in _png_places(cascade, plan, labels, places).items():
        if not (resumed and _is_written(folder, names)):
            refuse_filled(folder)


def _write(cascade: Cascade, plan: Plan, store: BatchStore, labels: np.ndarray, places: _Places) -> None:
    """Write what was asked for, ``--out`` last; a folder that an earlier process has written is left as it is."""
    from cascaded_diffusion.cascade.show import class_grid, grid_choice
    from cascaded_diffusion.files import new_folder
    from cascaded_diffusion.pictures import save_png
    from cascaded_diffusion.samples import write_npz, write_png_folder

    images, names = store.stage(plan.stages[-1].name, rgb=places.rgb), cascade.class_names
    missing = [
        folder for folder, files in _png_places(cascade, plan, labels, places).items() if not _is_written(folder, files)
    ]
    if places.stages in missing:
        with new_folder(places.stages) as made:
            for position, stage in enumerate(plan.stages):
                mark = _mark(plan, position)
                write_png_folder(made / stage.name, store.stage(stage.name), labels, names, mark=mark)
    if places.grid is not None:
        shown = grid_choice(labels)
        save_png(class_grid(images.rows(shown), labels[shown], names, title=plan.describe()), places.grid)
    if places.out.suffix == ".npz":
        write_npz(places.out, images, labels)
    elif places.out in missing:
        write_png_folder(places.out, images, labels, names)
    typer.echo(f"{places.out}: {len(images):,} images of {images.shape[1]}x{images.shape[2]} pixels; {plan.describe()}")
    if places.grid is not None:
        typer.echo(f"{places.grid}: a picture of them")
    if places.stages is not None:
        typer.echo(f"{places.stages}: the images of every stage")
