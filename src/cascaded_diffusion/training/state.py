"""What a training run carries from step to step, and how it is saved and taken up again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cascaded_diffusion.cascade.stage import StageConfig, build_network
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.networks.unet import UNet
from cascaded_diffusion.randomness import derive_seed
from cascaded_diffusion.reading.tensors import read_tensors
from cascaded_diffusion.training.checkpoint import (
    WEIGHTS,
    ema_file,
    load_optimizer,
    read_checkpoint,
    write_checkpoint,
)
from cascaded_diffusion.training.config import TrainingConfig
from cascaded_diffusion.training.ema import Averages
from cascaded_diffusion.training.guard import Guard, NotFiniteError
from cascaded_diffusion.training.power_ema import PowerAverages

__all__ = ["TrainingState", "learning_rate"]


def learning_rate(config: TrainingConfig, images: int) -> float:
    """The learning rate for the step that starts at ``images`` seen.

    It depends on the recipe's length, never on --max-*.
    """
    rate = config.learning_rate
    if config.warmup_images:
        rate *= min(1.0, (images + config.batch_size) / config.warmup_images)
    share = images / config.images
    if config.decay != "constant" and share > config.decay_start:
        left = max(0.0, (1 - share) / (1 - config.decay_start))
        rate *= left if config.decay == "linear" else 0.5 - 0.5 * float(torch.cos(torch.tensor(torch.pi * left)))
    return rate


def _optimizer(config: TrainingConfig, network: UNet, device: torch.device) -> torch.optim.Optimizer:
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(
        network.parameters(),
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=device.type in ("cpu", "cuda"),
    )


@dataclass
class TrainingState:
    """Network, optimizer, averages of both kinds, the count of images seen, and what the guard remembers."""

    config: StageConfig
    network: UNet
    optimizer: torch.optim.Optimizer
    averages: Averages
    power: PowerAverages
    images: int = 0
    guard: Guard = field(default_factory=Guard)

    @classmethod
    def fresh(cls, config: StageConfig, device: torch.device) -> TrainingState:
        """A new state; the initial weights depend on the seed and the stage's name alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(config.training.seed, f"training/{config.name}/weights") >> 1)
            network = build_network(config)
        network = network.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        training = config.training
        averages = Averages(network, training.ema_half_lives, training.ema_rampup)
        power = PowerAverages(network, training.power_ema)
        return cls(config, network, _optimizer(training, network, device), averages, power)

    def save(self, run: Path) -> Path:
        """Write a checkpoint.

        Raises:
            NotFiniteError: the state is not finite: it must never replace a good one.
            OSError: it cannot be written.
        """
        for name, tensor in self._tensors():
            if not bool(torch.isfinite(tensor).all()):
                raise NotFiniteError(
                    f"{self.config.name}: {name} is not finite after {self.images} images; nothing was saved"
                )
        return write_checkpoint(
            run,
            self.images,
            weights=self.network.state_dict(),
            averages=self._averages(),
            optimizer=self.optimizer.state_dict(),
            extra={
                "stage": self.config.name,
                "ema_half_lives": list(self.averages.half_lives),
                **({"power_ema": list(self.power.sigma_rels)} if self.power.sigma_rels else {}),
                "guard": self.guard.to_json(),
                "torch": torch.__version__,
            },
        )

    def _averages(self) -> dict[int | str, dict[str, Tensor]]:
        """All averages: those by half-life, and power-function averages by name."""
        both: dict[int | str, dict[str, Tensor]] = {}
        for half_life, average in self.averages.weights.items():
            both[half_life] = average
        for name, average in self.power.weights.items():
            both[name] = average
        return both

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every floating-point tensor of a checkpoint, with words for it."""
        for name, parameter in self.network.named_parameters():
            yield name, parameter
            for key, value in self.optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    yield f"the optimizer's {key} of {name}", value
        for half_life, average in self._averages().items():
            for name, value in average.items():
                yield f"the average {half_life} of {name}", value

    def load(self, folder: Path, manifest: Mapping[str, Any] | None = None) -> None:
        """Take up a checkpoint.

        Args:
            folder: the checkpoint.
            manifest: what :func:`read_checkpoint` said of it, if its files have been checked already.

        Raises:
            UserError: it is damaged or belongs to another network.
        """
        if manifest is None:
            manifest = read_checkpoint(folder)
        try:
            self.network.load_state_dict(read_tensors(folder / WEIGHTS, self.network.state_dict()))
            for half_life in self.averages.half_lives:
                if (folder / ema_file(half_life)).exists():
                    weights = read_tensors(folder / ema_file(half_life), self.averages.weights[half_life])
                    self.averages.load(half_life, weights)
                else:  # a half-life added by --allow-changes starts from the weights
                    self.averages.load(half_life, dict(self.network.named_parameters()))
            for name, own in self.power.weights.items():
                # One added by --allow-changes takes the weights for what they were all along.
                saved = (folder / ema_file(name)).exists()
                found = read_tensors(folder / ema_file(name), own) if saved else dict(self.network.named_parameters())
                self.power.load(name, found)
            self._load_optimizer(folder)
            self.guard = Guard.from_json(manifest["guard"]) if "guard" in manifest else Guard()
        except (RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
            line = " ".join(str(error).split())[:300]
            raise UserError(f"{folder}: does not fit this stage's network or optimizer ({line})") from None
        self.images = int(manifest["images"])

    def _load_optimizer(self, folder: Path) -> None:
        """Take up the moments alone: the settings are the configuration's, which --allow-changes may have changed."""
        settings = [
            {key: value for key, value in group.items() if key != "params"} for group in self.optimizer.param_groups
        ]
        self.optimizer.load_state_dict(load_optimizer(folder, list(self.network.parameters())))
        for group, own in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(own)
