"""One stage of a cascade: its configuration, its network with weights, and its folder on disk."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, ValidationError, model_validator
from torch import Tensor, nn

from cascaded_diffusion.cascade.sampling import SamplingConfig
from cascaded_diffusion.conditioning.augmentation import ConditioningConfig
from cascaded_diffusion.config import ClassNames, Name, StrictModel, explain
from cascaded_diffusion.diffusion.denoiser import Diffusion, DiffusionConfig, NetworkCall
from cascaded_diffusion.diffusion.grid import sampling_grid
from cascaded_diffusion.diffusion.schedule import Schedule, ScheduleConfig
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.files import read_json, write_json
from cascaded_diffusion.networks.compiling import CompileChoice, cuda_graphs
from cascaded_diffusion.networks.unet import NetworkConfig, UNet
from cascaded_diffusion.precision import Precision, autocast, computes_in_bf16
from cascaded_diffusion.reading.plain import refuse_outside
from cascaded_diffusion.reading.tensors import TensorFacts, check_fit, read_tensors, without_memory
from cascaded_diffusion.training.config import TrainingConfig
from cascaded_diffusion.training.geometry import AUGMENT_FEATURES
from cascaded_diffusion.writing import write_tensors

__all__ = ["Stage", "StageConfig", "StageRecipe", "build_network", "empty_network", "fill_network", "load_weights"]

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
ORIGIN_FILE = "origin.json"
GUIDE_FOLDER = "guide"
MAX_CLASSES = 1_000_000


class StageRecipe(StrictModel):
    """One stage as a recipe states it."""

    name: Name = Field(description="base<R> for the first stage, sr<R> for the others; R is the resolution.")
    resolution: int = Field(ge=1, le=4096, description="Side of the square images it makes, in pixels.")
    network: NetworkConfig = Field(description="The U-Net.")
    diffusion: DiffusionConfig = Field(default=DiffusionConfig(), description="The diffusion process.")
    conditioning: ConditioningConfig | None = Field(
        default=None, description="SR stages: how the low-resolution image enters; null for the base."
    )
    training: TrainingConfig = Field(default=TrainingConfig(), description="The training run.")
    sampling: SamplingConfig = Field(default=SamplingConfig(), description="Default sampling settings.")

    @property
    def is_base(self) -> bool:
        """Whether this is the first stage."""
        return self.name.startswith("base")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.name not in (f"base{self.resolution}", f"sr{self.resolution}"):
            allowed = f"base{self.resolution}, sr{self.resolution}"
            raise ValueError(f"name: {self.name!r} does not fit resolution {self.resolution}; allowed {allowed}")
        if self.is_base and self.conditioning is not None:
            raise ValueError(f"conditioning: {self.name} is a base stage and has no low-resolution input; remove it")
        if not self.is_base and self.conditioning is None:
            raise ValueError(f"conditioning: {self.name} is an SR stage and needs it")
        self.check_sampling(self.sampling)
        self._check_crop()
        if self.sampling.guide != 1:
            raise ValueError(
                f"sampling.guide: {self.sampling.guide:g} needs a guide, which comes with cdm assemble --guide; "
                "allowed here: 1"
            )
        low = self.conditioning.low_resolution if self.conditioning is not None else None
        if low is not None and low >= self.resolution:
            raise ValueError(f"conditioning.low_resolution: {low} is not below {self.resolution}")
        self.network.check(self.resolution)
        return self

    def _check_crop(self) -> None:
        crop, network = self.training.crop, self.network
        if crop is None:
            return
        if self.conditioning is None:
            raise ValueError(f"training.crop: {crop}, but {self.name} is a base stage; allowed for SR stages alone")
        if network.attention or network.middle_attention:
            key = "network.attention" if network.attention else "network.middle_attention"
            raise ValueError(f"training.crop: {crop} does not go with {key}, which sees another number of pixels later")
        if crop >= self.resolution:
            raise ValueError(f"training.crop: {crop} is not below the resolution {self.resolution}")
        step = network.patch * 2 ** (len(network.multipliers) - 1)
        low = self.conditioning.low_resolution
        if crop % step or (low is not None and crop * low % self.resolution):
            factor = math.lcm(step, self.resolution // math.gcd(self.resolution, low)) if low else step
            raise ValueError(f"training.crop: {crop} does not fit; allowed: multiples of {factor}")

    def why_no_s(self) -> str | None:
        """Why s means nothing to the stage, or ``None`` if it does."""
        if self.conditioning is None:
            return f"{self.name} is a base stage and has no s"
        if self.conditioning.augmentation != "gaussian":
            return f"{self.name} was trained with augmentation {self.conditioning.augmentation} and has no s"
        return None

    def check_sampling(self, sampling: SamplingConfig) -> None:
        """``ValueError`` for sampling settings that a stage trained like this has not learned."""
        conditioning = self.conditioning
        if sampling.augmentation != "none" and self.why_no_s() is not None:
            raise ValueError(f"sampling.augmentation: {sampling.augmentation} needs conditioning.augmentation gaussian")
        if conditioning is not None and sampling.s > conditioning.s_max:
            raise ValueError(f"sampling.s: {sampling.s:g} is above conditioning.s_max {conditioning.s_max:g}")
        if sampling.endpoints is not None and not self.diffusion.noise_schedule.is_continuous:
            raise ValueError("sampling.endpoints: a sampling schedule of its own needs a continuous noise_schedule")
        if sampling.grid != "time" and not self.diffusion.noise_schedule.is_continuous:
            raise ValueError(f"sampling.grid: {sampling.grid} needs a continuous noise_schedule; allowed: time")
        if sampling.start is not None and conditioning is None:
            raise ValueError(f"sampling.start: {self.name} is a base stage and has no image to start from; remove it")
        if sampling.guidance != 1 and self.training.class_dropout == 0:
            raise ValueError(
                f"sampling.guidance: {sampling.guidance:g} needs training.class_dropout above 0; allowed 1"
            )

    def check_sampling_grid(self) -> None:
        """``UserError`` for default sampling steps that the stage's schedule cannot give."""
        sampling = self.sampling
        sampling_grid(
            Schedule(self.diffusion.noise_schedule),
            sampling.steps,
            endpoints=sampling.endpoints,
            sigmas=sampling.sigmas,
            start=sampling.start,
        )


