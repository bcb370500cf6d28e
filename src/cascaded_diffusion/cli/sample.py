"""``cdm sample``: images from a cascade."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cascaded_diffusion.cli.places import check_place, tell_which
from cascaded_diffusion.cli.values import batch_size as to_batch_size
from cascaded_diffusion.cli.values import check_precision, sampling_choices, split_classes, whole_from
from cascaded_diffusion.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from cascaded_diffusion.cascade.chain import Cascade, Plan

__all__ = ["sample_command"]

PER_STAGE = "One value for all stages, or stage=value,stage=value."


def sample_command(
    cascade: Annotated[str, typer.Argument(metavar="CASCADE", help="A cascade folder, or demo for the packaged one.")],
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE.npz|DIR", help="An .npz file, or a folder for PNG files.")
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
        str, typer.Option("--batch-size", metavar="N|auto", help="Images at once; auto halves until they fit.")
    ] = "auto",
    device: Annotated[
        str | None, typer.Option("--device", metavar="D", help="cpu, cuda, ...; default the best.")
    ] = None,
    rgb: Annotated[bool, typer.Option("--rgb", help="Write grey images with three channels.")] = False,
    steps: Annotated[str | None, typer.Option("--steps", metavar="V", help=f"Sampling steps. {PER_STAGE}")] = None,
    sampler: Annotated[
        str | None, typer.Option("--sampler", metavar="V", help=f"ancestral, ddim, heun or dpmpp-2m. {PER_STAGE}")
    ] = None,
    augmentation: Annotated[
        str | None, typer.Option("--augmentation", metavar="V", help=f"truncated, nontruncated or none. {PER_STAGE}")
    ] = None,
    s: Annotated[
        str | None, typer.Option("--s", metavar="V", help=f"Strength of the conditioning augmentation. {PER_STAGE}")
    ] = None,
    guidance: Annotated[
        str | None, typer.Option("--guidance", metavar="V", help=f"Classifier-free guidance, 1 is none. {PER_STAGE}")
    ] = None,
    precision: Annotated[
        str,
        typer.Option("--precision", metavar="P", help="fp32, bf16, or auto: bf16 where the hardware computes in it."),
    ] = "fp32",
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
    """Sample images from a cascade, or enlarge given ones with its super-resolution stages."""
    choices = sampling_choices(steps=steps, sampler=sampler, augmentation=augmentation, s=s, guidance=guidance)
    wanted: list[str] | list[int] | None = split_classes(classes)
    size = to_batch_size(batch_size)
    if num is not None and per_class is not None:
        raise UserError(f"--num {num} and --per-class {per_class}: give one of them")
    check_precision(precision)
    if start_stage is not None and from_images is None:
        raise UserError(f"--start-stage: {start_stage} needs --from-images to start from")
    _check_places(out, grid, stages)
    loaded = _open(cascade, device)
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
    results, labels = _run(loaded, plan, arguments)
    _write(loaded, plan, results, labels, _Places(out, grid, stages, rgb))


@dataclass(frozen=True)
class _Places:
    out: Path
    grid: Path | None
    stages: Path | None
    rgb: bool


def _check_places(out: Path, grid: Path | None, stages: Path | None) -> None:
    """Find out before sampling, not after, that a result could not be written."""
    from cascaded_diffusion.files import refuse_filled

    if out.suffix == ".npz":
        if out.is_dir():
            raise UserError(f"--out: {out} is a folder; a name that ends in .npz must be a file's")
    elif out.suffix and not out.is_dir():
        raise UserError(f"--out: {out} ends in {out.suffix}; allowed: a file that ends in .npz, or a folder")
    else:
        refuse_filled(out)
    if grid is not None and (grid.suffix != ".png" or grid.is_dir()):
        raise UserError(f"--grid: {grid} is not the name of a .png file")
    if stages is not None:
        refuse_filled(stages)
        if stages.resolve() == out.resolve():
            raise UserError(f"--stages: {stages} is --out too; give another folder")
    for option, path in (("--out", out), ("--grid", grid), ("--stages", stages)):
        if path is not None:
            check_place(option, path)


def _open(name: str, device: str | None) -> Cascade:
    from cascaded_diffusion.cascade.chain import Cascade, packaged_cascades
    from cascaded_diffusion.precision import pick_device

    tell_which("cascade", name, packaged_cascades())
    return Cascade.from_pretrained(name).to(pick_device(device))


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


def _run(cascade: Cascade, plan: Plan, arguments: dict[str, Any]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    from cascaded_diffusion.cascade.walk import FinishedImages
    from cascaded_diffusion.cli.progress import ProgressDisplay

    labels = cascade.sample_labels(
        plan, num=arguments["num"], classes=arguments["classes"], low_res=arguments["low_res"]
    )
    with ProgressDisplay() as display:
        display.begin("samples")
        callback = FinishedImages(display.advance, len(labels), plan)
        results = cascade.sample(**arguments, return_stages=True, callback=callback)
    assert isinstance(results, dict)
    return results, labels


def _write(cascade: Cascade, plan: Plan, results: dict[str, np.ndarray], labels: np.ndarray, places: _Places) -> None:
    from cascaded_diffusion.cascade.pictures import save_png
    from cascaded_diffusion.cascade.show import class_grid
    from cascaded_diffusion.samples import to_rgb, write_npz, write_png_folder

    last = plan.stages[-1].name
    images = to_rgb(results[last]) if places.rgb else results[last]
    if places.out.suffix == ".npz":
        write_npz(places.out, images, labels)
    else:
        write_png_folder(places.out, images, labels, cascade.class_names)
    typer.echo(f"{places.out}: {len(images):,} images of {images.shape[1]}x{images.shape[2]} pixels; {plan.describe()}")
    if places.grid is not None:
        save_png(class_grid(images, labels, cascade.class_names, title=plan.describe()), places.grid)
        typer.echo(f"{places.grid}: a picture of them")
    if places.stages is not None:
        for position, stage in enumerate(plan.stages):
            mark = "-predicted-z0" if plan.stop(position) > 0 else ""
            write_png_folder(places.stages / stage.name, results[stage.name], labels, cascade.class_names, mark=mark)
        typer.echo(f"{places.stages}: the images of every stage")
