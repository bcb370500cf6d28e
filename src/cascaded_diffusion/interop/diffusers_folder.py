"""Cascades as folders of diffusers models, and diffusers models as stages.

The files are written and read without diffusers itself, and without anything pickled.
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cascaded_diffusion.cascade.chain import Cascade
from cascaded_diffusion.cascade.sampling import SamplingConfig
from cascaded_diffusion.cascade.stage import Stage, StageConfig
from cascaded_diffusion.config import explain
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.files import new_folder, read_json, sha256_of, write_json
from cascaded_diffusion.interop.diffusers_scheduler import (
    export_scheduler,
    import_scheduler,
    sampling_faults,
    scheduler_faults,
    scheduler_notes,
    whole_steps,
)
from cascaded_diffusion.interop.diffusers_unet import (
    DiffusersUNetConfig,
    export_config,
    export_faults,
    export_weights,
    import_weights,
    no_class_row,
)
from cascaded_diffusion.interop.foreign import load_foreign_checkpoint
from cascaded_diffusion.interop.stage_folder import ImportedStage
from cascaded_diffusion.networks.unet import UNet
from cascaded_diffusion.writing import write_tensors

__all__ = ["export_diffusers", "import_diffusers", "load_diffusers_unet"]

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
SCHEDULER_FILE = "scheduler_config.json"
STAGE_FILE = "stage.json"
STAGES_FILE = "stages.json"
EXAMPLE_FILE = "load_cascade.py"

_FORMAT_OF = "0.35.0"
"""The diffusers whose files these are; newer ones read them."""


def export_diffusers(cascade: Cascade, out: str | Path) -> list[str]:
    """Write a cascade as a folder that diffusers can load, stage by stage.

    ``OUT/STAGE/unet`` is what ``UNet2DModel.save_pretrained`` would write, ``OUT/STAGE/scheduler`` a DDPM or DDIM
    scheduler; ``OUT/load_cascade.py`` chains them with diffusers alone. ``OUT/STAGE/stage.json`` is for
    :func:`import_diffusers`, which makes the very stage of it again.

    Returns:
        Default sampling settings that diffusers' schedulers do otherwise, one line each.

    Raises:
        UserError: naming each stage's settings that diffusers cannot express, before anything is written; or ``out``
            is there already and not an empty folder.
    """
    stages = list(cascade.stages.values())
    faults = [f"{stage.name}: a guide; assemble it without" for stage in stages if stage.guide is not None]
    faults += [f"{stage.name}: weights rounded by accelerate; export it before" for stage in stages if stage.is_rounded]
    faults += [
        f"{stage.name}: {fault}"
        for stage in stages
        for fault in (
            *export_faults(stage.config),
            *scheduler_faults(stage.config),
            *sampling_faults(cascade.defaults[stage.name]),
        )
    ]
    if faults:
        raise UserError(f"export: diffusers cannot express {'; '.join(faults)}")
    with new_folder(Path(out)) as folder:
        for stage in stages:
            _write_stage(folder / stage.name, stage, cascade.defaults[stage.name])
        entries = [_entry(stage.config, cascade.defaults[stage.name]) for stage in stages]
        write_json(folder / STAGES_FILE, entries)
        example = resources.files("cascaded_diffusion.interop").joinpath(EXAMPLE_FILE).read_text(encoding="utf-8")
        (folder / EXAMPLE_FILE).write_text(example, encoding="utf-8")
        (folder / "README.md").write_text(_readme(stages), encoding="utf-8")
    return [
        f"{stage.name}: {note}"
        for stage in stages
        for note in scheduler_notes(stage.config, cascade.defaults[stage.name])
    ]


def _write_stage(folder: Path, stage: Stage, sampling: SamplingConfig) -> None:
    unet, scheduler = folder / "unet", folder / "scheduler"
    unet.mkdir(parents=True)
    config = export_config(stage.config).model_dump(mode="json")
    write_json(unet / CONFIG_FILE, {"_class_name": "UNet2DModel", "_diffusers_version": _FORMAT_OF} | config)
    weights = export_weights(stage.network, no_class=no_class_row(stage.config) is not None)
    weights = {name: value.cpu() for name, value in weights.items()}
    write_tensors(weights, unet / WEIGHTS_FILE, metadata={"format": "pt"})
    write_json(scheduler / SCHEDULER_FILE, _scheduler_file(stage.config, sampling))
    # UNet2DModel is told of no geometric augmentation; nor is a sample, so that leaving the embedding out changes none.
    training = stage.config.training.model_copy(update={"augment": 0.0})
    told = stage.config.model_copy(update={"sampling": sampling, "training": training})
    write_json(folder / STAGE_FILE, told.model_dump(mode="json"))


def _scheduler_file(config: StageConfig, sampling: SamplingConfig) -> dict[str, Any]:
    return {"_diffusers_version": _FORMAT_OF} | export_scheduler(config, sampling)


def _entry(config: StageConfig, sampling: SamplingConfig) -> dict[str, Any]:
    """What the example needs to know of a stage beyond the model's and scheduler's own files."""
    conditioning = config.conditioning
    return {
        "name": config.name,
        "resolution": config.resolution,
        "channels": config.channels,
        "enlarges_by": None if conditioning is None else conditioning.upsample,
        "classes": config.classes,
        "class_names": config.class_names,
        "no_class": no_class_row(config),
        "steps": whole_steps(sampling),
        "guidance": sampling.guidance,
    }


def _readme(stages: list[Stage]) -> str:
    names = ", ".join(f"`{stage.name}`" for stage in stages)
    first = stages[0].name
    return f"""# A cascade for diffusers

