"""Do a classifier's eyes see in the samples what was asked for, and can a classifier learn from them?

Two figures for class-conditional Fashion-MNIST samples at 32x32, from one small residual network:

* **recognition**: the share of samples that a classifier trained on the 60,000 real images recognises as the class they
  were asked for. It rewards typical samples and does not see missing variety.
* **classification accuracy score** (CAS; Ravuri and Vinyals 2019, arXiv 1905.10887): train the classifier from scratch
  on samples only and test it on the 10,000 real test images, beside the same network trained for as many steps on
  equally many real images. It does see missing variety.

Usage, with DIR a folder made by `cdm prepare fashion-mnist DIR --resolutions 32` (or more resolutions):

    python benchmarks/fashion_mnist_recognition.py train-classifier --data DIR --out classifier.safetensors
    python benchmarks/fashion_mnist_recognition.py recognise --classifier classifier.safetensors SAMPLES.npz [...]
    python benchmarks/fashion_mnist_recognition.py cas --data DIR SAMPLES.npz [...]

SAMPLES.npz is what `cdm sample` writes: `arr_0` uint8 (N, 32, 32, 1 or 3), `arr_1` int64 (N,) with classes 0 to 9.
The classifier's training images are shifted by up to 2 pixels and mirrored at random, real ones and samples alike: that
helps a classifier. The diffusion recipes do not mirror, since in this data set all shoes point the same way.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from measuring import hardware
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
SIZE = 32
SHIFT = 2  # pixels; as wide as the margin that the 28x28 originals have inside 32x32, so nothing is pushed out
MEAN, STD = 0.22, 0.33  # of the padded training images scaled to [0, 1]


@dataclass(frozen=True)
class Settings:
    """How a classifier is trained: the same for real images and for samples."""

    steps: int
    batch_size: int = 128
    peak_rate: float = 0.08
    warm_up: float = 0.2
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1
    seed: int = 0
    precision: str = "auto"


def fail(message: str) -> NoReturn:
    """End with one line on standard error and exit status 2: the user can put this right."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


# ---------------------------------------------------------------------------------------------------------------- data


def grey(images: np.ndarray, where: str) -> Tensor:
    """(N, 32, 32, 1 or 3) uint8 to a (N, 32, 32) uint8 tensor; colours are averaged."""
    if (
        images.dtype != np.uint8
        or images.ndim != 4
        or images.shape[1:3] != (SIZE, SIZE)
        or images.shape[3] not in (1, 3)
    ):
        fail(f"{where} is {images.dtype} {images.shape}; allowed is uint8 (N, {SIZE}, {SIZE}, 1 or 3)")
    mean = images[..., 0] if images.shape[3] == 1 else np.rint(images.mean(axis=-1)).astype(np.uint8)
    return torch.from_numpy(np.ascontiguousarray(mean))


def class_ids(labels: np.ndarray, count: int, where: str) -> Tensor:
    """(N,) integer labels to an int64 tensor, refusing whatever is not one of the ten classes."""
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        fail(f"{where} is {labels.dtype} {labels.shape}; allowed are {count} integers, one for each image")
    if count == 0:
        fail(f"{where} is empty; at least one image is needed")
    if labels.min() < 0 or labels.max() >= len(CLASSES):
        fail(f"{where} holds classes from {labels.min()} to {labels.max()}; allowed are 0 to {len(CLASSES) - 1}")
    return torch.from_numpy(labels.astype(np.int64))


def load_split(data: Path, split: str) -> tuple[Tensor, Tensor]:
    """Images (N, 32, 32) uint8 and labels (N,) int64 of one split of a prepared folder."""
    folder = data / split
    arrays = []
    for name in (f"images_{SIZE}.npy", "labels.npy"):
        try:
            arrays.append(np.load(folder / name, allow_pickle=False))
        except FileNotFoundError:
            fail(f"{folder / name} is missing; make it with: cdm prepare fashion-mnist {data} --resolutions {SIZE}")
        except (OSError, EOFError, ValueError) as error:
            fail(f"{folder / name} cannot be read as an array: {error}")
    images = grey(arrays[0], str(folder / f"images_{SIZE}.npy"))
    return images, class_ids(arrays[1], len(images), str(folder / "labels.npy"))


