"""What `paper_claims.py` measures: sets of images made by the trained arms, each scored once and remembered.

A point is one set of images. Points share what they can: one pass of the base serves every non-truncated point, and
sample i has the same class and the same noise at every point, so neighbours differ by what the claim is about.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from claims_models import load_arm

from cascaded_diffusion import Cascade, PreparedData
from cascaded_diffusion.evaluation.features import Extractor, extract
from cascaded_diffusion.evaluation.frechet import frechet_distance, frechet_replicates
from cascaded_diffusion.evaluation.kernel import kernel_distance
from cascaded_diffusion.evaluation.statistics import FeatureStatistics
from cascaded_diffusion.files import atomic_write, write_json

BASE_STEPS = 16
SR_STEPS = 10
STRENGTHS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
TRUNCATED_STRENGTHS = (0.1, 0.2, 0.3, 0.4)  # each needs a pass of the base too
STEP_COUNTS = (1, 2, 3, 4, 6, 10, 20, 50)


@dataclass
class Measurer:
    """Makes, scores and remembers points.

    Attributes:
        out: folder of the models; points go to its `points-seed<k>` folder.
        data: prepared Fashion-MNIST with 8, 16 and 32 pixels.
        high: resolution of the images that are scored; the stage below makes half of it.
        extractor: the feature space of the distances.
        seed: of the training and of the samples.
        count: images a point.
    """

    out: Path
    data: PreparedData
    high: int
    extractor: Extractor
    seed: int
    count: int
    device: torch.device
    precision: Any = "auto"
    say: Callable[[str], None] = print
    _low: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where the points of this seed and number of samples are."""
        return points_folder(self.out, self.high, self.seed, self.count)

    @property
    def base(self) -> str:
        """The base's arm."""
        return f"base{self.high // 2}"

    def sr(self, kind: str) -> str:
        """The super-resolution arm of a kind: `noise`, `none`, `blur` or `no-class`."""
        return f"sr{self.high}-{kind}"

    @cached_property
    def reference(self) -> tuple[FeatureStatistics, torch.Tensor]:
        """Statistics of all training images, and the features of as many as a point holds, for the kernel distance."""
        images = self.data.split("train").images(self.high)
        features = extract(self.extractor, images).features
        return FeatureStatistics.of(features), features[: max(self.count, 10_000)]

    @cached_property
    def labels(self) -> np.ndarray:
        """The class of every sample: they take turns."""
        assert self.data.classes is not None
        return np.arange(self.count) % self.data.classes

    def cascade(self, *arms: str) -> Cascade:
        """The cascade of some arms. Truncated sampling is there where the schedules agree, which they do."""
        return Cascade([load_arm(name, self.out, self.seed, self.device) for name in arms], no_truncated=True)

    def sample(self, cascade: Cascade, **settings: Any) -> np.ndarray:
        """Images of a cascade: uint8 (N, R, R, 1)."""
        if cascade.classes is not None:
            settings["classes"] = self.labels.tolist()
        images = cascade.sample(
            None if "low_res" in settings else self.count,
            seed=self.seed,
            precision=self.precision,
            batch_size=100,
            **settings,
        )
        assert isinstance(images, np.ndarray)
        return images

    def low_res(self, *arms: str, s: float = 0.0) -> np.ndarray:
        """What a chain of arms makes, sampled once and kept: the input of every point above it."""
        key = "-".join(arms) + (f"-s{s:g}" if len(arms) > 1 else "")
        path = self.folder / f"low-{key}.npz"
        if key not in self._low and path.exists():
            with np.load(path, allow_pickle=False) as archive:
                self._low[key] = archive["arr_0"]
        if key not in self._low:
            started = time.perf_counter()
            cascade = self.cascade(*arms)
            steps: Any = {name: BASE_STEPS if name.startswith("base") else SR_STEPS for name in cascade.stages}
            extra = {"s": s, "augmentation": "nontruncated"} if len(arms) > 1 else {}
            self._low[key] = self.sample(cascade, steps=steps, **extra)
            with atomic_write(path) as file:
                np.savez(file, self._low[key], self.labels)
            self.say(f"{key}: {self.count} images in {time.perf_counter() - started:.0f} s")
        return self._low[key]

    def generated(self) -> np.ndarray:
        """What the base makes."""
        return self.low_res(self.base)

    def real(self) -> np.ndarray:
        """Real small validation images, the first of each class in turn, so that labels fit."""
        split = self.data.split("val")
        places = np.stack([np.flatnonzero(split.labels == c) for c in range(self.data.classes or 1)], axis=1).ravel()
        assert np.array_equal(split.labels[places][: self.count], self.labels)
        return np.asarray(split.images(self.high // 2)[places[: self.count]])

    def enlarge(self, kind: str, low_res: np.ndarray, *, s: float | None = None, steps: int = SR_STEPS) -> np.ndarray:
        """Images of an SR arm from given low-resolution images, noised again to s."""
        cascade = self.cascade(self.base, self.sr(kind))
        settings: Any = {} if s is None else {"s": s, "augmentation": "nontruncated"}
        return self.sample(cascade, low_res=low_res, start_stage=f"sr{self.high}", steps=steps, **settings)

    def point(self, name: str, make: Callable[[], np.ndarray], **settings: Any) -> dict[str, Any]:
        """The scores of a set of images: remembered, or made now."""
        path = self.folder / f"{name}.json"
        if path.exists():
            known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if known["extractor_hash"] == self.extractor.content_hash:
                return known
        started = time.perf_counter()
        images = make()
        seconds = time.perf_counter() - started
        result = {"point": name, **settings, **self.score(images), "sampling_seconds": round(seconds, 1)}
        with atomic_write(path.with_suffix(".npz")) as file:
            np.savez(file, images[:100], self.labels[:100])
        write_json(path, result)
        error = result["fd_standard_error"]
        self.say(
            f"{name}: fd {result['fd']:.3f} +- {error:.3f}, recognised {result['recognised']:.1%}; {seconds:.0f} s"
        )
        return result

    def score(self, images: np.ndarray) -> dict[str, Any]:
        """Frechet and kernel distance from the training images, and the share recognised as the class asked for."""
        reference, some = self.reference
        found = extract(self.extractor, images)
        replicates = frechet_replicates(found.features, reference, rounds=40, seed=0)
        kernel = kernel_distance(found.features, some, seed=0)
        assert found.logits is not None
        return {
            "fd": frechet_distance(FeatureStatistics.of(found.features), reference),
            "fd_standard_error": float(replicates.std()),
            "fd_replicates": replicates.tolist(),
            "kid": kernel.value,
            "kid_standard_error": kernel.standard_error,
            "recognised": float(np.mean(found.logits.argmax(dim=1).numpy() == self.labels)),
            "n": len(images),
            "seed": self.seed,
            "extractor": self.extractor.name,
            "extractor_hash": self.extractor.content_hash,
            "images_sha256": hashlib.sha256(np.ascontiguousarray(images).tobytes()).hexdigest(),
        }


Points = list[dict[str, Any]]


def points_folder(out: Path, high: int, seed: int, count: int) -> Path:
    """Where the points of a resolution, seed and number of samples are."""
    return out / f"points-{high}-seed{seed}-n{count}"


def over_s(m: Measurer, prefix: str, low_res: Callable[[], np.ndarray]) -> Points:
    """Non-truncated points over s on one set of low-resolution images."""
    return [m.point(f"{prefix}-s{s:g}", lambda s=s: m.enlarge("noise", low_res(), s=s), s=s) for s in STRENGTHS]


def nontruncated(m: Measurer) -> Points:
    """Claim ii: over s on generated images."""
    return over_s(m, "nontruncated", m.generated)


def real_inputs(m: Measurer) -> Points:
    """Claim iii: over s on real images."""
    return over_s(m, "real-input", m.real)


def truncated(m: Measurer) -> Points:
    """Claim iv: the base stopped at s. s = 0 is the same in both modes."""
    steps = {m.base: BASE_STEPS, f"sr{m.high}": SR_STEPS}
    points = [nontruncated(m)[0]]
    for s in TRUNCATED_STRENGTHS:
        points.append(
            m.point(
                f"truncated-s{s:g}",
                lambda s=s: m.sample(m.cascade(m.base, m.sr("noise")), steps=steps, s=s, augmentation="truncated"),
                s=s,
            )
        )
    return points


def best(m: Measurer) -> dict[str, Any]:
    """The non-truncated point of the lowest distance."""
    return min(nontruncated(m), key=lambda point: point["fd"])


def cascade_against_single(m: Measurer) -> Points:
    """Claim i: without augmentation, with it at its best s, and one stage of equal training cost."""
    steps = BASE_STEPS + SR_STEPS
    single = m.point("single-stage", lambda: m.sample(m.cascade(f"single{m.high}"), steps=steps), steps=steps)
    return [m.point("no-augmentation", lambda: m.enlarge("none", m.generated())), best(m), single]


def blur(m: Measurer) -> Points:
    """Claim v: the last stage trained with nothing, with blur, with noise; at 32 pixels it is the third of three."""
    if m.high == 32:
        below, s_below = ("base8", "sr16-noise"), 0.1
    else:
        below, s_below = (m.base,), 0.0

    def low() -> np.ndarray:
        return m.low_res(*below, s=s_below)

    return [
        m.point(f"{len(below) + 1}-stages-none", lambda: m.enlarge("none", low()), s_below=s_below),
        m.point(f"{len(below) + 1}-stages-blur", lambda: m.enlarge("blur", low()), s_below=s_below),
    ]


def fewer_steps(m: Measurer) -> Points:
    """Claim vi: steps of the SR stage at the best s."""
    s = best(m)["s"]
    return [
        m.point(
            f"steps-{steps}", lambda steps=steps: m.enlarge("noise", m.generated(), s=s, steps=steps), steps=steps, s=s
        )
        for steps in STEP_COUNTS
    ]


def class_conditioning(m: Measurer) -> Points:
    """Claim vii: the SR stage with and without the class, at the same s."""
    s = best(m)["s"]
    return [best(m), m.point("no-class", lambda: m.enlarge("no-class", m.generated(), s=s), s=s)]


def needed(claim: str, high: int) -> tuple[str, ...]:
    """The arms that a claim needs."""
    base, noise = f"base{high // 2}", f"sr{high}-noise"
    more = {
        "i": (f"sr{high}-none", f"single{high}"),
        "v": (f"sr{high}-none", f"sr{high}-blur", *(("base8", "sr16-noise") if high == 32 else ())),
        "vii": (f"sr{high}-no-class",),
    }
    return tuple(dict.fromkeys((base, *(() if claim == "v" else (noise,)), *more.get(claim, ()))))


CLAIMS: dict[str, Callable[[Measurer], Points]] = {
    "ii": nontruncated,
    "iii": real_inputs,
    "i": cascade_against_single,
    "iv": truncated,
    "v": blur,
    "vi": fewer_steps,
    "vii": class_conditioning,
}
"""For each claim the function that measures it, in the order in which they are measured."""
