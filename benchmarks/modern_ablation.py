"""What later work adds to a cascade on Fashion-MNIST: each option alone, all together, at one training length.

    cdm prepare fashion-mnist DATA --resolutions 8,16,32
    python benchmarks/modern_ablation.py --data DATA --out OUT --size gpu                        # not yet measured
    python benchmarks/modern_ablation.py --data DATA --out OUT                                   # on a CPU
    python benchmarks/modern_ablation.py --data DATA --out OUT --arms paper winners --seeds 0 1 2

Every arm differs from `paper` in what its name says; `benchmarks/modern_arms.py` lists them. Arms that differ in
sampling alone share their trained stages. Each arm is trained, sampled and scored once: Frechet distance in the
packaged classifier's features, and the classification accuracy score (CAS). OUT/results.json, OUT/results.md and
OUT/samples.png are written after every arm, and the script goes on where it was stopped. `--again cas
--cas-classifiers 5` scores the samples of arms done before anew. `--tiny` only shows that it runs.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import hardware
from modern_arms import ARMS, SIZES, Arm, Size, recipe_of

from cascaded_diffusion import Cascade, CasConfig, PreparedData, read_metrics, train
from cascaded_diffusion.cascade.guides import GuidePart, add_guides, default_sampling
from cascaded_diffusion.cascade.judge import Request, judge_cascade, judge_samples
from cascaded_diffusion.evaluation.features import Extractor, load_extractor
from cascaded_diffusion.evaluation.scores import Score
from cascaded_diffusion.files import atomic_write, read_json, write_json
from cascaded_diffusion.networks.cost import cost
from cascaded_diffusion.pictures import labelled_grid
from cascaded_diffusion.precision import pick_device
from cascaded_diffusion.recipes.recipe import stage_config
from cascaded_diffusion.training.checkpoint import checkpoint_folders
from cascaded_diffusion.training.export import stage_from_run

_CAS_IMAGES = 60_000
"""Images that a classifier sees at least: after 15 epochs of 1,000 samples it would still guess."""


class Ablation:
    """Trains and scores arms, and remembers what is done.

    Attributes:
        results: key of an arm and a seed to its row.
    """

    def __init__(self, args: argparse.Namespace, size: Size, say: Callable[[str], None]) -> None:
        self.out, self.size, self.say = args.out, size, say
        self.data = PreparedData.open(args.data)
        self.device = pick_device(args.device)
        self.size_name, self.num, self.low, self.high = args.size, args.num, size.low, size.high
        self.precision = args.precision
        self.metrics = tuple(args.metrics.split(","))
        self.again = tuple(args.again.split(",")) if args.again else ()
        self.cas = CasConfig(epochs=max(15, _CAS_IMAGES / self.num), classifiers=args.cas_classifiers)
        self.extractor: Extractor = load_extractor(args.features, device=self.device)
        self.path = self.out / "results.json"
        stored: Any = read_json(self.path) if self.path.exists() else {}
        self.results: dict[str, dict[str, Any]] = stored.get("arms", {})

    def key(self, name: str, seed: int) -> str:
        """An arm's name among the results: of other networks, resolutions, length or number it is another result."""
        return f"{name}/seed{seed}/{self.size_name}/{self.low}-{self.high}/{self.size.images}images/{self.num}samples"

    def run_folder(self, arm: Arm, stage: str, seed: int) -> Path:
        """Arms that train a stage alike share its run."""
        return self.out / f"runs-{self.size.images}" / f"{arm.trained_as(stage)}-{stage}-seed{seed}"

    def run(self, name: str, seed: int) -> None:
        """Train, sample and score one arm; of one that is done, only what is asked for again."""
        key, arm = self.key(name, seed), ARMS[name]
        if key in self.results:
            if self.again:
                self._score_again(name, seed)
            self.say(f"{key}: done before: {self._told(self.results[key])}")
            return
        started = time.perf_counter()
        training = {stage: self._train(arm, stage, seed) for stage in self._stages()}
        cascade = self._cascade(arm, seed)
        row: dict[str, Any] = {"name": name, "what": arm.what, "seed": seed, "images": self.size.images}
        row |= {"num": self.num, "size": self.size_name, "resolutions": [self.low, self.high]}
        row["training_flops"] = sum(found["flops"] for found in training.values())
        row["training_seconds"] = round(sum(found["seconds"] for found in training.values()), 1)
        plan = cascade.plan()
        row["evaluations"], row["passes"] = plan.evaluations(), plan.passes()
        row["sampling"] = plan.describe()
        (self.out / "samples").mkdir(parents=True, exist_ok=True)
        request = replace(self._request(seed), keep=self._samples(name, seed))
        self._take(row, judge_cascade(cascade, request, source={"kind": "cascade", "name": name}))
        row["seconds"] = round(time.perf_counter() - started, 1)
        row["hardware"] = hardware(self.device)
        self.results[key] = row
        self.write()
        self.say(f"{key}: {self._told(row)} ({row['seconds']:.0f} s)")

    def _score_again(self, name: str, seed: int) -> None:
        samples = self._samples(name, seed)
        if not samples.exists():
            self.say(f"{samples}: not there any more; the scores stay as they are")
            return
        found = judge_samples(samples, replace(self._request(seed), metrics=self.again))
        self._take(self.results[self.key(name, seed)], found)
        self.write()

    @staticmethod
    def _told(row: dict[str, Any]) -> str:
        return ", ".join(f"{metric} {value:.4g}" for metric, value in row["scores"].items())

    def _take(self, row: dict[str, Any], scores: dict[str, Score]) -> None:
        row.setdefault("scores", {}).update({key: score.value for key, score in scores.items()})
        errors = {key: score.standard_error for key, score in scores.items() if score.standard_error is not None}
        row.setdefault("standard_errors", {}).update(errors)
        if "cas" in scores:
            row["cas_epochs"] = self.cas.epochs
            row["cas_each"] = scores["cas"].extra["each"]
            row["cas_real"] = scores["cas"].extra["real"]

    def _stages(self) -> tuple[str, str]:
        return f"base{self.low}", f"sr{self.high}"

    def _config(self, arm: Arm, stage: str, seed: int) -> Any:
        recipe = recipe_of(arm, self.size, self.low, self.high, seed, self.precision)
        channels, classes, names = self.data.channels, self.data.classes, self.data.class_names
        return stage_config(recipe, stage, channels=channels, classes=classes, class_names=names)

    def _train(self, arm: Arm, stage: str, seed: int) -> dict[str, float]:
        # What a run records is what it was trained as; sampling settings of other arms stay out of it.
        config = self._config(ARMS[arm.trained_as(stage)], stage, seed)
        run = self.run_folder(arm, stage, seed)
        result = train(config, self.data, run, device=self.device)
        if result.signal is not None:
            sys.exit(130)
        network = stage_from_run(run)[0].network
        area = ((config.training.crop or config.resolution) / config.resolution) ** 2
        flops = cost(network).training_flops(config.training.images) * area
        return {"flops": flops, "seconds": seconds_of(read_metrics(run))}

    def _cascade(self, arm: Arm, seed: int) -> Cascade:
        stages, defaults = [], {}
        for name in self._stages():
            run = self.run_folder(arm, name, seed)
            stage, _ = stage_from_run(run, ema=arm.ema)
            stages.append(stage)
            if arm.guide_share and name.startswith("base"):
                early = [folder for folder in checkpoint_folders(run) if int(folder.name) > 0]
                wanted = arm.guide_share * self.size.images
                images = min((int(folder.name) for folder in early), key=lambda found: abs(found - wanted))
                add_guides(stages, [GuidePart(name, run, images)])
            own = self._config(arm, name, seed).sampling
            defaults[name] = default_sampling(stage, own, arm.guided if name.startswith("base") else {})
        return Cascade(stages, defaults=defaults, no_truncated=True).to(self.device)

    def _request(self, seed: int) -> Request:
        return Request(
            data=self.data,
            extractor=self.extractor,
            metrics=self.metrics,
            num=self.num,
            seed=seed,
            device=self.device,
            precision=self.precision,
            cache=self.out / "features",
            cas=self.cas,
        )

    def _samples(self, name: str, seed: int) -> Path:
        return self.out / "samples" / f"{self.key(name, seed).replace('/', '-')}.npz"

    def write(self) -> None:
        """Write all results, as JSON, as a table and as a picture."""
        write_json(self.path, {"command": " ".join(sys.argv), "torch": torch.__version__, "arms": self.results})
        with atomic_write(self.out / "results.md") as file:
            file.write(table(list(self.results.values())).encode())
        # Reversed, so that of several seeds the first stays.
        here = {key: row for key, row in self.results.items() if key == self.key(row["name"], row["seed"])}
        found = {row["name"]: self._samples(row["name"], row["seed"]) for row in reversed(here.values())}
        rows = [(name, two_a_class(found[name])) for name in ARMS if name in found and found[name].exists()]
        if rows:
            with atomic_write(self.out / "samples.png") as file:
                labelled_grid(rows, scale=max(1, 48 // self.high)).save(file, "png")


def seconds_of(metrics: Sequence[dict[str, Any]]) -> float:
    """How long a run has trained, whatever interruptions it had: the rates of its intervals, summed."""
    spent, before = 0.0, 0
    for line in metrics:
        spent += (line["images"] - before) / line["images_per_second"]
        before = line["images"]
    return spent


def two_a_class(samples: Path) -> np.ndarray:
    """The first two images of every class, those of one class side by side."""
    with np.load(samples) as stored:
        images, labels = stored["arr_0"], stored["arr_1"]
    return images[np.concatenate([np.flatnonzero(labels == label)[:2] for label in np.unique(labels)])]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Arms as a Markdown table, the mean and the spread (smallest to largest) over their seeds."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        alike = (*(row.get(key) for key in ("name", "images", "num", "size")), *row.get("resolutions", ()))
        groups.setdefault(alike, []).append(row)
    metrics = list(dict.fromkeys(metric for row in rows for metric in row["scores"]))
    head = ["arm", "what", *metrics, "evaluations", "passes", "training FLOPs", "images", "samples", "seeds"]
    counts = {len(row["cas_each"]) for row in rows if "cas_each" in row}
    if counts - {1}:
        head[head.index("cas")] = f"cas, mean of {' or '.join(map(str, sorted(counts)))} classifiers"
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for (name, images, num, *_), found in groups.items():
        cells = [name, found[0]["what"]]
        for metric in metrics:
            values = [row["scores"][metric] for row in found if metric in row["scores"]]
            mean = sum(values) / len(values) if values else float("nan")
            spread = f" ({min(values):.4g} to {max(values):.4g})" if len(values) > 1 else ""
            cells.append(f"{mean:.4g}{spread}")
        first = found[0]
        cells += [str(sum(first["evaluations"].values())), str(sum(first["passes"].values()))]
        cells += [f"{first['training_flops']:.2e}", f"{images:,}", f"{num:,}", str(len(found))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--data", type=Path, required=True, help="folder made by cdm prepare")
    top.add_argument("--out", type=Path, required=True, help="folder of the runs and results")
    top.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    top.add_argument("--seeds", type=int, nargs="+", default=[0])
    top.add_argument("--size", choices=list(SIZES), default="cpu")
    top.add_argument("--images", type=int, help="training images of each stage, in place of the size's")
    top.add_argument("--num", type=int, help="samples an arm, in place of the size's")
    top.add_argument("--low", type=int, help="resolution of the base, in place of the size's")
    top.add_argument("--high", type=int, help="of the super-resolution stage, in place of the size's")
    top.add_argument("--metrics", default="fd,cas", help="as in cdm evaluate")
    top.add_argument("--again", metavar="METRICS", help="score the samples of arms done before by these again")
    top.add_argument("--cas-classifiers", type=int, default=1, help="classifiers that cas is the mean of")
    top.add_argument("--features", default="fashion-mnist", help="extractor, as in cdm evaluate")
    top.add_argument("--device")
    top.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="of training and sampling")
    top.add_argument("--tiny", action="store_const", dest="size", const="tiny", help="--size tiny")
    return top


def main(words: Sequence[str] | None = None) -> None:
    """Run every arm and seed asked for."""
    args = parser().parse_args(words)
    size = SIZES[args.size]
    if args.images is not None:
        size = replace(size, images=args.images)
    size = replace(size, low=args.low or size.low, high=args.high or size.high)
    args.num = size.num if args.num is None else args.num
    args.out.mkdir(parents=True, exist_ok=True)
    ablation = Ablation(args, size, lambda line: print(line, flush=True))
    for seed in args.seeds:
        for name in args.arms:
            ablation.run(name, seed)
    ablation.write()
    print(table(list(ablation.results.values())))


if __name__ == "__main__":
    main()