Stages, in order: {names}. Each is a folder with a `UNet2DModel` and its scheduler:

```python
from diffusers import UNet2DModel

unet = UNet2DModel.from_pretrained("{first}/unet")
```

`python load_cascade.py samples.png` chains them; read it to see how. It needs diffusers and Pillow, nothing else. The
U-Net of an `sr` stage takes twice the channels: the noisy image, and behind it the image of the stage before,
enlarged. Written by cascaded-diffusion; `cdm import diffusers {first} OUT` makes a stage of it again.
"""


def load_diffusers_unet(folder: str | Path, *, low_res_channels: int | None = None) -> UNet:
    """Our U-Net with the weights of a ``UNet2DModel``, in eval mode, float32.

    Args:
        folder: what ``save_pretrained`` wrote, or a pipeline's folder with a sub-folder ``unet``.
        low_res_channels: how many of the input's channels, the last ones, are an enlarged low-resolution image; they
            are given to our network as ``low_res``, not enlarged. Default: the input's surplus over the output's.

    A last class whose embedding is all zeros is our "no class" and called -1 here.

    Raises:
        UserError: a missing or damaged file, or the keys and tensors that do not fit, each named.
    """
    unet = _unet_folder(Path(folder))
    config = _unet_config(unet)
    if low_res_channels is None:
        low_res_channels = max(config.in_channels - config.out_channels, 0)
    if not 0 <= low_res_channels < config.in_channels:
        raise UserError(
            f"low_res_channels: {low_res_channels} of {config.in_channels} input channels; "
            f"allowed: 0 to {config.in_channels - 1}"
        )
    return _load(unet, config, low_res_channels)


def _unet_folder(folder: Path) -> Path:
    for place in (folder, folder / "unet"):
        if (place / CONFIG_FILE).is_file():
            return place
    raise UserError(f"{folder}: no {CONFIG_FILE}, nor a sub-folder unet with one; name a UNet2DModel's folder")


def _unet_config(unet: Path) -> DiffusersUNetConfig:
    path = unet / CONFIG_FILE
    values = read_json(path)
    if not isinstance(values, dict):
        raise UserError(f"{path}: not a JSON object")
    return DiffusersUNetConfig.read(values, str(path))


def _load(unet: Path, config: DiffusersUNetConfig, low_res_channels: int) -> UNet:
    path = _weights_file(unet)
    tensors = load_foreign_checkpoint(path)
    classes = config.num_class_embeds
    table = tensors.get("class_embedding.weight")
    if classes is not None and classes > 1 and table is not None and len(table) == classes and not table[-1].any():
        tensors["class_embedding.weight"] = table[:-1]
        classes -= 1
    network = config.build(str(unet / CONFIG_FILE), low_res_channels=low_res_channels, classes=classes)
    import_weights(network, tensors, str(path))
    return network.eval()


def _weights_file(unet: Path) -> Path:
    for name in (WEIGHTS_FILE, "diffusion_pytorch_model.bin"):
        if (unet / name).is_file():
            return unet / name
    others = sorted(path.name for path in unet.glob("diffusion_pytorch_model*"))
    found = f" (found: {', '.join(others)})" if others else ""
    raise UserError(f"{unet}: no {WEIGHTS_FILE}, in one file{found}")


def import_diffusers(folder: str | Path, *, low_resolution: int | None = None) -> ImportedStage:
    """Read a ``UNet2DModel`` with its scheduler as a stage.

    Args:
        folder: a stage's folder as :func:`export_diffusers` writes it, or a pipeline's (``unet`` and ``scheduler``).
        low_resolution: of a U-Net that enlarges images of so many pixels, which it takes behind the noisy ones, twice
            the channels in all; known of an exported stage.

    Raises:
        UserError: a missing or damaged file, or the keys and tensors that do not fit, each named.
    """
    place = Path(folder)
    unet = _unet_folder(place)
    scheduler = place / "scheduler" / SCHEDULER_FILE
    if unet == place or not scheduler.is_file():
        raise UserError(
            f"{place}: a stage needs unet/{CONFIG_FILE} and scheduler/{SCHEDULER_FILE}; "
            "for the network alone there is load_diffusers_unet in Python"
        )
    config = _unet_config(unet)
    if (place / STAGE_FILE).is_file():
        stage = _exported_stage(place, config, low_resolution)
    else:
        stage = _foreign_stage(place, config, low_resolution)
    digest = sha256_of(_weights_file(unet))
    return ImportedStage(stage, {"from": "diffusers", "folder": place.name, "sha256": digest})


def _exported_stage(place: Path, unet: DiffusersUNetConfig, low_resolution: int | None) -> Stage:
    """The stage that was exported; its network and process must still be those of diffusers' files."""
    config = StageConfig.load(place / STAGE_FILE)
    known = config.conditioning.low_resolution if config.conditioning is not None else None
    if low_resolution not in (None, known):
        raise UserError(f"--low-resolution: {low_resolution} is not what {place / STAGE_FILE} says: {known}")
    expected = _as_read(_scheduler_file(config, config.sampling))
    for name, same in (
        (f"unet/{CONFIG_FILE}", not any(export_faults(config)) and export_config(config) == unet),
        (f"scheduler/{SCHEDULER_FILE}", read_json(place / "scheduler" / SCHEDULER_FILE) == expected),
    ):
        if not same:
            raise UserError(
                f"{place / name}: not the one that {STAGE_FILE} beside it was exported with; "
                f"delete {STAGE_FILE} to go by diffusers' files alone"
            )
    network = _load(place / "unet", unet, unet.in_channels - config.channels)
    if network.classes != config.classes:
        raise UserError(f"{place}: {network.classes} classes in unet, {config.classes} in {STAGE_FILE}")
    network.upsample = "bilinear" if config.conditioning is None else config.conditioning.upsample
    return Stage(config.model_copy(update={"network": network.config}), network)


