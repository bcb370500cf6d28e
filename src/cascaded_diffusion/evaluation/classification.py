"""Training a classifier, and what it makes of images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from cascaded_diffusion.config import StrictModel
from cascaded_diffusion.data.packed import ImageRows
from cascaded_diffusion.evaluation.classifier import Classifier, ClassifierConfig, default_architecture
from cascaded_diffusion.precision import Precision, autocast
from cascaded_diffusion.randomness import derive_seed, permutation, random_words

__all__ = ["ClassifierTraining", "config_for", "predict", "train_classifier"]


class ClassifierTraining(StrictModel):
    """How a classifier is trained: SGD with momentum, one cycle of the learning rate."""

    images: int = Field(
        default=307_200, ge=1, le=10**13, description="Length of the training in images, repeats counted."
    )
    batch_size: int = Field(
        default=128, ge=2, le=1_000_000, description="Images a step; batch norm needs at least two."
    )
    learning_rate: float = Field(default=0.08, gt=0, le=100, description="Peak learning rate.")
    warm_up: float = Field(default=0.2, ge=0, lt=1, description="Share of the training until the peak.")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="Nesterov momentum.")
    weight_decay: float = Field(default=5e-4, ge=0, le=100, description="Weight decay.")
    grad_clip: float | None = Field(
        default=1.0,
        gt=0,
        le=1e9,
        description="Largest gradient norm; null for none. Without it a training may collapse at the peak of the "
        "learning rate.",
    )
    label_smoothing: float = Field(default=0.1, ge=0, lt=1, description="Share of the target spread over all classes.")
    shift: float = Field(default=1 / 16, ge=0, lt=0.5, description="Largest shift, as a share of the side.")
    flip: bool = Field(default=True, description="Mirror half of the images.")
    seed: int = Field(default=0, ge=0, lt=2**63, description="Of the initial weights, the order, shifts and flips.")
    precision: Precision = Field(default="auto", description="As in a stage's training.")

    def rate(self, seen: int) -> float:
        """Learning rate after ``seen`` images: linear rise, then a half cosine down to zero."""
        share = min(seen / self.images, 1.0)
        if share < self.warm_up:
            return self.learning_rate * (0.05 + 0.95 * share / self.warm_up)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (share - self.warm_up) / (1 - self.warm_up)))


def config_for(images: ImageRows, classes: int, class_names: Sequence[str] | None = None) -> ClassifierConfig:
    """The classifier for uint8 (N, R, R, C) images: network by resolution, mean and std from 10,000 of them."""
    mean, std = _mean_and_std(images)
    return ClassifierConfig(
        architecture=default_architecture(images.shape[1]),
        resolution=images.shape[1],
        channels=images.shape[3],
        classes=classes,
        class_names=None if class_names is None else tuple(class_names),
        mean=round(mean, 4),
        std=max(round(std, 4), 1e-4),
    )


def _mean_and_std(images: ImageRows, most: int = 10_000, block: int = 100) -> tuple[float, float]:
    """Of the first images' values in [0, 1], from whole sums: as floating-point numbers they would fill the memory."""
    count, total, squares = 0, 0, 0
    for start in range(0, min(len(images), most), block):
        some = np.asarray(images[start : min(start + block, most)])
        count += some.size
        total += int(some.sum(dtype=np.int64))
        squares += int(np.square(some, dtype=np.int64).sum())
    mean = total / count
    return mean / 255, (squares / count - mean**2) ** 0.5 / 255


def _varied(images: Tensor, index: Tensor, training: ClassifierTraining) -> Tensor:
    """(N, H, W, C) images, each shifted with black entering and perhaps mirrored; ``index`` (N,) are positions."""
    reach = round(training.shift * images.shape[1])
    words = random_words(training.seed, "classifier/vary", index, 3)
    count, height, width, _ = images.shape
    rows = torch.arange(height) + (words[:, :1] % (2 * reach + 1)) - reach
    columns = torch.arange(width) + (words[:, 1:2] % (2 * reach + 1)) - reach
    if training.flip:
        columns = torch.where(words[:, 2:] % 2 == 1, width - 1 - columns, columns)
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    row, column = rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None, :]
    moved = images[torch.arange(count)[:, None, None], row, column]
    return moved * inside[..., None]


def _to_input(classifier: Classifier, images: Tensor, device: torch.device) -> Tensor:
    return classifier.normalise(images.to(device).permute(0, 3, 1, 2).float() / 255)