def load_samples(path: Path) -> tuple[Tensor, Tensor]:
    """Images (N, 32, 32) uint8 and the classes asked for (N,) int64 of a samples file."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            images, labels = archive["arr_0"], archive["arr_1"]
    except FileNotFoundError:
        fail(f"{path} does not exist; expected is an .npz written by cdm sample")
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile):
        fail(f"{path} is not an .npz with plain arrays arr_0 (images) and arr_1 (labels)")
    return grey(images, f"{path}: arr_0"), class_ids(labels, len(images), f"{path}: arr_1")


def load_all_samples(paths: list[Path]) -> tuple[Tensor, Tensor]:
    """Several samples files as one."""
    parts = [load_samples(path) for path in paths]
    return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])


def scaled(images: Tensor) -> Tensor:
    """(N, 32, 32) uint8 to the network's (N, 1, 32, 32) float, roughly zero mean and unit variance."""
    x = images.unsqueeze(1).float().div_(255).sub_(MEAN).div_(STD)
    return x.contiguous(memory_format=torch.channels_last)


def varied(images: Tensor, generator: torch.Generator) -> Tensor:
    """Every image of (N, 32, 32) moved by up to 2 pixels each way, black entering, and half of them mirrored."""
    width = SIZE + 2 * SHIFT
    padded = functional.pad(images, (SHIFT,) * 4).flatten(1)
    dy, dx = torch.randint(0, 2 * SHIFT + 1, (2, len(images), 1), generator=generator)
    window = (torch.arange(SIZE)[:, None] * width + torch.arange(SIZE)).flatten()
    moved = padded.gather(1, window + dy * width + dx).view(-1, SIZE, SIZE)
    mirror = torch.rand(len(images), 1, 1, generator=generator) < 0.5
    return torch.where(mirror, moved.flip(-1), moved)


# ------------------------------------------------------------------------------------------------------------- network


def convolution(inputs: int, outputs: int) -> nn.Sequential:
    """3x3 convolution, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class Residual(nn.Module):
    """x + two convolutions of x."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(convolution(channels, channels), convolution(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same."""
        change: Tensor = self.body(x)
        return x + change


def build_network() -> nn.Sequential:
    """An eight-layer residual network of 0.48 M parameters: (N, 1, 32, 32) to (N, 10) logits."""
    network = nn.Sequential(
        convolution(1, 32),
        nn.MaxPool2d(2),
        convolution(32, 64),  # 16x16
        nn.MaxPool2d(2),
        Residual(64),  # 8x8
        convolution(64, 128),
        nn.MaxPool2d(2),
        Residual(128),  # 4x4
        nn.Flatten(),  # garments are centred, so where a feature is tells something that pooling would lose
        nn.Linear(128 * 4 * 4, len(CLASSES)),
    )
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
    return network


# ------------------------------------------------------------------------------------------------------------ training


