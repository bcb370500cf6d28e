"""``cdm search``: find the best s, steps, guidance, sampling schedule or start of a stage by score."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cascaded_diffusion.cli.options import (
    BatchSize,
    Cache,
    CascadeName,
    Compile,
    Device,
    Features,
    Precision,
    RealImages,
    chosen_device,
)
from cascaded_diffusion.cli.places import check_place, open_features, tell_which
from cascaded_diffusion.cli.values import batch_size as to_batch_size
from cascaded_diffusion.cli.values import check_compile, check_precision, split_trackers, to_number, whole_from
from cascaded_diffusion.errors import UserError

if TYPE_CHECKING:
    import torch

    from cascaded_diffusion.cascade.search import Search
    from cascaded_diffusion.cascade.search_forecast import Forecast
    from cascaded_diffusion.cascade.search_store import SearchRecord, StageResult
    from cascaded_diffusion.cascade.search_sweep import Sweep

__all__ = ["search_command"]


def search_command(
    cascade: CascadeName,
    data: RealImages,
    stage: Annotated[
        str, typer.Option("--stage", metavar="NAME,NAME|all", help="Stages to search, each with the best below it.")
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder for all that is made; the same command again resumes.")
    ],
    s: Annotated[
        str | None, typer.Option("--s", metavar="0,0.1,...", help="Strengths to try. [default: 0,0.05,...,0.5]")
    ] = None,
    augmentation: Annotated[
        str | None,
        typer.Option("--augmentation", metavar="MODE,MODE", help="truncated, nontruncated. [default: both]"),
    ] = None,
    steps: Annotated[str | None, typer.Option("--steps", metavar="5,10,25", help="Sampling steps to try.")] = None,
    guidance: Annotated[
        str | None, typer.Option("--guidance", metavar="1,1.5", help="Guidance scales to try, 1 is none.")
    ] = None,
    endpoints: Annotated[
        str | None,
        typer.Option(
            "--endpoints",
            metavar="1e-4:0.18,...",
            help="First and last betas of linear sampling schedules to try, for stages in continuous time.",
        ),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--start",
            metavar="1,0.7,...",
            help="Times at which SR stages start from the enlarged image, to try; 1 is from noise.",
        ),
    ] = None,
    guide: Annotated[
        str | None,
        typer.Option("--guide", metavar="1,1.5,...", help="Weights of a stage's guide to try, 1 is none."),
    ] = None,
    guidance_interval: Annotated[
        str | None,
        typer.Option(
            "--guidance-interval",
            metavar="none,0.3:5,...",
            help="Sigmas between which guidance and guide act, to try; none is everywhere.",
        ),
    ] = None,
    grid: Annotated[
        str | None,
        typer.Option(
            "--grid",
            metavar="time,edm,log-snr",
            help="What the levels of stages in continuous time are even in, to try.",
        ),
    ] = None,
    num: Annotated[int, typer.Option("--num", parser=whole_from(2), metavar="N", help="Samples a point.")] = 10_000,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tell points, passes and time, and write nothing.")
    ] = False,
    no_write: Annotated[bool, typer.Option("--no-write", help="Leave the cascade's defaults as they are.")] = False,
    features: Features = None,
    split: Annotated[str, typer.Option("--split", metavar="train|val", help="Real images to compare with.")] = "train",
    cache: Cache = None,
    seed: Annotated[
        int, typer.Option("--seed", parser=whole_from(0), metavar="N", help="Of the samples, shared by all points.")
    ] = 0,
    batch_size: BatchSize = "auto",
    device: Device = None,
    precision: Precision = "fp32",
    compiling: Compile = "off",
    track: Annotated[
        str | None,
        typer.Option("--track", metavar="NAME,NAME", help="Show the curves in tensorboard, wandb or trackio too."),
    ] = None,
) -> None:
    """Find the best s, steps, guidance, sampling schedule or start by score, and make it the cascade's default.

    All combinations of the settings given are tried; s in every mode if none is. Many GPUs: torchrun --nproc-per-node 8
    -m -- cascaded_diffusion search ... (the -- keeps torchrun from reading --num).
    """
    sweep = _sweep(
        {
            "s": _numbers("--s", s),
            "augmentation": _words("--augmentation", augmentation, ("truncated", "nontruncated"), " (s = 0 is none)"),
            "steps": _steps(steps),
            "guidance": _numbers("--guidance", guidance),
            "endpoints": _pairs("--endpoints", endpoints, "1e-4:0.18"),
            "start": _numbers("--start", start),
            "guide": _numbers("--guide", guide),
            "guidance_interval": _pairs("--guidance-interval", guidance_interval, "0.3:5", none=True),
            "grid": _words("--grid", grid, ("time", "edm", "log-snr")),
        }
    )
    check_precision(precision)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out: {out} is a file; give a folder")
    if not dry_run:
        check_place("--out", out)
    settings: dict[str, Any] = {
        "stage": stage,
        "sweep": sweep,
        "split": split,
        "num": num,
        "seed": seed,
        "batch_size": to_batch_size(batch_size),
        "precision": precision,
        "compile": check_compile(compiling),
    }
    trackers = split_trackers(track)
    _run(_Asked(cascade, data, features, out, cache, device, dry_run, no_write, trackers), settings)


@dataclass(frozen=True)
class _Asked:
    cascade: str
    data: Path
    features: str | None
    out: Path
    cache: Path | None
    device: str | None
    dry_run: bool
    no_write: bool
    trackers: tuple[str, ...]


def _sweep(values: dict[str, Any]) -> Sweep:
    from pydantic import ValidationError

    from cascaded_diffusion.cascade.search_sweep import Sweep
    from cascaded_diffusion.config import explain

    try:
        return Sweep.model_validate(values)
    except ValidationError as error:
        # Its paths are the model's, "start.0"; who typed it knows the option.
        said = re.sub(r"\A(\w+)(\.\d+)+(?=: )", lambda path: "--" + path[1].replace("_", "-"), explain(error))
        raise UserError(said) from None


def _words(option: str, text: str | None, allowed: Sequence[str], note: str = "") -> list[str] | None:
    words = _listed(option, text)
    for word in words or ():
        if word not in allowed:
            raise UserError(f"{option}: {word!r} is not known; allowed: {', '.join(allowed)}{note}")
    return words


def _listed(option: str, text: str | None) -> list[str] | None:
    if text is None:
        return None
    words = [word.strip() for word in text.split(",")]
    if not all(words):
        raise UserError(f"{option}: {text!r} has an empty entry; give values separated by commas")
    return words


def _steps(text: str | None) -> list[str] | None:
    words = _listed("--steps", text)
    for word in words or ():
        number = word.removeprefix("ddim")
        if not number.isascii() or not number.isdigit() or len(number) > 9 or int(number) < 1:
            raise UserError(f"--steps: {word!r} is not allowed; give numbers from 1, or ddimN")
    return words


def _numbers(option: str, text: str | None) -> list[float] | None:
    words = _listed(option, text)
    return None if words is None else [to_number(option)(word) for word in words]


def _pairs(
    option: str, text: str | None, example: str, *, none: bool = False
) -> list[tuple[float, float] | None] | None:
    """``A:B,A:B`` as pairs; with ``none``, that word among them is ``None``."""
    words = _listed(option, text)
    if words is None:
        return None
    return [None if none and word == "none" else _pair(option, word, example, none=none) for word in words]


def _pair(option: str, word: str, example: str, *, none: bool) -> tuple[float, float]:
    first, colon, last = word.partition(":")
    if not colon:
        kind = f"none or a pair LOW:HIGH, such as {example}" if none else f"a pair FIRST:LAST, such as {example}"
        raise UserError(f"{option}: {word!r} is not {kind}")
    read = to_number(option)
    return read(first), read(last)


def _run(asked: _Asked, settings: dict[str, Any]) -> None:
    from cascaded_diffusion.cascade.search import open_cascade, run_search
    from cascaded_diffusion.cascade.search_forecast import forecast
    from cascaded_diffusion.cli.progress import ProgressDisplay
    from cascaded_diffusion.ranks import launched_ranks
    from cascaded_diffusion.training.tracking.searches import track_search

    device = chosen_device(asked.device)
    folder, packaged = open_cascade(asked.cascade)
    with launched_ranks(device) as ranks:
        search = _prepare(asked, settings, folder, device)
        if asked.dry_run:
            found = forecast(search, asked.out)
            if ranks.is_main:
                _tell_forecast(search, found, device)
            return
        if not (asked.no_write or packaged):
            check_place("CASCADE", folder)
        with ProgressDisplay() if ranks.is_main else nullcontext() as display:
            watch = None if display is None else display.advance
            record = run_search(search, asked.out, cache=asked.cache, watch=watch)
        if ranks.is_main:
            _tell(record, asked.out)
            track_search(record, asked.out, asked.trackers)
            if not asked.no_write:
                _write(record, folder, asked.out / "cascade" if packaged else None)


def _prepare(asked: _Asked, settings: dict[str, Any], folder: Path, device: torch.device) -> Search:
    from cascaded_diffusion.cascade.chain import Cascade
    from cascaded_diffusion.cascade.find import packaged_cascades
    from cascaded_diffusion.cascade.manifest import CascadeManifest
    from cascaded_diffusion.cascade.search import prepare_search
    from cascaded_diffusion.data.prepared import PreparedData

    tell_which("cascade", asked.cascade, packaged_cascades())
    loaded = Cascade.from_pretrained(folder).to(device)
    prepared = PreparedData.open(asked.data)
    extractor = open_features(asked.features, prepared, device)
    return prepare_search(loaded, CascadeManifest.read(folder), prepared, extractor, **settings)


def _tell_forecast(search: Search, found: Forecast, device: torch.device) -> None:
    for name, points in found.points.items():
        done = sum(points.values())
        typer.echo(f"{name}: {len(points)} points, {done} of them done")
        for label, is_done in points.items():
            typer.echo(f"  {label}{' (done)' if is_done else ''}")
    passes = ", ".join(f"{name} {count}" for name, count in found.passes.items())
    typer.echo(f"passes of {search.request.num:,} samples: {passes}; {found.missing} of them still to make")
    typer.echo(f"network evaluations still to make: {found.evaluations:,}")
    typer.echo(f"sampling takes about {_duration(found.seconds)} on {device}, by timing one batch of each stage")


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def _tell(record: SearchRecord, out: Path) -> None:
    for found in record.searched:
        typer.echo(_table(record, found))
        first = found.points[0]
        if first.n < 2 * first.dimensions:
            line = (
                f"warning: {first.n:,} samples for features of {first.dimensions:,} dimensions: the values are too "
                "large and their differences small; give a larger --num"
            )
            typer.echo(line, err=True)
    typer.echo(f"{out}: results.csv, search.json and the curves")


def _table(record: SearchRecord, found: StageResult) -> str:
    from cascaded_diffusion.cascade.search_store import difference_error

    best = found.winner
    assert best is not None  # the search is through
    real = f"{best.reference_n:,} real images ({record.request.split})"
    lines = [f"{found.stage}: {record.score} of {best.n:,} samples to {real}, +- one standard error; lower is better"]
    width = max(len(point.label) for point in found.points)
    for point in found.points:
        apart = point.value - best.value >= 2 * difference_error(point, best)
        close = "" if apart else "  not told apart from the best"
        mark = "  best" if point is best else close
        lines.append(f"  {point.label:{width}}  {point.value:9.4f} +- {point.standard_error:.4f}{mark}")
    passes = ", ".join(f"{name} {count}" for name, count in found.passes.items())
    return "\n".join([*lines, f"  passes of all samples: {passes}"])


def _write(record: SearchRecord, folder: Path, copy: Path | None) -> None:
    from cascaded_diffusion.cascade.search_write import write_best, write_best_copy

    chosen = "; ".join(f"{found.stage}: {found.winner.label}" for found in record.searched if found.winner is not None)
    if copy is None:
        write_best(folder, record)
        typer.echo(f"{folder}: the default is now {chosen}")
    else:
        write_best_copy(folder, copy, record)
        typer.echo(f"{copy}: a copy with the default {chosen}; the cascade itself is not changed")