def train_classifier(
    images: ImageRows,
    labels: np.ndarray,
    config: ClassifierConfig,
    training: ClassifierTraining,
    *,
    device: torch.device,
    watch: Callable[[int, int], None] | None = None,
) -> Classifier:
    """Train from scratch; the result, in eval mode, depends on nothing but the arguments.

    Args:
        images: uint8 (N, R, R, C) of the configuration's resolution and channels.
        labels: int64 (N,) in [0, classes).
        config: the network.
        training: how.
        device: where.
        watch: called with images seen and their total after every step.

    Raises:
        ValueError: images or labels that the configuration does not fit.
        RuntimeError: the loss is not finite.
    """
    _check(images, labels, config)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(derive_seed(training.seed, "classifier/weights") >> 1)
        network = Classifier(config).to(device).train()
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=training.learning_rate,
        momentum=training.momentum,
        nesterov=training.momentum > 0,
        weight_decay=training.weight_decay,
    )
    order = _Order(len(images), training.seed)
    seen = 0
    while seen < training.images:
        index = torch.arange(seen, seen + training.batch_size)
        where = order.at(index)
        batch = _varied(torch.from_numpy(images[where]), index, training)
        target = torch.from_numpy(labels[where]).to(device)
        for group in optimizer.param_groups:
            group["lr"] = training.rate(seen)
        with autocast(training.precision, device):
            logits = network(_to_input(network, batch, device))
        loss = F.cross_entropy(logits.float(), target, label_smoothing=training.label_smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if training.grad_clip is not None:
            torch.nn.utils.clip_grad_norm_(network.parameters(), training.grad_clip)
        optimizer.step()
        seen += training.batch_size
        if seen % (50 * training.batch_size) == 0 and not math.isfinite(float(loss.detach())):
            raise RuntimeError(f"classifier: loss {float(loss.detach())} after {seen} images")
        if watch is not None:
            watch(min(seen, training.images), training.images)
    # The loss is not looked at in every step, nor after the last; what it does to the network stays.
    if not all(bool(value.isfinite().all()) for value in network.state_dict().values()):
        raise RuntimeError(f"classifier: its weights are not finite after {seen} images")
    return network.eval().requires_grad_(False)


class _Order:
    """Every epoch in its own order, epochs following each other without a short batch in between."""

    def __init__(self, length: int, seed: int) -> None:
        self._length, self._seed = length, seed
        self._epochs: dict[int, np.ndarray] = {}

    def at(self, index: Tensor) -> np.ndarray:
        epochs, within = np.divmod(index.numpy(), self._length)
        wanted = np.unique(epochs).tolist()
        self._epochs = {epoch: self._epochs[epoch] for epoch in wanted if epoch in self._epochs}
        for epoch in wanted:
            if epoch not in self._epochs:
                order = permutation(self._seed, "classifier/order", self._length, step=epoch)
                self._epochs[epoch] = order.numpy()
        return np.array([self._epochs[int(e)][w] for e, w in zip(epochs, within, strict=True)])


def _check(images: ImageRows, labels: np.ndarray, config: ClassifierConfig) -> None:
    shape = (config.resolution, config.resolution, config.channels)
    if images.dtype != np.uint8 or images.shape[1:] != shape or not len(images):
        raise ValueError(f"images: {images.dtype} {images.shape}; allowed: uint8 (N, {', '.join(map(str, shape))})")
    if labels.dtype != np.int64 or labels.shape != (len(images),):
        raise ValueError(f"labels: {labels.dtype} {labels.shape}; allowed: int64 ({len(images)},)")
    if labels.min() < 0 or labels.max() >= config.classes:
        raise ValueError(f"labels: from {labels.min()} to {labels.max()}; allowed: 0 to {config.classes - 1}")


@torch.no_grad()
def predict(
    classifier: Classifier, images: ImageRows, *, batch_size: int = 500, with_features: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Logits (N, K) of uint8 (N, R, R, C) images and, if asked for, features (N, D): float32, on the CPU."""
    device = next(classifier.parameters()).device
    logits, features = [], []
    for start in range(0, len(images), batch_size):
        x = _to_input(classifier, torch.from_numpy(np.array(images[start : start + batch_size])), device)
        found = classifier.features(x)
        logits.append(classifier.head(found).cpu())
        if with_features:
            features.append(found.cpu())
    return torch.cat(logits), torch.cat(features) if with_features else None
