"""Small valid files of every kind that is read, made anew from fixed seeds."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from cascaded_diffusion.cascade.chain import Cascade
from cascaded_diffusion.cascade.sampling import SamplingConfig
from cascaded_diffusion.cascade.search_store import PointResult, SearchRecord, SearchRequest, StageResult
from cascaded_diffusion.cascade.stage import Stage, StageConfig, build_network
from cascaded_diffusion.data.prepare import prepare
from cascaded_diffusion.data.prepared import PreparedData
from cascaded_diffusion.evaluation.classifier import Classifier, ClassifierConfig, save_classifier
from cascaded_diffusion.evaluation.scores import Provenance, Score, scores_json
from cascaded_diffusion.training.loop import train
from cascaded_diffusion.training.state import TrainingState

__all__ = [
    "cascade_folder",
    "classifier_folder",
    "idx_file",
    "images",
    "metrics",
    "npz",
    "prepared_folder",
    "run_folder",
    "scores",
    "search_record",
    "stage_config",
    "trained",
]

_SHARED: dict[str, Any] = {
    "network": {"channels": 4, "multipliers": [1], "blocks": 1, "heads": 1, "middle_attention": False},
    "diffusion": {"noise_schedule": {"kind": "cosine", "timesteps": 8}, "prediction": "v"},
    "training": {
        "images": 16,
        "batch_size": 8,
        "ema_half_lives": [16],
        "ema_rampup": None,
        "class_dropout": 0.2,
        "precision": "fp32",
        "log_every": 8,
        "preview_every": 8,
        "preview_count": 2,
    },
    "sampling": {"sampler": "ddim", "steps": 2},
    "channels": 3,
    "classes": 2,
    "class_names": ["red", "blue"],
}


def stage_config(name: str) -> StageConfig:
    """``base4`` or ``sr8``, about as small as a stage can be."""
    raw = json.loads(json.dumps(_SHARED)) | {"name": name, "resolution": 4 if name == "base4" else 8}
    if name == "sr8":
        raw["conditioning"] = {
            "augmentation": "gaussian",
            "s_max": 0.5,
            "low_resolution": 4,
            "low_schedule": {"kind": "cosine", "timesteps": 8},
        }
        raw["sampling"] |= {"augmentation": "truncated", "s": 0.25}
    return StageConfig.model_validate(raw)


def _stage(name: str) -> Stage:
    torch.manual_seed(0)
    config = stage_config(name)
    return Stage(config, build_network(config))


def cascade_folder(folder: Path) -> Path:
    """A cascade of two stages with random weights."""
    Cascade([_stage("base4"), _stage("sr8")], provenance={"base4": {"images": 9}}).save_pretrained(folder)
    return folder


def _pictures(count: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (count, side, side, 3), dtype=np.uint8), np.arange(count) % 2


def npz(compressed: bool = False, *, one_hot: bool = False) -> bytes:
    """A small file of samples with labels."""
    pixels, labels = _pictures(6, 4)
    stream = io.BytesIO()
    rows = np.eye(2, dtype=np.float32)[labels] if one_hot else labels
    (np.savez_compressed if compressed else np.savez)(stream, pixels, rows)
    return stream.getvalue()


def prepared_folder(folder: Path) -> Path:
    """Prepared data at 4 and 8 pixels with a val split."""
    pixels, labels = _pictures(24, 8)
    np.savez(folder.with_suffix(".npz"), pixels, labels)
    prepare(str(folder.with_suffix(".npz")), folder, resolutions=[4, 8], val=0.2, workers=0, note=lambda _: None)
    return folder


@cache
def trained() -> dict[str, bytes]:
    """The files of a run of two steps, by their names in its folder; made once, also for processes forked later."""
    with tempfile.TemporaryDirectory() as place:
        run = Path(place) / "run"
        data = PreparedData.open(prepared_folder(Path(place) / "data"))
        train(stage_config("base4"), data, run, device=torch.device("cpu"))
        return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def run_folder(folder: Path) -> Path:
    """A run of two steps."""
    for name, content in trained().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def fresh_state() -> TrainingState:
    """What a run of ``base4`` carries, before a checkpoint is loaded."""
    return TrainingState.fresh(stage_config("base4"), torch.device("cpu"))


def metrics() -> bytes:
    """A log of three lines."""
    line = {"images": 8, "lr": 1e-4, "loss": 0.5, "grad_norm": 1.5, "loss_by_time": [0.7, None, 0.2]}
    line |= {"images_per_second": 12.5, "data_wait": 0.1}
    return b"".join(json.dumps(line | {"images": 8 * i}).encode() + b"\n" for i in (1, 2, 3))


def idx_file(kind: str) -> bytes:
    """IDX ``images`` or ``labels`` of three entries."""
    if kind == "labels":
        return struct.pack(">II", 0x801, 3) + bytes([0, 1, 2])
    return struct.pack(">IIII", 0x803, 3, 28, 28) + bytes(range(256)) * 9 + bytes(48)


def idx_folder(folder: Path) -> Path:
    """The four IDX files, one of them packed."""
    folder.mkdir()
    for stem in (
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    ):
        (folder / stem).write_bytes(idx_file("images" if "images" in stem else "labels"))
    (folder / "train-labels-idx1-ubyte").unlink()
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_file("labels"), mtime=0))
    return folder


def shard() -> bytes:
    """A webdataset shard of two samples, one with its class in a file of its own, one in JSON."""
    picture = images("PNG")[0]
    files = {"a.png": picture, "a.cls": b"3", "b.png": picture, "b.json": b'{"label": 4, "by": ["x"]}'}
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def images(form: str) -> tuple[bytes, ...]:
    """Small pictures in one format, in several modes where it has them."""
    colour = Image.fromarray(_pictures(1, 16 if form == "ICO" else 9)[0][0])
    made = []
    for mode in ("RGB", "L", "RGBA", "P", "1", "LA", "CMYK", "I;16"):
        stream = io.BytesIO()
        try:
            picture = colour.convert("L").convert("I;16") if mode == "I;16" else colour.convert(mode)
            options: dict[str, Any] = {}
            if form in ("PNG", "JPEG", "WEBP", "TIFF"):
                exif = Image.Exif()
                exif[0x0112] = 6
                options["exif"] = exif
            if form in ("GIF", "PNG", "WEBP", "TIFF") and mode == "RGB":
                options |= {"save_all": True, "append_images": [colour.rotate(90)]}
            picture.save(stream, form, **options)
        except (OSError, ValueError, KeyError):
            continue  # a mode that the format does not have
        made.append(stream.getvalue())
    return tuple(made)


def scores() -> bytes:
    """A scores file with results by class and two checkpoints."""
    about = Provenance(
        source={"kind": "cascade", "name": "x", "sha256": "0" * 64},
        seed=0,
        sampler={"base4": "ddim"},
        steps={"base4": 2},
        s={"base4": 0.25},
        augmentation={"base4": "truncated"},
        guidance={"base4": 1.5},
        endpoints={"base4": None},
        n=10,
        resolution=4,
        channels="colour",
        data="d",
        split="train",
        reference_n=9,
        versions={"torch": "2"},
        device="cpu",
        warnings=("few samples",),
    )
    found = {
        "fd_eye": Score(1.5, about, 0.25, "a note"),
        "cas": Score(
            0.5, about, extra={"per_class": [0.5, None], "real_per_class": [0.9, 1], "class_names": ["a", "b"]}
        ),
    }
    row = scores_json(found)["scores"]
    return json.dumps(
        scores_json(found, checkpoints=[{"images": 8, "scores": row}, {"images": 16, "scores": row}])
    ).encode()


def search_record() -> SearchRecord:
    """A finished search over s."""
    modes = (("none", 0.0), ("truncated", 0.25), ("truncated", 0.5))
    points = tuple(
        PointResult(
            key=f"p{i}",
            label=f"{mode} s = {s}",
            stage="sr8",
            settings={"sr8": SamplingConfig(sampler="ddim", steps=2, augmentation=mode, s=s)},
            evaluations={"base4": 2, "sr8": 2},
            value=10.0 + i,
            standard_error=0.5,
            replicates=(1.0, 2.0),
            n=9,
            dimensions=4,
            reference_n=9,
        )
        for i, (mode, s) in enumerate(modes)
    )
    request = SearchRequest(
        points={"sr8": tuple(point.label for point in points)},
        fixed={"base4": {"steps": 2}},
        weights={"base4": {"config.json": "0" * 64}},
        num=9,
        seed=0,
        split="train",
        features="eye",
        features_hash="0" * 64,
        references={"sr8": "0" * 64},
        precision="fp32",
    )
    result = StageResult(stage="sr8", swept=("s", "augmentation"), passes={"base4": 1}, points=points, best="p1")
    return SearchRecord(request=request, score="fd_eye", provenance={"torch": "2"}, searched=(result,))


def classifier_folder(folder: Path) -> Path:
    """A small classifier with random weights."""
    torch.manual_seed(0)
    config = ClassifierConfig(architecture="small", resolution=4, channels=3, classes=2, class_names=("a", "b"))
    save_classifier(Classifier(config), folder, half=True)
    return folder
