"""How fast prepared data are read, stored as arrays and compressed, and how long training waits for them.

    python benchmarks/data_speed.py read   [--images 512] [--seconds 2]
    python benchmarks/data_speed.py codecs
    python benchmarks/data_speed.py train  --data DATA [--recipe fashion-mnist-32-small] [--seconds 60]

``read`` prepares squares cut from the two photographs that scikit-learn ships, at 32 to 256 pixels, and reads batches
of 32 as training does, with 0, 1 and 2 threads (``--data-workers``), the files in the page cache. ``codecs`` compares
ways to store the same squares without loss. ``train`` trains each stage of a recipe and prints the share of the time
that its log says it waited.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from measuring import hardware
from PIL import Image

from cascaded_diffusion.cascade.stage import StageConfig
from cascaded_diffusion.data.pixels import area_resize
from cascaded_diffusion.data.prepare import prepare
from cascaded_diffusion.data.prepared import PreparedData
from cascaded_diffusion.precision import pick_device
from cascaded_diffusion.recipes.recipe import load_recipe, stage_config
from cascaded_diffusion.training.batches import BatchSource
from cascaded_diffusion.training.feed import Feed
from cascaded_diffusion.training.loop import read_metrics, train

BATCH = 32
SIDES = (32, 64, 128, 256)
Codec = tuple[Callable[[np.ndarray], bytes], Callable[[bytes, tuple[int, ...]], np.ndarray]]


def photographs(count: int, side: int = 256) -> np.ndarray:
    """Squares cut from two photographs at random places and sizes, area-averaged: uint8 (N, side, side, 3)."""
    from sklearn.datasets import load_sample_images

    pictures, generator = load_sample_images().images, np.random.default_rng(0)
    squares = []
    for i in range(count):
        picture = pictures[i % 2]
        cut = int(generator.integers(side, min(picture.shape[:2]) + 1))
        top, left = (int(generator.integers(0, length - cut + 1)) for length in picture.shape[:2])
        square = np.ascontiguousarray(picture[None, top : top + cut, left : left + cut])
        squares.append(area_resize(square, side)[0])
    return np.stack(squares)


def config(side: int) -> StageConfig:
    """A base stage of that size, of which only the data side is used."""
    shape = {"name": f"base{side}", "resolution": side, "network": {"channels": 8, "multipliers": [1]}, "channels": 3}
    return StageConfig.model_validate(shape)


def rate(data: PreparedData, side: int, workers: int, seconds: float) -> float:
    """Images a second through ``gather``."""
    source = BatchSource(config(side), data, torch.device("cpu"))

    def endless() -> Iterator[range]:
        start = 0
        while True:
            yield range(start, start + BATCH)
            start += BATCH

    with Feed(lambda part: source.gather(part.start, part.stop), endless(), workers) as feed:
        for _ in range(4):
            feed.take()
        count, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            feed.take()
            count += BATCH
        return count / (time.perf_counter() - began)


def read(images: int, seconds: float) -> None:
    """Print a table of images a second."""
    with tempfile.TemporaryDirectory() as place:
        np.savez(Path(place) / "photographs.npz", arr_0=photographs(images))
        data = {}
        for name, compress in (("plain", False), ("compressed", True)):
            out = Path(place) / name
            prepare(str(Path(place) / "photographs.npz"), out, resolutions=SIDES, compress=compress, workers=0)
            data[name] = PreparedData.open(out)
        sizes = [
            sum(f.stat().st_size for f in data[k].folder.glob("train/images_256*")) for k in ("plain", "compressed")
        ]
        print(f"{images} images; at 256 pixels compressed data take {sizes[1] / sizes[0]:.1%} of the plain ones' room")
        print("| pixels | stored | no thread | 1 thread | 2 threads |\n|---|---|---|---|---|")
        for side in SIDES:
            for name in data if side > 128 else ["plain"]:
                rates = [f"{rate(data[name], side, workers, seconds):,.0f}" for workers in (0, 1, 2)]
                print(f"| {side} | {name} | {' | '.join(rates)} |", flush=True)


def pillow(form: str, **options: object) -> Codec:
    """A picture format."""

    def encode(image: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, form, **options)
        return buffer.getvalue()

    return encode, lambda content, shape: np.asarray(Image.open(io.BytesIO(content), formats=[form]))


def differences(level: int) -> Codec:
    """zlib of each pixel's difference from the one to its left."""

    def encode(image: np.ndarray) -> bytes:
        change = image.copy()
        change[:, 1:] -= image[:, :-1]
        return zlib.compress(np.ascontiguousarray(change.transpose(2, 0, 1)).tobytes(), level)

    def decode(content: bytes, shape: tuple[int, ...]) -> np.ndarray:
        height, width, channels = shape
        change = np.frombuffer(zlib.decompress(content), np.uint8).reshape(channels, height, width)
        return np.add.accumulate(change.transpose(1, 2, 0), axis=1, dtype=np.uint8)

    return encode, decode