class StageConfig(StageRecipe):
    """One stage as its run and stage folders record it: the recipe's part and what the data settled."""

    format_version: Literal[1] = Field(default=1, description="Version of this file's layout.")
    channels: int = Field(ge=1, le=4, description="Image channels: 1 grey, 3 colour.")
    classes: int | None = Field(default=None, ge=1, le=MAX_CLASSES, description="Number of classes, or null.")
    class_names: ClassNames | None = Field(default=None, description="Their names, if the data has them.")
    flip: bool = Field(default=False, description="Whether training images were mirrored at random.")

    @model_validator(mode="after")
    def _check_classes(self) -> Self:
        if self.class_names is not None and len(self.class_names) != self.classes:
            raise ValueError(f"class_names: {len(self.class_names)} names for {self.classes} classes")
        gaussian = self.conditioning is not None and self.conditioning.augmentation == "gaussian"
        if self.conditioning is not None and self.conditioning.low_resolution is None:
            raise ValueError("conditioning.low_resolution is missing")
        if gaussian and self.conditioning is not None and self.conditioning.low_schedule is None:
            raise ValueError("conditioning.low_schedule is missing: s refers to it")
        return self

    def settled(self, sampling: SamplingConfig) -> SamplingConfig:
        """Default settings as they act on this stage: without classes there is nothing to be guided by."""
        return sampling if self.classes is not None else sampling.model_copy(update={"guidance": 1.0})

    def why_no_guidance(self) -> str | None:
        """Why classifier-free guidance means nothing to the stage, or ``None`` if it does."""
        if self.classes is None:
            return f"{self.name} has no classes to be guided by"
        if self.training.class_dropout == 0:
            return f"{self.name} was trained with training.class_dropout 0 and knows no unguided output"
        return None

    @classmethod
    def load(cls, path: str | Path) -> StageConfig:
        """Read a ``config.json``; ``UserError`` names the key that is wrong."""
        try:
            return cls.model_validate(read_json(Path(path)))
        except ValidationError as error:
            raise UserError(f"{path}: {explain(error)}") from None


def empty_network(config: StageConfig) -> UNet:
    """The stage's U-Net without memory for its weights, to compare with a file before any is taken."""
    with without_memory():
        return build_network(config)


