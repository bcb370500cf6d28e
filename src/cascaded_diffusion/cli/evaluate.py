"""``cdm evaluate``: how good images are, in numbers that say what they depend on."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cascaded_diffusion.cli.options import (
    Augmentation,
    BatchSize,
    Cache,
    Device,
    Features,
    Guidance,
    More,
    RealImages,
    Sampler,
    Steps,
    Strength,
    chosen_device,
)
from cascaded_diffusion.cli.places import check_place, open_features, tell_which
from cascaded_diffusion.cli.values import batch_size as to_batch_size
from cascaded_diffusion.cli.values import check_compile, check_precision, sampling_choices, to_number, whole_from
from cascaded_diffusion.errors import UserError

if TYPE_CHECKING:
    import torch

    from cascaded_diffusion.cascade.judge import Checkpoint, Request
    from cascaded_diffusion.data.prepared import PreparedData
    from cascaded_diffusion.evaluation.cas import CasConfig
    from cascaded_diffusion.evaluation.scores import Score

__all__ = ["evaluate_command"]

_KINDS = {
    "cascade": "a cascade",
    "samples": "a file of samples",
    "run": "a run folder",
    "stage": "a stage folder",
}


def evaluate_command(
    subject: Annotated[
        str,
        typer.Argument(
            metavar="CASCADE|SAMPLES.npz|RUN",
            help="A cascade (or demo for the packaged one), an .npz of samples, or one stage's run or stage folder.",
        ),
    ],
    data: RealImages,
    split: Annotated[
        str | None,
        typer.Option("--split", metavar="train|val", help="Real images to compare with; default both, train first."),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            "--metrics",
            metavar="NAME,NAME",
            help="Of fd (or fid), kid, is, pr, cas, nn, recognition, drift. [default: fd,kid,is,pr]",
        ),
    ] = None,
    features: Features = None,
    num: Annotated[
        int | None,
        typer.Option(
            "--num", parser=whole_from(1), metavar="N", help="Samples; default 10,000, and all of an .npz file."
        ),
    ] = None,
    all_checkpoints: Annotated[
        bool, typer.Option("--all-checkpoints", help="Score every checkpoint of a run and tell the best.")
    ] = False,
    checkpoint: Annotated[
        int | None,
        typer.Option("--checkpoint", parser=whole_from(0), metavar="IMAGES", help="Which checkpoint of a run."),
    ] = None,
    ema: Annotated[
        str | None, typer.Option("--ema", metavar="HALF_LIFE|SIGMA|raw", help="Which weight average of a run.")
    ] = None,
    json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the scores as JSON.")] = None,
    keep: Annotated[
        Path | None, typer.Option("--keep", metavar="FILE.npz", help="Keep the samples that were scored.")
    ] = None,
    cache: Cache = None,
    seed: Annotated[
        int, typer.Option("--seed", parser=whole_from(0), metavar="N", help="Of the samples, and of what metrics draw.")
    ] = 0,
    batch_size: BatchSize = "auto",
    cas_epochs: Annotated[
        str | None,
        typer.Option("--cas-epochs", metavar="E", help="Times that cas sees each sample; more for few. [default: 15]"),
    ] = None,
    cas_classifiers: Annotated[
        int, typer.Option("--cas-classifiers", parser=whole_from(1), metavar="N", help="Whose mean cas is.")
    ] = 1,
    device: Device = None,
    precision: Annotated[
        str | None, typer.Option("--precision", metavar="P", help="Of the stages: fp32, bf16 or auto. [default: fp32]")
    ] = None,
    compiling: Annotated[
        str | None,
        typer.Option(
            "--compile",
            metavar="C",
            help="torch.compile and CUDA graphs: off, auto (on CUDA), on. [default: off]",
        ),
    ] = None,
    steps: Steps = None,
    sampler: Sampler = None,
    augmentation: Augmentation = None,
    s: Strength = None,
    guidance: Guidance = None,
    more: More = None,
) -> None:
    """Score images against real ones: a cascade's, one stage's, or those of a file.

    An SR stage alone enlarges real low-resolution images. Many GPUs: torchrun --nproc-per-node 8 -m --
    cascaded_diffusion evaluate ... (the -- keeps torchrun from reading --num).
    """
    choices = sampling_choices(
        steps=steps, sampler=sampler, augmentation=augmentation, s=s, guidance=guidance, more=more
    )
    of_runs = {"--all-checkpoints": all_checkpoints or None, "--checkpoint": checkpoint, "--ema": ema}
    kind = _kind(subject, next((option for option, value in of_runs.items() if value is not None), None))
    _refuse_unfit(
        kind,
        {
            **{option: (value, ("run",)) for option, value in of_runs.items()},
            "--keep": (keep, ("cascade", "run", "stage")),
            "--precision": (precision, ("cascade", "run", "stage")),
            "--compile": (compiling, ("cascade", "run", "stage")),
            **{f"--{name}": (value, ("cascade", "run", "stage")) for name, value in choices.items() if name != "more"},
            "--set": (more, ("cascade", "run", "stage")),
        },
    )
    if keep is not None and all_checkpoints:
        raise UserError(f"--keep: {keep} cannot hold the samples of --all-checkpoints; give one --checkpoint")
    check_precision(precision)
    check_compile(compiling or "off")
    _check_files(json, keep)
    _evaluate(
        _Asked(
            subject=subject,
            kind=kind,
            data=data,
            split=split,
            metrics=metrics,
            features=features,
            checkpoint=checkpoint,
            ema=ema,
            all_checkpoints=all_checkpoints,
            json=json,
            device=device,
            request={
                "num": num,
                "seed": seed,
                "batch_size": to_batch_size(batch_size),
                "precision": precision or "fp32",
                "compile": compiling or "off",
                "cas": _cas(cas_epochs, cas_classifiers, metrics),
                "choices": choices,
                "cache": cache,
                "keep": keep,
            },
        )
    )


def _cas(epochs: str | None, classifiers: int, metrics: str | None) -> CasConfig | None:
    if epochs is None and classifiers == 1:
        return None
    from cascaded_diffusion.evaluation.cas import CasConfig
    from cascaded_diffusion.evaluation.request import DEFAULT_METRICS, chosen_metrics

    config = CasConfig()
    if epochs is not None:
        number = to_number("--cas-epochs")(epochs)
        if not 0 < number <= 1e6:
            raise UserError(f"--cas-epochs: {epochs} is not allowed; give a number above 0, up to 1000000")
        config = config.model_copy(update={"epochs": number})
    if classifiers > 1000:
        raise UserError(f"--cas-classifiers: {classifiers} is not allowed; give a number from 1 to 1000")
    if "cas" not in (DEFAULT_METRICS if metrics is None else chosen_metrics(metrics)):
        option = "--cas-classifiers" if epochs is None else "--cas-epochs"
        raise UserError(f"{option}: has no effect without cas; add it to --metrics")
    return config.model_copy(update={"classifiers": classifiers})


@dataclass(frozen=True)
class _Asked:
    subject: str
    kind: str
    data: Path
    split: str | None
    metrics: str | None
    features: str | None
    checkpoint: int | None
    ema: str | None
    all_checkpoints: bool
    json: Path | None
    device: str | None
    request: dict[str, Any]


def _kind(subject: str, of_run: str | None) -> str:
    """What is to be scored: a packaged name wins over a file or folder of that name.

    ``of_run`` is an option that was given and is for runs alone: what is not there is then no repository of the hub.
    """
    from cascaded_diffusion.cascade.find import packaged_cascades
    from cascaded_diffusion.cascade.manifest import MANIFEST_FILE
    from cascaded_diffusion.cascade.stage import CONFIG_FILE, WEIGHTS_FILE
    from cascaded_diffusion.interop.hub import may_be_repository
    from cascaded_diffusion.training.export import is_run

    path = Path(subject)
    if of_run and not path.exists() and subject not in packaged_cascades():
        raise UserError(f"{subject}: not there; {of_run} is for a run folder")
    if subject in packaged_cascades() or (path / MANIFEST_FILE).is_file():
        return "cascade"
    if may_be_repository(subject) and path.suffix != ".npz":
        return "cascade"
    if path.suffix == ".npz" and not path.is_dir():
        return "samples"
    if is_run(path) and (path / CONFIG_FILE).is_file():
        return "run"
    if (path / CONFIG_FILE).is_file() and (path / WEIGHTS_FILE).is_file():
        return "stage"
    what = "a file, but not an .npz" if path.is_file() else "nothing to score" if path.exists() else "not there"
    allowed = f"{', '.join(packaged_cascades())}, a cascade folder, a run or stage folder, an .npz of samples"
    raise UserError(f"{subject}: {what}; allowed: {allowed}")


def _refuse_unfit(kind: str, options: dict[str, tuple[Any, tuple[str, ...]]]) -> None:
    """Refuse an option that would have no effect on this kind of subject."""
    for option, (value, kinds) in options.items():
        if value is not None and kind not in kinds:
            raise UserError(
                f"{option}: has no effect on {_KINDS[kind]}; it is for {' or '.join(_KINDS[other] for other in kinds)}"
            )


def _check_files(json: Path | None, keep: Path | None) -> None:
    for option, path, suffix in (("--json", json, ".json"), ("--keep", keep, ".npz")):
        if path is None:
            continue
        if path.suffix != suffix or path.is_dir():
            raise UserError(f"{option}: {path} is not the name of a {suffix} file")
        check_place(option, path)


def _evaluate(asked: _Asked) -> None:
    from cascaded_diffusion.cli.progress import ProgressDisplay
    from cascaded_diffusion.data.prepared import PreparedData
    from cascaded_diffusion.evaluation.request import chosen_metrics, chosen_splits
    from cascaded_diffusion.ranks import launched_ranks

    metrics = None if asked.metrics is None else chosen_metrics(asked.metrics)
    prepared = PreparedData.open(asked.data)
    splits = chosen_splits(prepared, asked.split)
    device = chosen_device(asked.device)
    with launched_ranks(device) as ranks:
        request = _request(asked, prepared, splits, metrics, device)
        with ProgressDisplay() if ranks.is_main else nullcontext() as display:
            watch = None if display is None else display.advance
            scores, more = _judge(asked, replace(request, watch=watch))
        if ranks.is_main:
            _tell(asked, scores, more)


def _request(
    asked: _Asked,
    data: PreparedData,
    splits: tuple[str, ...],
    metrics: tuple[str, ...] | None,
    device: torch.device,
) -> Request:
    import numpy as np

    from cascaded_diffusion.cascade.judge import Request
    from cascaded_diffusion.evaluation.request import DEFAULT_METRICS

    extractor = open_features(asked.features, data, device)
    if metrics is None:
        metrics = DEFAULT_METRICS
        probe = extractor(np.asarray(data.split("train").images(data.resolutions[-1])[:1]))
        if probe.logits is None:
            metrics = tuple(metric for metric in metrics if metric != "is")
            typer.echo(f"{extractor.name} has no classifier, so there is no Inception score", err=True)
    return Request(data, extractor, metrics, splits, device=device, **asked.request)


def _judge(asked: _Asked, request: Request) -> tuple[dict[str, Score], dict[str, Any]]:
    """The scores, and what else goes into the JSON file."""
    from cascaded_diffusion.cascade import judge
    from cascaded_diffusion.cascade.chain import Cascade
    from cascaded_diffusion.cascade.find import find_cascade, packaged_cascades
    from cascaded_diffusion.training.export import load_part

    path = Path(asked.subject)
    if asked.kind == "samples":
        return judge.judge_samples(path, request), {}
    if asked.kind == "cascade":
        tell_which("cascade", asked.subject, packaged_cascades())
        folder, place = find_cascade(asked.subject)
        cascade = Cascade.from_pretrained(folder).to(request.device)
        name = folder.resolve().name if place == "here" else asked.subject
        return judge.judge_cascade(cascade, request, source=judge.cascade_source(name, folder)), {}
    if asked.kind == "stage":
        stage, sampling, _ = load_part(path)
        stage.to(request.device)
        return judge.judge_stage(stage, sampling, request, source=judge.stage_source(path, stage.name)), {}
    if asked.all_checkpoints:
        return _judge_all(path, asked, request)
    (only,) = judge.judge_run(path, request, images=asked.checkpoint, ema=asked.ema)
    return only.scores, {"images": only.images, "ema": only.ema}


def _judge_all(run: Path, asked: _Asked, request: Request) -> tuple[dict[str, Score], dict[str, Any]]:
    """The scores of a run's best checkpoint, and those of all; what is scored outlasts an interruption."""
    from cascaded_diffusion.cascade.judge import best_checkpoint, judge_run
    from cascaded_diffusion.evaluation.scores import write_scores
    from cascaded_diffusion.ranks import current_ranks

    def so_far(found: list[Checkpoint]) -> tuple[dict[str, Score], dict[str, Any]]:
        best = best_checkpoint(found, request)
        each = [
            {"images": one.images, "ema": one.ema, "scores": {k: v.to_json() for k, v in one.scores.items()}}
            for one in found
        ]
        return best.scores, {"images": best.images, "ema": best.ema, "checkpoints": each}

    def keep(found: list[Checkpoint]) -> None:
        if asked.json is not None and current_ranks().is_main:
            with suppress(OSError, UserError):  # told of at the end, if it is still so
                scores, more = so_far(found)
                write_scores(_unfinished(asked.json), scores, **more)

    return so_far(judge_run(run, request, images=asked.checkpoint, ema=asked.ema, every=True, keep=keep))


def _unfinished(path: Path) -> Path:
    """Where the scores of the checkpoints so far are."""
    return path.with_name(f"{path.stem}.unfinished{path.suffix}")


def _tell(asked: _Asked, scores: dict[str, Score], more: dict[str, Any]) -> None:
    from cascaded_diffusion.evaluation.scores import Score, comparison, table, warnings_of, write_scores

    failed: OSError | None = None
    if asked.json is not None:
        try:
            write_scores(asked.json, scores, **more)
            _unfinished(asked.json).unlink(missing_ok=True)
        except OSError as error:  # the scores are shown all the same
            failed = error
    if "checkpoints" in more:
        rows = {
            f"{each['images']:,}": {key: Score.from_json(value) for key, value in each["scores"].items()}
            for each in more["checkpoints"]
        }
        typer.echo(comparison("images", rows, best=f"{more['images']:,}") + "\n")
    typer.echo(table(scores))
    for warning in warnings_of(scores):
        typer.echo(f"warning: {warning}", err=True)
    if asked.json is not None and failed is None:
        typer.echo(f"{asked.json}: all of this as JSON")
    if asked.request["keep"] is not None:
        typer.echo(f"{asked.request['keep']}: the samples")
    if failed is not None:
        raise failed