def codecs() -> None:
    """Print a table of sizes and times."""
    images = list(photographs(16))
    known: dict[str, Codec] = {
        "zlib 6 of differences": differences(6),
        "PNG, level 1": pillow("PNG", compress_level=1),
        "PNG, level 6": pillow("PNG", compress_level=6),
        "WebP, method 0": pillow("WEBP", lossless=True, method=0, quality=20, exact=True),
        "WebP, method 2": pillow("WEBP", lossless=True, method=2, quality=50, exact=True),
        "WebP, method 4": pillow("WEBP", lossless=True, method=4, quality=75, exact=True),
    }
    print("| stored as | share of the pixels' bytes | ms to write | ms to read |\n|---|---|---|---|")
    for name, (encode, decode) in known.items():
        writing, reading = [], []
        for image in images:
            began = time.perf_counter()
            content = encode(image)
            writing.append((time.perf_counter() - began, len(content)))
            times = []
            for _ in range(3):
                began = time.perf_counter()
                found = decode(content, image.shape)
                times.append(time.perf_counter() - began)
            assert np.array_equal(found, image)
            reading.append(min(times))
        share = sum(size for _, size in writing) / sum(image.nbytes for image in images)
        slow = 1e3 * float(np.median([seconds for seconds, _ in writing]))
        print(f"| {name} | {share:.1%} | {slow:.1f} | {1e3 * float(np.median(reading)):.1f} |", flush=True)


def wait(data: PreparedData, recipe: str, seconds: float, device: torch.device) -> None:
    """Train every stage for a while and print the share of the time that it waited for data."""
    loaded = load_recipe(recipe, overrides=["training.log_every=256", "training.preview_every=null"])
    print("| stage | images | images/s | share of the time waiting for data |\n|---|---|---|---|")
    for stage in loaded.stages:
        whole = stage_config(
            loaded, stage.name, channels=data.channels, classes=data.classes, class_names=data.class_names
        )
        with tempfile.TemporaryDirectory() as place:
            train(whole, data, Path(place) / "run", device=device, max_seconds=seconds)
            rows = read_metrics(Path(place) / "run")
        spent = [256 / row["images_per_second"] for row in rows]
        waited = sum(row["data_wait"] * time for row, time in zip(rows, spent, strict=True)) / sum(spent)
        speed = 256 * len(rows) / sum(spent)
        print(f"| {stage.name} | {rows[-1]['images']:,} | {speed:.1f} | {waited:.2%} |", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["read", "codecs", "train"])
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--seconds", type=float, help="of each measurement (default 2, of train 60)")
    parser.add_argument("--data", type=Path, help="prepared data for train")
    parser.add_argument("--recipe", default="fashion-mnist-32-small")
    parser.add_argument("--device")
    args = parser.parse_args()
    device = pick_device(args.device)
    print(hardware(device), flush=True)
    if args.what == "codecs":
        codecs()
    elif args.what == "read":
        read(args.images, args.seconds or 2)
    elif args.data is None:
        parser.error("train needs --data")
    else:
        wait(PreparedData.open(args.data), args.recipe, args.seconds or 60, device)


if __name__ == "__main__":
    main()