def build_network(config: StageConfig) -> UNet:
    """The stage's U-Net with fresh weights on the current default device."""
    conditioning = config.conditioning
    learned = config.diffusion.variance == "learned"
    return UNet(
        config.network,
        resolution=config.resolution,
        image_channels=config.channels,
        out_channels=config.channels * (2 if learned else 1),
        classes=config.classes,
        low_res_channels=config.channels if conditioning is not None else 0,
        s_embedding=config.why_no_s() is None,
        upsample=conditioning.upsample if conditioning is not None else "bilinear",
        crop=config.training.crop,
        augment_features=AUGMENT_FEATURES if config.training.augment else 0,
    )


def load_weights(path: Path, wanted: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Read a safetensors file.

    Args:
        path: the file.
        wanted: what the network takes, if that is known: then nothing is read of a file that does not fit.

    Raises:
        UserError: the file is missing, damaged, does not fit, or holds values that are not finite.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file; a stage without weights cannot be used, train it first")
    return read_tensors(path, wanted)


def fill_network(network: UNet, weights: Mapping[str, Tensor], path: Path) -> None:
    """Load weights of any floating-point type; an empty network takes the tensors themselves.

    Raises:
        UserError: naming the tensors that are missing, unexpected or of another shape.
    """
    own = network.state_dict()
    check_fit({key: TensorFacts.of(value) for key, value in weights.items()}, own, path)
    empty = any(value.is_meta for value in own.values())
    network.load_state_dict({key: value.float() for key, value in weights.items()}, assign=empty)


def _check_guide(config: StageConfig, guide: StageConfig) -> None:
    """``UserError`` for a guide that does not see and make what the stage does."""
    pairs = {
        "name": (config.name, guide.name),
        "channels": (config.channels, guide.channels),
        "classes": ((config.classes, config.class_names), (guide.classes, guide.class_names)),
        "diffusion.noise_schedule": (config.diffusion.noise_schedule, guide.diffusion.noise_schedule),
    }
    if config.conditioning is not None and guide.conditioning is not None:
        for key in ("augmentation", "low_resolution", "low_schedule", "s_max"):
            pairs[f"conditioning.{key}"] = (getattr(config.conditioning, key), getattr(guide.conditioning, key))
    for key, (own, other) in pairs.items():
        if isinstance(own, ScheduleConfig) and isinstance(other, ScheduleConfig) and own.meaning == other.meaning:
            continue
        if own != other:
            raise UserError(f"guide: {key} of the guide for {config.name} differs: {other} where the stage has {own}")


class Stage:
    """A trained stage, ready to sample.

    Attributes:
        config: its configuration.
        network: the U-Net, in eval mode.
        diffusion: its diffusion process.
        low_schedule: the schedule that s refers to, for stages with gaussian augmentation.
        guide: a worse copy of the stage for autoguidance (2406.02507), if there is one.
        waits_on_host: whether its weights are on the device only while it is at work.
    """

    def __init__(self, config: StageConfig, network: UNet, guide: Stage | None = None) -> None:
        self.config = config
        self.network = network.eval().requires_grad_(False)
        self._call: Callable[..., Tensor] | None = None
        self.waits_on_host = False
        self._precision: Precision = "fp32"
        self.diffusion = Diffusion(config.diffusion)
        conditioning = config.conditioning
        schedule = conditioning.low_schedule if conditioning is not None else None
        self.low_schedule = Schedule(schedule) if schedule is not None else None
        self.guide: Stage | None = None
        if guide is not None:
            self.guided_by(guide)

    def guided_by(self, guide: Stage) -> None:
        """Take a guide, without one of its own; ``UserError`` if it does not see and make what the stage does."""
        _check_guide(self.config, guide.config)
        self.guide = Stage(guide.config, guide.network)

    @property
    def name(self) -> str:
        """The stage's name, such as ``sr32``."""
        return self.config.name

    @classmethod
    def load(cls, folder: str | Path, *, guided: bool = False) -> Stage:
        """Open a stage folder, with ``guided`` also the guide in its sub-folder ``guide``.

        Raises:
            UserError: a file is missing, damaged, or does not fit the other.
        """
        folder = Path(folder)
        refuse_outside(folder, folder / CONFIG_FILE, folder / WEIGHTS_FILE)
        config = StageConfig.load(folder / CONFIG_FILE)
        network = empty_network(config)
        weights = load_weights(folder / WEIGHTS_FILE, network.state_dict())
        fill_network(network, weights, folder / WEIGHTS_FILE)
        return cls(config, network, cls.load(folder / GUIDE_FOLDER) if guided else None)

    def to(self, device: str | torch.device) -> Stage:
        """Move the networks to a device."""
        self.waits_on_host = False
        self.network.to(device)
        if self.guide is not None:
            self.guide.to(device)
        return self

    def save(self, folder: str | Path, *, dtype: torch.dtype = torch.float32) -> None:
        """Write the stage folder with the weights in ``dtype``: float16 halves them; loaded they are float32 again.

        Raises:
            UserError: the weights were rounded to bf16 by :meth:`accelerate`.
        """
        if self.is_rounded:
            raise UserError(f"{self.name}: accelerate(precision=bf16) has rounded its weights for good; save it before")
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {key: value.to(dtype) for key, value in self.network.state_dict().items()}
        write_tensors(state, folder / WEIGHTS_FILE)
        write_json(folder / CONFIG_FILE, self.config.model_dump(mode="json"))
        if self.guide is not None:
            self.guide.save(folder / GUIDE_FOLDER, dtype=dtype)

    def accelerate(self, *, compile: CompileChoice = "auto", precision: Precision = "fp32") -> None:
        """Make sampling faster, on the device that the network is on now; its samples change by rounding.

        It goes for the guide too.

        Args:
            compile: ``torch.compile`` and, on CUDA, CUDA graphs.
            precision: as in training; with bf16 the weights of convolutions and matrices become bf16 once and for all,
                so the stage cannot be saved afterwards.

        Raises:
            UserError: the stage is off-loaded, which would move its weights away under a recorded graph.
        """
        if self.waits_on_host:
            raise UserError(f"accelerate: {self.name} is off-loaded; allowed for a cascade that is on its device whole")
        device = next(self.network.parameters()).device
        if computes_in_bf16(precision, device):
            for module in self.network.modules():
                if isinstance(module, nn.Conv2d | nn.Linear):
                    module.to(torch.bfloat16)
        self._precision = precision
        self._call = cuda_graphs(self.network, compile, device)
        if self.guide is not None:
            self.guide.accelerate(compile=compile, precision=precision)

    @property
    def is_rounded(self) -> bool:
        """Whether weights were rounded to bf16 for good."""
        return any(parameter.dtype == torch.bfloat16 for parameter in self.network.parameters())

    @property
    def is_accelerated(self) -> bool:
        """Whether :meth:`accelerate` was called."""
        return self._call is not None

    def network_call(
        self, *, labels: Tensor | None, low_res: Tensor | None, s: Tensor | None, guidance: float = 1.0
    ) -> NetworkCall:
        """The network with its conditions filled in; guidance runs both halves as one batch.

        Guided output = without class + guidance (with class - without): Ho & Salimans (2207.12598), eq. 6 with
        w = guidance - 1.
        """

        def plain(x: Tensor, time: Tensor) -> Tensor:
            return self._run(x, time, labels=labels, low_res=low_res, s=s)

        if guidance == 1.0 or labels is None:
            return plain

        def twice(value: Tensor | None) -> Tensor | None:
            return None if value is None else torch.cat([value, value])

        both_labels = torch.cat([labels, torch.full_like(labels, -1)])
        both_low, both_s = twice(low_res), twice(s)
        channels = self.config.channels

        def guided(x: Tensor, time: Tensor) -> Tensor:
            output = self._run(
                torch.cat([x, x]), torch.cat([time, time]), labels=both_labels, low_res=both_low, s=both_s
            )
            with_class, without = output.chunk(2)
            mixed = without[:, :channels] + guidance * (with_class[:, :channels] - without[:, :channels])
            # A learned variance is not extrapolated: it is that of the class.
            return torch.cat([mixed, with_class[:, channels:]], dim=1)

        return guided

    def _run(self, x: Tensor, time: Tensor, **conditions: Any) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        # What is rounded stays so, and may have been by another stage of the same network: a guide's.
        with autocast("bf16" if self.is_rounded else self._precision, x.device):
            output: Tensor = (self._call or self.network)(x, time, **conditions)
            return output