def optimise(
    network: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, smooth: float, bf16: bool
) -> float:
    """One optimiser step; returns the loss."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = network(x)
    loss = functional.cross_entropy(logits.float(), y, label_smoothing=smooth)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def bf16_is_faster(network: nn.Module, batch_size: int) -> bool:
    """Time three steps of a copy either way: processors without bf16 arithmetic emulate it slowly."""
    x = torch.zeros(batch_size, 1, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
    y = torch.zeros(batch_size, dtype=torch.int64)
    fastest = {}
    for bf16 in (True, False):
        trial = copy.deepcopy(network)
        optimizer = torch.optim.SGD(trial.parameters(), lr=0.0)
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            optimise(trial, optimizer, x, y, 0.0, bf16)
            seconds.append(time.perf_counter() - start)
        fastest[bf16] = min(seconds)
    return fastest[True] < fastest[False]


def train(
    images: Tensor, labels: Tensor, settings: Settings, say: Callable[[str], None]
) -> tuple[nn.Module, dict[str, Any]]:
    """Train a classifier on (N, 32, 32) uint8 images; returns it in evaluation mode and a record of the run."""
    generator = torch.Generator().manual_seed(settings.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = build_network()
    bf16 = (
        bf16_is_faster(network, settings.batch_size) if settings.precision == "auto" else settings.precision == "bf16"
    )
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=settings.peak_rate,
        momentum=settings.momentum,
        nesterov=True,
        weight_decay=settings.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.peak_rate, total_steps=settings.steps + 1, pct_start=settings.warm_up, cycle_momentum=False
    )
    network.train()
    order = torch.empty(0, dtype=torch.int64)
    start, busy = time.perf_counter(), time.process_time()
    losses: list[float] = []
    for step in range(1, settings.steps + 1):
        while len(order) < settings.batch_size:  # epochs follow each other without a short batch in between
            order = torch.cat([order, torch.randperm(len(images), generator=generator)])
        chosen, order = order[: settings.batch_size], order[settings.batch_size :]
        x, y = scaled(varied(images[chosen], generator)), labels[chosen]
        losses.append(optimise(network, optimizer, x, y, settings.label_smoothing, bf16))
        schedule.step()
        if step % 250 == 0 or step == settings.steps:
            seconds = time.perf_counter() - start
            left = seconds / step * (settings.steps - step)
            say(f"step {step}/{settings.steps}  loss {np.mean(losses[-250:]):.3f}  {seconds:.0f} s, {left:.0f} s left")
    record = {
        "settings": asdict(settings),
        "precision": "bf16" if bf16 else "fp32",
        "training_images": len(images),
        "epochs": settings.steps * settings.batch_size / len(images),
        "training_seconds": time.perf_counter() - start,
        "training_core_seconds": time.process_time() - busy,
    }
    return network.eval(), record


@torch.inference_mode()
def predict(network: nn.Module, images: Tensor) -> Tensor:
    """The class of each of (N, 32, 32) uint8 images, (N,) int64, in fp32."""
    return torch.cat([network(scaled(part)).argmax(dim=1) for part in images.split(500)])


# ------------------------------------------------------------------------------------------------------------- figures


def confusion(wanted: Tensor, found: Tensor) -> np.ndarray:
    """Counts (10, 10): row the class asked for (or true), column the class recognised."""
    k = len(CLASSES)
    return torch.bincount(wanted * k + found, minlength=k * k).view(k, k).numpy()


def summary(table: np.ndarray) -> dict[str, Any]:
    """Accuracy in per cent, overall with its binomial standard error and per class (None without images)."""
    n, share = int(table.sum()), float(np.trace(table) / table.sum())
    rows = table.sum(axis=1)
    per_class = {name: 100 * float(table[i, i] / rows[i]) if rows[i] else None for i, name in enumerate(CLASSES)}
    return {
        "accuracy": 100 * share,
        "standard_error": 100 * (share * (1 - share) / n) ** 0.5,
        "n": n,
        "per_class": per_class,
    }


def headline(title: str, scores: dict[str, Any]) -> None:
    """Print one figure with what belongs to it."""
    print(f"{title}: {scores['accuracy']:.2f} % +- {scores['standard_error']:.2f} of {scores['n']}   [{hardware()}]")


def print_classes(columns: dict[str, dict[str, Any]]) -> None:
    """Print the per-class figures of one or more summaries side by side."""
    width = max(12, *(len(title) + 2 for title in columns))
    print(f"{'class':>14}" + "".join(f"{title:>{width}}" for title in columns))
    for name in CLASSES:
        values = (scores["per_class"][name] for scores in columns.values())
        print(f"{name:>14}" + "".join(f"{'-' if v is None else f'{v:.1f} %':>{width}}" for v in values))


def print_confusion(table: np.ndarray) -> None:
    """Print the counts: a row for each class asked for, a column for each class recognised."""
    print("asked for (rows) against recognised as (columns)")
    print(" " * 14 + "".join(f"{name[:7]:>8}" for name in CLASSES))
    for name, row in zip(CLASSES, table, strict=True):
        print(f"{name:>14}" + "".join(f"{count or '.':>8}" for count in row.tolist()))


def write_json(path: Path | None, content: dict[str, Any]) -> None:
    """Write the figures with the hardware and the command they came from, if a file is asked for."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        full = {**content, "hardware": hardware(), "command": " ".join(sys.argv)}
        path.write_text(json.dumps(full, indent=2) + "\n", encoding="utf-8")


# ------------------------------------------------------------------------------------------------------------ commands


def say(line: str) -> None:
    """Print a line of progress at once."""
    print(line, flush=True)


def settings_of(args: argparse.Namespace) -> Settings:
    """The training settings that the command line asks for."""
    return Settings(steps=args.steps, seed=args.seed, precision=args.precision)


def train_classifier(args: argparse.Namespace) -> None:
    """Train on the real training images, test on the real test images, save weights and a record beside them."""
    if args.out.suffix != ".safetensors":
        fail(f"--out {args.out} must end in .safetensors")
    images, labels = load_split(args.data, "train")
    test_images, test_labels = load_split(args.data, "val")
    network, record = train(images, labels, settings_of(args), say)
    scores = summary(confusion(test_labels, predict(network, test_images)))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, args.out)
    write_json(args.out.with_suffix(".json"), {"real_test_images": scores, **record})
    headline("real test images recognised", scores)
    print_classes({"real": scores})
    spent = f"{record['training_seconds']:.0f} s, {record['training_core_seconds']:.0f} core-seconds"
    print(f"trained in {spent}; wrote {args.out} and {args.out.with_suffix('.json').name}")


