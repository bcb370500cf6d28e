"""``cdm train-classifier``: a classifier of prepared data, as a feature extractor for scores."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cascaded_diffusion.cli.options import Device, chosen_device
from cascaded_diffusion.cli.places import check_place
from cascaded_diffusion.cli.values import number_from, whole_from
from cascaded_diffusion.errors import UserError

if TYPE_CHECKING:
    from cascaded_diffusion.data.prepared import PreparedData
    from cascaded_diffusion.evaluation.cas import Accuracy

__all__ = ["train_classifier_command"]


def train_classifier_command(
    data: Annotated[Path, typer.Option("--data", metavar="DIR", help="Prepared data with classes.")],
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Folder to make; --features takes it.")],
    resolution: Annotated[
        int | None,
        typer.Option(
            "--resolution", parser=whole_from(4), metavar="R", help="Of its input; default the data's largest."
        ),
    ] = None,
    epochs: Annotated[
        float, typer.Option("--epochs", parser=number_from(0), metavar="N", help="Times that each image is seen.")
    ] = 20.0,
    seed: Annotated[int, typer.Option("--seed", parser=whole_from(0), metavar="N", help="Of everything random.")] = 0,
    device: Device = None,
    half: Annotated[bool, typer.Option("--half", help="Store the weights in 16 bits.")] = False,
) -> None:
    """Train a classifier on the data's training images and test it on its validation images.

    Its last hidden layer is a feature space for Frechet distances on your own data: give FOLDER to the --features of
    cdm evaluate and cdm search. Below 64 pixels it is a small residual network, from there up ResNet-50.
    """
    from cascaded_diffusion.cli.progress import ProgressDisplay
    from cascaded_diffusion.data.prepared import PreparedData
    from cascaded_diffusion.evaluation.cas import measure_accuracy
    from cascaded_diffusion.evaluation.classification import ClassifierTraining, config_for, predict, train_classifier
    from cascaded_diffusion.evaluation.classifier import Classifier, save_classifier
    from cascaded_diffusion.files import refuse_filled

    refuse_filled(out)
    check_place("--out", out)
    prepared = PreparedData.open(data)
    if prepared.classes is None or prepared.classes < 2:
        raise UserError(f"--data: {data} has no classes to learn")
    train = prepared.split("train")
    side = prepared.resolutions[-1] if resolution is None else resolution
    images = train.images(side)
    place = chosen_device(device)
    training = ClassifierTraining.checked(images=max(round(min(epochs, 1e9) * len(train)), 1), seed=seed)
    with ProgressDisplay() as display:
        trained = train_classifier(
            images,
            train.labels,
            config_for(images, prepared.classes, prepared.class_names),
            training,
            device=place,
            watch=lambda seen, total: display.advance("classifier", seen, total),
        )
    # Tested as it will be used: with the weights as they are stored.
    tested = trained.half().float() if half else trained
    accuracy = None
    if "val" in prepared.splits:
        val = prepared.split("val")
        accuracy = measure_accuracy(predict(tested, val.images(side))[0], val.labels)
    told = _provenance(prepared, side, training.model_dump(mode="json"), accuracy)
    described = Classifier(tested.config.model_copy(update={"provenance": told}))
    described.load_state_dict(tested.state_dict())
    save_classifier(described, out, half=half)
    right = "no validation images to test it on"
    if accuracy is not None:
        right = f"{accuracy.top1:.2%} +- {accuracy.standard_error:.2%} of {accuracy.count:,} validation images right"
    typer.echo(
        f"{out}: {tested.config.architecture} classifier of {prepared.classes} classes at {side} pixels; {right}"
    )


def _provenance(data: PreparedData, side: int, training: dict[str, Any], accuracy: Accuracy | None) -> dict[str, Any]:
    import torch

    from cascaded_diffusion.version import VERSION

    scores = None if accuracy is None else {"top1": accuracy.top1, "per_class": accuracy.per_class, "n": accuracy.count}
    return {
        "data": data.manifest.source,
        "images_sha256": data.manifest.files[data.manifest.images_file("train", side)],
        "training": training,
        "validation": scores,
        "versions": {"cascaded_diffusion": VERSION, "torch": torch.__version__},
    }
