"""The figures that explain the method, drawn from the packaged cascade and the packaged images."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from cascaded_diffusion.cascade.chain import Cascade, CascadeStep
from cascaded_diffusion.cascade.generate import low_res_input
from cascaded_diffusion.conditioning.augmentation import blur_3x3, gaussian_taps
from cascaded_diffusion.demo.run import IMAGES
from cascaded_diffusion.diffusion.process import q_sample
from cascaded_diffusion.diffusion.schedule import Schedule, ScheduleConfig
from cascaded_diffusion.pixels import to_float, to_uint8
from cascaded_diffusion.randomness import normal
from docs_site.canvas import BLUE, GREEN, GREY, ORANGE, Canvas

__all__ = ["FIGURES", "Material"]

SEED = 3
STRENGTHS = (0.0, 0.1, 0.2, 0.4, 0.6)


class Frame(NamedTuple):
    """One moment of sampling one image: the time, what the sampler holds, and what it takes the image to be."""

    time: float
    x: np.ndarray
    x0: np.ndarray


class Material:
    """What the figures are drawn from."""

    def __init__(self) -> None:
        self.cascade = Cascade.from_pretrained("demo")
        with np.load(IMAGES) as archive:
            self.real, self.labels = archive["arr_0"], archive["arr_1"]
        self.names = list(self.cascade.class_names or ())

    def frames(self, label: str, **options: object) -> dict[str, list[Frame]]:
        """Every step of sampling one image of a class, by stage."""
        found: dict[str, list[Frame]] = defaultdict(list)

        def watch(event: CascadeStep) -> None:
            step = event.step
            found[event.stage].append(Frame(step.level.time, to_uint8(step.x[:1])[0], to_uint8(step.x0[:1])[0]))

        self.cascade.sample(1, [label], seed=SEED, callback=watch, **options)  # type: ignore[arg-type]
        return found

    def first(self, label: str) -> np.ndarray:
        """The first real image of a class: uint8 (32, 32, 1)."""
        chosen: np.ndarray = self.real[self.labels == self.names.index(label)][0]
        return chosen

    def seen(self, low: np.ndarray, s: float) -> np.ndarray:
        """Small images (N, 16, 16, 1) as the SR stage gets them at strength s, before they are enlarged."""
        stage = self.cascade.stages["sr32"]
        return to_uint8(low_res_input(stage, low, s=s, seed=SEED))


def _noise(image: torch.Tensor) -> torch.Tensor:
    return normal(SEED, "documentation/noise", torch.zeros(1, dtype=torch.int64), image.shape[1:])


def _noised(image: np.ndarray, alpha_bar: float) -> np.ndarray:
    """q(x_t | x_0) of one image, always with the same noise."""
    x0 = to_float(image[None], torch.device("cpu"))
    return np.asarray(to_uint8(q_sample(x0, _noise(x0), torch.full((1, 1, 1, 1), alpha_bar)))[0])


def _pure_noise(side: int) -> np.ndarray:
    return np.asarray(to_uint8(_noise(torch.zeros(1, 1, side, side)))[0])


def cascade(material: Material) -> Canvas:
    """A class becomes a small image, which is damaged, enlarged and refined."""
    frames = material.frames("Ankle boot", s=0.2, augmentation="nontruncated")
    base, high = frames["base16"], frames["sr32"]
    seen = material.seen(base[-1].x0[None], 0.2)[0]
    canvas = Canvas(9.4, 3.1)
    canvas.box(1.05, 0.95, 3.0, 1.55, edge=BLUE, fill="#eef4fb")
    canvas.box(5.95, 0.95, 3.4, 1.55, edge=ORANGE, fill="#fdf3ec")
    canvas.words("base16: noise to a 16 x 16 image", 2.55, 2.68, color=BLUE, weight="bold")
    canvas.words("sr32: noise to a 32 x 32 image", 7.65, 2.68, color=ORANGE, weight="bold")
    canvas.words("class", 0.45, 1.98)
    canvas.words("Ankle boot", 0.45, 1.72, weight="bold", size=8)
    canvas.arrow((0.85, 1.72), (1.2, 1.72))
    for i, image in enumerate((_pure_noise(16), base[len(base) // 2].x, base[-1].x)):
        canvas.image(image, 1.25 + 0.95 * i, 1.4, 0.7, BLUE)
        if i:
            canvas.arrow((0.99 + 0.95 * i, 1.75), (1.24 + 0.95 * i, 1.75), BLUE)
    canvas.arrow((4.05, 1.75), (4.6, 1.75))
    canvas.image(seen, 4.65, 1.4, 0.7, GREEN)
    canvas.words("conditioning\naugmentation", 5.0, 2.4, color=GREEN, weight="bold")
    canvas.words("noise of strength s", 5.0, 1.22, color=GREEN, size=8)
    canvas.arrow((5.37, 1.75), (5.95, 1.75))
    canvas.words("enlarged", 5.66, 1.9, size=7)
    for i, image in enumerate((_pure_noise(32), high[len(high) // 2].x, high[-1].x)):
        canvas.image(image, 6.1 + 1.1 * i, 1.3, 0.9, ORANGE)
        if i:
            canvas.arrow((5.92 + 1.1 * i, 1.75), (6.09 + 1.1 * i, 1.75), ORANGE)
    canvas.words("at every step the network sees x, the time, the class", 2.55, 1.12, size=7.5)
    canvas.words("at every step also the small image, and s", 7.65, 1.12, size=7.5)
    canvas.arrow((0.45, 1.55), (0.45, 0.5), GREY, arrowstyle="-")
    canvas.arrow((0.45, 0.5), (7.65, 0.5), GREY, arrowstyle="-")
    canvas.arrow((7.65, 0.5), (7.65, 0.93), GREY)
    canvas.words("the class goes to every stage; each stage is trained alone", 4.05, 0.32, color=GREY, size=8)
    return canvas


def time_axis(material: Material) -> Canvas:
    """Truncated, non-truncated and clean conditioning on the time axis of the small stage."""
    s = 0.3
    canvas = Canvas(9.4, 4.75)
    left, span = 1.75, 5.1

    def place(time: float) -> float:
        return left + span * (1 - time)

    modes = (
        ("truncated", 3.2, s, "the small stage stops at s"),
        ("nontruncated", 1.9, 0.0, "it finishes; then noise takes the image back to s"),
        ("none", 0.6, 0.0, "it finishes, and s = 0"),
    )
    for mode, y, end, what in modes:
        frames = material.frames("Bag", augmentation=mode, **({} if mode == "none" else {"s": s}))["base16"]
        canvas.words(mode, 0.12, y + 0.4, ha="left", weight="bold", size=10)
        canvas.arrow((place(1), y), (place(end), y), BLUE, linewidth=2.0)
        canvas.words(what, place(0.99), y - 0.2, color=BLUE, size=8, ha="left")
        for time in (1.0, 0.77, 0.53, s, 0.15, 0.0):
            if time >= end:
                nearest = min(frames, key=lambda frame: abs(frame.time - time))
                canvas.image(_pure_noise(16) if time == 1 else nearest.x, place(time) - 0.3, y + 0.1, 0.6, BLUE)
        given = frames[-1].x if mode != "nontruncated" else material.seen(frames[-1].x0[None], s)[0]
        if mode == "nontruncated":
            canvas.arrow((place(0), y - 0.04), (place(s), y - 0.04), GREEN, bend=-0.2, linewidth=1.6)
        canvas.image(given, 8.2, y - 0.1, 0.95, ORANGE)
        canvas.arrow((place(end) + 0.4, y + 0.4), (8.13, y + 0.4), ORANGE)
    canvas.words("what the SR\nstage is given", 8.67, 4.45, color=ORANGE, weight="bold")
    for time, name in ((1.0, "1: noise"), (s, f"s = {s:g}"), (0.0, "0: image")):
        canvas.sheet.plot([place(time)] * 2, [0.3, 4.05], color=GREY, linewidth=0.8, linestyle=":", zorder=0)
        canvas.words(name, place(time), 4.2)
    canvas.words("diffusion time of the small stage", place(0.5), 4.52, color=GREY)
    return canvas


def _specked(image: np.ndarray) -> np.ndarray:
    """An image with nine pixels turned into their negative: mistakes that no real small image has."""
    damaged = image.copy()
    for i in range(9):
        row, column = 3 + (5 * i) % 11, 3 + (7 * i) % 10
        damaged[row, column] = 255 - damaged[row, column]
    return damaged


def s_effect(material: Material) -> Canvas:
    """The same small images enlarged with several s: as the base made them, and with mistakes put in."""
    labels = ["Coat", "Bag"]
    side = 0.85
    low = material.cascade.sample(len(labels), labels, seed=SEED, until="base16")
    assert isinstance(low, np.ndarray)
    canvas = Canvas(9.4, 8.35)
    columns = [3.0 + 1.3 * i for i in range(len(STRENGTHS))]
    canvas.words("small image", 1.4 + side / 2, 8.2, weight="bold")
    for x, s in zip(columns, STRENGTHS, strict=True):
        canvas.words(f"s = {s:g}", x + side / 2, 8.2, weight="bold")
    blocks = (("as the base made it", low, BLUE), ("nine pixels spoiled", np.stack([_specked(i) for i in low]), ORANGE))
    for block, (title, given, colour) in enumerate(blocks):
        top = 8.05 - 4.05 * block
        canvas.words(title, 0.2, top - 1.95, rotation=90, color=colour, weight="bold", size=10)
        for column, s in enumerate(STRENGTHS):
            made = material.cascade.sample(None, labels, low_res=given, s=s, augmentation="nontruncated", seed=SEED)
            assert isinstance(made, np.ndarray)
            for row, seen in enumerate(material.seen(given, s)):
                y = top - 2.0 * (row + 1) + 0.1
                canvas.image(seen, columns[column], y + side + 0.06, side, GREEN)
                canvas.image(made[row], columns[column], y, side, colour)
        for row in range(len(labels)):
            y = top - 2.0 * (row + 1) + 0.1
            canvas.image(given[row], 1.4, y + side / 2, side, colour)
            canvas.words("sees", columns[0] - 0.12, y + 1.5 * side, ha="right", size=8, color=GREEN)
            canvas.words("makes", columns[0] - 0.12, y + 0.5 * side, ha="right", size=8, color=colour)
    return canvas


def denoising(material: Material) -> Canvas:
    """Both stages at work on one image: what the sampler holds, and what the network takes the image to be."""
    frames = material.frames("Sneaker")
    canvas = Canvas(9.4, 4.0)
    for stage, (name, steps) in enumerate(frames.items()):
        colour = (BLUE, ORANGE)[stage]
        chosen = [steps[i] for i in np.linspace(0, len(steps) - 1, 6).round().astype(int)]
        bottom = 2.05 - 1.95 * stage
        canvas.words(name, 0.2, bottom + 0.9, rotation=90, color=colour, weight="bold", size=10)
        canvas.words("holds", 0.75, bottom + 1.3, size=8)
        canvas.words("takes the\nimage to be", 0.75, bottom + 0.45, size=8)
        for column, frame in enumerate(chosen):
            x = 1.35 + 1.34 * column
            canvas.image(frame.x, x, bottom + 0.9, 0.8, colour)
            canvas.image(frame.x0, x, bottom + 0.05, 0.8, colour)
            canvas.words(f"t = {frame.time:.2f}", x + 0.4, bottom + 1.79, size=7, color=GREY)
    return canvas


def blur(material: Material) -> Canvas:
    """The 3x3 filters that blur augmentation draws from, and what they do to a small image."""
    low = material.first("Shirt").reshape(16, 2, 16, 2, 1).mean(axis=(1, 3)).round().astype(np.uint8)
    sigmas = (0.4, 0.5, 0.6)
    canvas = Canvas(9.4, 2.1)
    canvas.image(low, 0.15, 0.25, 1.45)
    canvas.words("real image, 16 x 16", 0.875, 1.9)
    for column, sigma in enumerate(sigmas):
        left = 2.0 + 2.5 * column
        taps = gaussian_taps(torch.tensor([sigma], dtype=torch.float64))[0].numpy()
        weights = np.outer(taps, taps)
        for i, j in np.ndindex(3, 3):
            x, y = left + 0.25 * j, 0.6 + 0.25 * (2 - i)
            canvas.box(x, y, 0.25, 0.25, edge="white", fill=f"{1 - 0.75 * weights[i, j]:.3f}", line=0.5)
            canvas.words(f"{weights[i, j]:.2f}"[1:], x + 0.125, y + 0.125, size=5.5)
        blurred = to_uint8(blur_3x3(to_float(low[None], torch.device("cpu")), torch.tensor([sigma])))[0]
        canvas.image(blurred, left + 0.85, 0.25, 1.45)
        canvas.words(f"blurred, sigma = {sigma:g}", left + 1.575, 1.9)
    return canvas


def schedules(material: Material) -> Canvas:
    """What is left of an image over diffusion time under three schedules."""
    shift = 2 * math.log(64 / 256)
    kinds = (
        ("cosine", ScheduleConfig(kind="cosine", timesteps=None), BLUE),
        ("linear", ScheduleConfig(kind="linear", timesteps=None), ORANGE),
        (f"cosine, log_snr_shift {shift:.2f}", ScheduleConfig(timesteps=None, log_snr_shift=shift), GREEN),
    )
    canvas = Canvas(9.4, 5.9)
    left, right = canvas.chart(0.75, 3.2, 3.75, 2.4), canvas.chart(5.4, 3.2, 3.75, 2.4)
    u = torch.linspace(0, 1, 201, dtype=torch.float64)
    moments = (0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)
    image = material.first("Sneaker")
    for row, (name, config, colour) in enumerate(kinds):
        schedule = Schedule(config)
        alpha_bar = schedule.alpha_bar(u)
        left.plot(u, alpha_bar, color=colour, label=name)
        right.plot(u[1:], torch.log(alpha_bar[1:] / (1 - alpha_bar[1:])), color=colour)
        y = 1.95 - 0.82 * row
        canvas.words(
            name.replace(", ", ",\n").replace("shift ", "shift\n"), 0.1, y + 0.36, ha="left", size=8, color=colour
        )
        for column, moment in enumerate(moments):
            level = float(schedule.alpha_bar(torch.tensor(moment, dtype=torch.float64)))
            canvas.image(_noised(image, level), 1.5 + 0.98 * column, y, 0.74, colour)
            if row == len(kinds) - 1:
                canvas.words(f"u = {moment:g}", 1.87 + 0.98 * column, y - 0.06, size=7, va="top", color=GREY)
    left.set(xlabel="diffusion time u", ylabel="share of the image's variance left", xlim=(0, 1), ylim=(0, 1.02))
    right.set(xlabel="diffusion time u", ylabel="log signal-to-noise ratio", xlim=(0, 1), ylim=(-12, 12))
    left.legend(frameon=False, fontsize=8)
    return canvas


FIGURES: dict[str, Callable[[Material], Canvas]] = {
    "cascade.svg": cascade,
    "time-axis.svg": time_axis,
    "s-effect.png": s_effect,
    "denoising.png": denoising,
    "blur.svg": blur,
    "schedules.svg": schedules,
}
"""File name, under docs/images/method/, to what draws it."""