def _as_read(values: dict[str, Any]) -> Any:
    return json.loads(json.dumps(values))


def _foreign_stage(place: Path, unet: DiffusersUNetConfig, low_resolution: int | None) -> Stage:
    """A stage from diffusers' files alone."""
    channels, learned = _channels(place, unet, upsampler=low_resolution is not None)
    where = place / "scheduler" / SCHEDULER_FILE
    values = read_json(where)
    if not isinstance(values, dict):
        raise UserError(f"{where}: not a JSON object")
    diffusion, sampling = import_scheduler(values, str(where), learned=learned)
    network = _load(place / "unet", unet, unet.in_channels - channels)
    # Only a network with a row for it has learned to go without class.
    dropped = network.classes is not None and network.classes != unet.num_class_embeds
    kind = "base" if low_resolution is None else "sr"
    try:
        config = StageConfig.model_validate(
            {
                "name": f"{kind}{network.resolution}",
                "resolution": network.resolution,
                "network": network.config,
                "diffusion": diffusion,
                "conditioning": None
                if low_resolution is None
                else {"augmentation": "none", "low_resolution": low_resolution},
                "training": {"class_dropout": 0.1} if dropped else {},
                "sampling": sampling,
                "channels": channels,
                "classes": network.classes,
            }
        )
    except ValidationError as error:
        raise UserError(f"{place}: {explain(error)}") from None
    return Stage(config, network)


def _channels(place: Path, unet: DiffusersUNetConfig, *, upsampler: bool) -> tuple[int, bool]:
    """Channels of the image, and whether the output has a variance too."""
    inputs, outputs = unet.in_channels, unet.out_channels
    channels = inputs // 2 if upsampler else inputs
    if (upsampler and inputs % 2) or outputs not in (channels, 2 * channels):
        raise UserError(
            f"{place / 'unet' / CONFIG_FILE}: in_channels {inputs} and out_channels {outputs} are not those of "
            + (
                "an up-sampler: twice the image's, and the image's or twice those"
                if upsampler
                else "a base model: the image's, and the image's or twice those; "
                "for one that enlarges images give their size with --low-resolution"
            )
        )
    return channels, outputs == 2 * channels
