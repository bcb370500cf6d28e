"""The commands that tools/torture.py kills, and what must hold of their files."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cascaded_diffusion.errors import UserError
from cascaded_diffusion.evaluation.classifier import Classifier, ClassifierConfig, save_classifier
from cascaded_diffusion.samples import write_png_folder
from cascaded_diffusion.training.checkpoint import checkpoint_folders, read_checkpoint
from torture_process import Order, start

__all__ = ["Case", "cases", "differences", "is_known", "make_material", "newest_checkpoint", "violations"]

WALL_CLOCK = frozenset({"images_per_second", "data_wait"})
"""Fields of metrics.jsonl that no two runs share."""

GROWING = frozenset({"metrics.jsonl", "search.json", "results.csv", "cascade.json"})
"""Files that are whole at every moment, but not yet what they will be."""

_COLOURS = ((220, 40, 40), (40, 200, 60), (50, 70, 220), (230, 210, 50))
_RECIPE: dict[str, Any] = {
    "name": "torture",
    "channels": 3,
    "classes": 4,
    "flip": True,
    "stages": [
        {
            "name": name,
            "resolution": resolution,
            "network": {
                "channels": 32,
                "multipliers": [1],
                "blocks": 1,
                "heads": 1,
                "middle_attention": False,
                "patch": resolution // 8,
                "dropout": 0.2,
            },
            "diffusion": {"noise_schedule": {"kind": "cosine", "timesteps": 40}, "prediction": "v"},
            **({"conditioning": {"augmentation": "gaussian", "s_max": 0.5}} if resolution > 8 else {}),
            "training": {
                "images": 160,
                "batch_size": 8,
                "learning_rate": 1e-3,
                "decay": "cosine",
                "warmup_images": 40,
                "ema_half_lives": [16, 64],
                "class_dropout": 0.2,
                "log_every": 8,
                "preview_every": 48,
                "preview_count": 2,
                "checkpoint_every": 16,
                "keep_checkpoints": 2,
            },
            "sampling": {"sampler": "ancestral", "steps": 5}
            | ({"augmentation": "truncated", "s": 0.2} if resolution > 8 else {}),
        }
        for name, resolution in (("base8", 8), ("sr16", 16))
    ],
}
_SHARED = "../../shared"
_PREPARATION = ("prepare", f"{_SHARED}/colours.npz", "data", "--resolutions", "8,16", "--val", "0.2", "--workers", "0")


@dataclass(frozen=True)
class Case:
    """A command to be killed.

    Attributes:
        name: of the case; up to the first dash it is the command's.
        arguments: of ``cdm``, run in a folder of its own two levels below that of the torture.
        copied: names in the shared folder that the command may change, so it gets them as copies.
        ranks: processes that work together.
        option: what ``cdm COMMAND --help`` must name for the case to make sense.
    """

    name: str
    arguments: tuple[str, ...]
    copied: tuple[str, ...] = ()
    ranks: int = 1
    option: str = ""

    @property
    def command(self) -> str:
        """The command of ``cdm``."""
        return self.name.partition("-")[0]


def cases() -> list[Case]:
    """All of them."""

    def training(stage: str) -> tuple[str, ...]:
        recipe, data = f"{_SHARED}/recipe.yaml", f"{_SHARED}/data"
        return ("train", recipe, "--stage", stage, "--data", data, "--out", "run", "--device", "cpu")

    sampling = ("sample", f"{_SHARED}/cascade", "--num", "40", "--batch-size", "6", "--device", "cpu")
    searching = ("search", "cascade", "--data", f"{_SHARED}/data", "--stage", "sr16", "--s", "0,0.2", "--steps", "2")
    features = ("--features", f"{_SHARED}/eye", "--num", "8", "--batch-size", "4", "--cache", "cache")
    return [
        Case("train", training("base8")),
        Case("train-sr", training("sr16")),
        Case("train-accumulated", (*training("base8"), "--set", "training.micro_batch=4")),
        Case("train-workers", (*training("base8"), "--data-workers", "2"), option="--data-workers"),
        Case("train-ranks", training("base8"), ranks=2, option="torchrun"),
        Case("prepare", _PREPARATION),
        Case("prepare-workers", ("prepare", f"{_SHARED}/pictures", *_PREPARATION[2:-1], "2")),
        Case("sample", (*sampling, "--out", "samples.npz", "--grid", "grid.png")),
        Case("sample-pictures", (*sampling, "--out", "pictures", "--stages", "stages")),
        Case("search", (*searching, *features, "--out", "out", "--device", "cpu"), copied=("cascade",)),
    ]


def _write_sources(shared: Path) -> None:
    labels = np.arange(120) % len(_COLOURS)
    shade = np.random.default_rng(0).integers(-25, 26, (120, 16, 1, 1))
    images = (np.array(_COLOURS)[labels][:, None, None, :] + shade).clip(0, 255).astype(np.uint8)
    images = np.repeat(images, 16, axis=2)
    np.savez(shared / "colours.npz", arr_0=images, arr_1=labels)
    write_png_folder(shared / "pictures", images, labels, ["red", "green", "blue", "yellow"])
    (shared / "recipe.yaml").write_text(json.dumps(_RECIPE))
    config = ClassifierConfig(architecture="small", resolution=8, channels=3, classes=4)
    torch.manual_seed(0)
    save_classifier(Classifier(config).eval(), shared / "eye")


def make_material(root: Path) -> None:
    """Fill the shared folder: images, prepared data, a recipe, an untrained extractor, a cascade of two stages."""
    shared, folder = root / "shared", root / "making" / "material"
    shared.mkdir()
    folder.mkdir(parents=True)
    _write_sources(shared)
    training = {case.name: case.arguments for case in cases()}
    commands: list[tuple[str, ...]] = [(*_PREPARATION[:2], f"{_SHARED}/data", *_PREPARATION[3:])]
    for name, run in (("train", "base8"), ("train-sr", "sr16")):
        commands.append((*training[name][:-4], "--out", run, "--device", "cpu", "--max-images", "64"))
    commands.append(("assemble", f"{_SHARED}/cascade", "base8", "sr16", "--ema", "raw"))
    log = root / "making" / "log.txt"
    for arguments in commands:
        running = start(Order(arguments, folder, log))
        if not running.wait(600) or running.status != 0:
            raise SystemExit(f"cdm {arguments[0]}: status {running.status}\n{log.read_text()}")


def is_known(case: Case, root: Path) -> bool:
    """Whether this version of the package has what the case is about."""
    if not case.option:
        return True
    log = root / "making" / f"help-{case.name}.txt"
    start(Order((case.command, "--help"), root, log)).wait(60)
    return case.option in log.read_text()


# ---- what must hold


def _visible(folder: Path) -> Iterator[Path]:
    """Every path below ``folder`` of which no part is hidden."""
    for path in sorted(folder.rglob("*")):
        if not any(part.startswith(".") for part in path.relative_to(folder).parts):
            yield path


def _lines(path: Path) -> list[dict[str, Any] | str]:
    """The lines of a log without its wall-clock fields; half a line as it is."""
    found: list[dict[str, Any] | str] = []
    for line in path.read_text().splitlines(keepends=True):
        if line.endswith("}\n"):
            found.append({key: value for key, value in json.loads(line).items() if key not in WALL_CLOCK})
        else:
            found.append(line)
    return found


def _equal(path: Path, expected: Path) -> bool:
    if path.suffix == ".jsonl":
        return _lines(path) == _lines(expected)
    return path.read_bytes() == expected.read_bytes()


def differences(folder: Path, expected: Path) -> list[str]:
    """How the files of a finished command differ from those of an uninterrupted one, hidden ones included."""
    here, there = ({str(path.relative_to(root)) for path in root.rglob("*")} for root in (folder, expected))
    found = [f"{name}: missing" for name in sorted(there - here)] + [
        f"{name}: left over" for name in sorted(here - there)
    ]
    for name in sorted(here & there):
        if (folder / name).is_file() and not _equal(folder / name, expected / name):
            found.append(f"{name}: differs")
    return found


def violations(folder: Path, expected: Path) -> list[str]:
    """What is wrong with the files of a command that was just killed.

    Whatever has its name is whole: it is what the uninterrupted command makes, or a checkpoint that its manifest
    proves, or a file that grows and can be read.
    """
    found = []
    for path in _visible(folder):
        name = path.relative_to(folder)
        parts = name.parts
        if "checkpoints" in parts[:-1]:
            continue
        if path.is_file() and path.name in GROWING:
            found += _unreadable(path, name)
        elif not (expected / name).exists():
            found.append(f"{name}: a file that the uninterrupted command does not make")
        elif path.is_file() and not _equal(path, expected / name):
            found.append(f"{name}: incomplete under its name")
    for checkpoints in folder.glob("*/checkpoints"):
        found += _damaged(checkpoints)
    return found


def _unreadable(path: Path, name: Path) -> list[str]:
    try:
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".jsonl":
            # The last line may be half a line, which the next start drops.
            for line in path.read_bytes().splitlines(keepends=True):
                if line.endswith(b"\n"):
                    json.loads(line)
    except ValueError as error:
        return [f"{name}: not whole ({error})"]
    return []


def _damaged(checkpoints: Path) -> list[str]:
    found = []
    for path in checkpoints.iterdir():
        if path.name.startswith("."):
            continue
        if not path.name.isdigit() or not path.is_dir():
            found.append(f"{path.name}: not a checkpoint's name")
            continue
        try:
            read_checkpoint(path)
        except UserError as error:
            found.append(str(error))
    return found


def newest_checkpoint(folder: Path) -> int:
    """Images of the newest checkpoint of any run in ``folder``, -1 without one."""
    found = itertools.chain.from_iterable(checkpoint_folders(run.parent) for run in folder.glob("*/checkpoints"))
    return max((int(path.name) for path in found), default=-1)
