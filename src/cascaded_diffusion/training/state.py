"""What a training run carries from step to step, and how it is saved and taken up again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cascaded_diffusion.cascade.stage import StageConfig, build_network
from cascaded_diffusion.errors import UserError, one_line
from cascaded_diffusion.networks.unet import UNet
from cascaded_diffusion.precision import computes_in_bf16
from cascaded_diffusion.randomness import derive_seed
from cascaded_diffusion.ranks import current_ranks
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
from cascaded_diffusion.training.sharding import is_sharded, laid_out_as, shard, whole

__all__ = ["Parts", "TrainingState", "learning_rate"]


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


def _network(config: StageConfig) -> UNet:
    """The stage's network with its initial weights, on the CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.training.seed, f"training/{config.name}/weights") >> 1)
        return build_network(config)


def _laid_out(tensors: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: laid_out_as(value, targets[name]) for name, value in tensors.items()}


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


class Parts(NamedTuple):
    """The tensors of a checkpoint, whole."""

    weights: dict[str, Tensor]
    averages: dict[int | str, dict[str, Tensor]]
    """By half-life, and power-function averages by name."""
    optimizer: dict[str, Any]
    """The optimizer's state dict."""


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
        """A new state; the initial weights depend on the seed and the stage's name alone.

        With ``training.sharding`` every process of the launch holds its part of it.
        """
        training, network = config.training, _network(config)
        network = network.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        if training.sharding == "full":
            shard(network, device, bf16=computes_in_bf16(training.precision, device))
        averages = Averages(network, training.ema_half_lives, training.ema_rampup)
        power = PowerAverages(network, training.power_ema)
        return cls(config, network, _optimizer(training, network, device), averages, power)

    @property
    def sharded(self) -> bool:
        """Whether this process holds a part of the state alone, and its checkpoint needs the others."""
        return is_sharded(self.network)

    def gather(self) -> Parts | None:
        """What a checkpoint holds, on rank 0; every process must ask for it, and the others get ``None``.

        A sharded state is gathered tensor by tensor into rank 0's main memory, so that a checkpoint is the same file
        whoever wrote it; a state that is whole is not copied.
        """
        if self.sharded:
            optimizer = self.optimizer.state_dict()
            moments = {position: self._gather_each(of_one) for position, of_one in sorted(optimizer["state"].items())}
            parts = Parts(
                self._gather_each(self.network.state_dict()),
                {key: self._gather_each(average) for key, average in self._averages().items()},
                {**optimizer, "state": moments},
            )
        else:
            parts = Parts(self.network.state_dict(), self._averages(), self.optimizer.state_dict())
        return parts if current_ranks().is_main else None

    def gather_power(self) -> dict[str, dict[str, Tensor]] | None:
        """The power-function averages, whole, on rank 0; every process must ask for it, and the others get ``None``."""
        weights = self.power.weights
        if self.sharded:
            weights = {name: self._gather_each(average) for name, average in weights.items()}
        return weights if current_ranks().is_main else None

    def _gather_each(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        keep = current_ranks().is_main
        found = {}
        for name, tensor in tensors.items():
            full = whole(tensor)  # on every process, one at a time
            if keep:
                found[name] = full.detach().cpu()
        return found

    def for_preview(self) -> tuple[UNet, dict[str, Tensor]] | None:
        """A network of this stage and the averaged weights to sample with, on rank 0; every process must ask for it."""
        average = self.averages.weights[self.averages.half_lives[0]]
        if not self.sharded:
            return self.network, average
        gathered = self._gather_each(average)
        if not current_ranks().is_main:
            return None
        device = next(self.network.parameters()).device
        return _network(self.config).to(device, memory_format=torch.channels_last), gathered  # type: ignore[call-overload]

    def save(self, run: Path, parts: Parts | None = None, *, data: str | None = None) -> Path:
        """Write a checkpoint.

        Args:
            run: the run folder.
            parts: what :meth:`gather` gave; by default it is asked for, which a sharded state cannot do alone.
            data: which images it was trained on, by hash.

        Raises:
            NotFiniteError: the state is not finite: it must never replace a good one.
            OSError: it cannot be written.
        """
        parts = self.gather() if parts is None else parts
        assert parts is not None  # rank 0 saves
        self.check_finite(self._tensors(parts))
        return write_checkpoint(
            run,
            self.images,
            weights=parts.weights,
            averages=parts.averages,
            optimizer=parts.optimizer,
            extra={
                "stage": self.config.name,
                "ema_half_lives": list(self.averages.half_lives),
                **({"power_ema": list(self.power.sigma_rels)} if self.power.sigma_rels else {}),
                "guard": self.guard.to_json(),
                **({} if data is None else {"data": data}),
                "torch": torch.__version__,
            },
        )

    def check_finite(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """``NotFiniteError`` if one of the named tensors holds a number that is not finite."""
        for name, tensor in tensors:
            if not bool(torch.isfinite(tensor).all()):
                raise NotFiniteError(
                    f"{self.config.name}: {name} is not finite after {self.images} images; nothing was saved"
                )

    def _averages(self) -> dict[int | str, dict[str, Tensor]]:
        """All averages: those by half-life, and power-function averages by name."""
        both: dict[int | str, dict[str, Tensor]] = {}
        for half_life, average in self.averages.weights.items():
            both[half_life] = average
        for name, average in self.power.weights.items():
            both[name] = average
        return both

    def _tensors(self, parts: Parts) -> Iterator[tuple[str, Tensor]]:
        """Every floating-point tensor of a checkpoint, with words for it."""
        for position, (name, _) in enumerate(self.network.named_parameters()):
            yield name, parts.weights[name]
            for key, value in parts.optimizer["state"].get(position, {}).items():
                if isinstance(value, Tensor):
                    yield f"the optimizer's {key} of {name}", value
        for half_life, average in parts.averages.items():
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
            own = self.network.state_dict()
            self.network.load_state_dict(_laid_out(read_tensors(folder / WEIGHTS, own), own))
            for half_life in self.averages.half_lives:
                if (folder / ema_file(half_life)).exists():
                    average = self.averages.weights[half_life]
                    weights = read_tensors(folder / ema_file(half_life), average)
                    self.averages.load(half_life, _laid_out(weights, average))
                else:  # a half-life added by --allow-changes starts from the weights
                    self.averages.load(half_life, dict(self.network.named_parameters()))
            for name, own in self.power.weights.items():
                # One added by --allow-changes takes the weights for what they were all along.
                saved = (folder / ema_file(name)).exists()
                found = read_tensors(folder / ema_file(name), own) if saved else dict(self.network.named_parameters())
                self.power.load(name, _laid_out(found, own) if saved else found)
            self._load_optimizer(folder)
            self.guard = Guard.from_json(manifest["guard"]) if "guard" in manifest else Guard()
        except (RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
            line = one_line(error, 300)
            raise UserError(f"{folder}: does not fit this stage's network or optimizer ({line})") from None
        self.images = int(manifest["images"])

    def _load_optimizer(self, folder: Path) -> None:
        """Take up the moments alone: the settings are the configuration's, which --allow-changes may have changed."""
        settings = [
            {key: value for key, value in group.items() if key != "params"} for group in self.optimizer.param_groups
        ]
        parameters = list(self.network.parameters())
        saved = load_optimizer(folder, parameters)
        moments = {
            position: {key: laid_out_as(value, parameters[position]) for key, value in of_one.items()}
            for position, of_one in saved["state"].items()
        }
        self.optimizer.load_state_dict({**saved, "state": moments})
        for group, own in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(own)