def load_classifier(path: Path) -> nn.Module:
    """A classifier that `train-classifier` saved, in evaluation mode."""
    network = build_network()
    try:
        network.load_state_dict(load_file(path))
    except FileNotFoundError:
        fail(f"--classifier {path} does not exist; make it with train-classifier")
    except (OSError, RuntimeError, SafetensorError) as error:
        fail(f"--classifier {path} does not hold this script's network: {str(error).splitlines()[0]}")
    return network.eval()


def recognise(args: argparse.Namespace) -> None:
    """Print the share of samples recognised as the class asked for."""
    network = load_classifier(args.classifier)
    images, labels = load_all_samples(args.samples)
    table = confusion(labels, predict(network, images))
    scores = summary(table)
    headline("samples recognised as the class asked for", scores)
    record = args.classifier.with_suffix(".json")
    if record.exists():
        real = json.loads(record.read_text(encoding="utf-8"))["real_test_images"]
        headline("real test images, by the same classifier", real)
        print_classes({"samples": scores, "real": real})
    else:
        print_classes({"samples": scores})
    print_confusion(table)
    write_json(
        args.json, {"recognition": scores, "confusion": table.tolist(), "samples": [str(path) for path in args.samples]}
    )


def like_counted(images: Tensor, labels: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The first real images of each class, as many of each class as ``wanted`` (N,) holds."""
    chosen = []
    for i, name in enumerate(CLASSES):
        count, found = int((wanted == i).sum()), torch.nonzero(labels == i).flatten()
        if count > len(found):
            fail(f"{count} samples of class {name}, but only {len(found)} real images to compare with: give fewer")
        chosen.append(found[:count])
    index = torch.cat(chosen)
    return images[index], labels[index]


def cas(args: argparse.Namespace) -> None:
    """Print the classification accuracy score of samples beside that of equally many real images."""
    images, labels = load_all_samples(args.samples)
    test_images, test_labels = load_split(args.data, "val")
    sets = {"samples": (images, labels)}
    if not args.no_real:
        sets["real"] = like_counted(*load_split(args.data, "train"), labels)
    scores: dict[str, dict[str, Any]] = {}
    for title, (x, y) in sets.items():
        say(f"training on {len(x)} {'samples' if title == 'samples' else 'real images'}, {args.steps} steps")
        network, record = train(x, y, settings_of(args), say)
        scores[title] = {**summary(confusion(test_labels, predict(network, test_images))), **record}
    for title, figure in scores.items():
        headline(f"real test images recognised after training on {figure['training_images']} {title} only", figure)
    if "real" in scores:
        print(f"gap: {scores['real']['accuracy'] - scores['samples']['accuracy']:.2f} points   [{hardware()}]")
    print_classes(scores)
    write_json(args.json, {"classification_accuracy_score": scores, "samples": [str(path) for path in args.samples]})


def positive(text: str) -> int:
    """An argument that must be a whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a whole number of at least 1")
    return value


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], None], steps: int | None) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=run.__doc__, description=run.__doc__)
        sub.set_defaults(run=run)
        if steps is not None:
            sub.add_argument(
                "--data", type=Path, required=True, metavar="DIR", help="folder made by cdm prepare fashion-mnist"
            )
            sub.add_argument(
                "--steps", type=positive, default=steps, help=f"optimiser steps of 128 images (default {steps})"
            )
            sub.add_argument("--seed", type=int, default=0, help="of the initial weights, order and shifts (default 0)")
            sub.add_argument(
                "--precision", choices=("auto", "bf16", "fp32"), default="auto", help="auto times both (default auto)"
            )
        return sub

    trainer = command("train-classifier", train_classifier, 5000)
    trainer.add_argument("--out", type=Path, required=True, metavar="FILE.safetensors")
    recogniser = command("recognise", recognise, None)
    recogniser.add_argument("--classifier", type=Path, required=True, metavar="FILE.safetensors")
    scorer = command("cas", cas, 2400)
    scorer.add_argument(
        "--no-real", action="store_true", help="leave out the comparison with real images: half the time"
    )
    for sub in (recogniser, scorer):
        sub.add_argument("samples", type=Path, nargs="+", metavar="SAMPLES.npz")
        sub.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    return top


if __name__ == "__main__":
    arguments = parser().parse_args()
    arguments.run(arguments)
