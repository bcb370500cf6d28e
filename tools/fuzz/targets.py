"""Every reader of outside data: how valid input looks, how it is mutated, and what is called with it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch

from cascaded_diffusion.cascade.chain import Cascade
from cascaded_diffusion.cascade.search_store import SearchStore
from cascaded_diffusion.cascade.stage import Stage
from cascaded_diffusion.data.archive import open_archive
from cascaded_diffusion.data.decoding import decode, look
from cascaded_diffusion.data.fashion_mnist import load_idx_folder
from cascaded_diffusion.data.given import read_given_images
from cascaded_diffusion.data.prepared import PreparedData
from cascaded_diffusion.data.shards import open_shards
from cascaded_diffusion.data.sources import Bad
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.evaluation import reference
from cascaded_diffusion.evaluation.classifier import load_classifier
from cascaded_diffusion.evaluation.scores import read_scores, table
from cascaded_diffusion.evaluation.statistics import FeatureStatistics
from cascaded_diffusion.reading.torch_file import load_foreign_weights
from cascaded_diffusion.recipes.packaged import read_packaged
from cascaded_diffusion.recipes.recipe import load_recipe, parse_overrides, stage_config
from cascaded_diffusion.report.runs import read_run, run_part
from cascaded_diffusion.report.scores import read_scores_record, scores_part
from cascaded_diffusion.report.searches import read_search, search_part
from cascaded_diffusion.samples import class_folder
from cascaded_diffusion.training.checkpoint import OPTIMIZER, averaged_weights, load_optimizer
from cascaded_diffusion.training.loop import read_metrics
from cascaded_diffusion.training.run import MetricsLog, open_run
from fuzz import bytes_of, seeds, values

__all__ = ["TARGETS", "Target"]


class Target(NamedTuple):
    """One reader.

    Attributes:
        valid: inputs that it takes.
        mutate: makes another input of one of them.
        read: calls the reader with an input; it may raise :class:`UserError` and nothing else.
        memory: bytes that it may take, if that is more than others may.
        seconds: of work on one input, likewise.
    """

    valid: tuple[bytes, ...]
    mutate: Callable[[Random, bytes], bytes]
    read: Callable[[bytes], object]
    memory: int = 0
    seconds: float = 0

    def make(self, rng: Random) -> bytes:
        """An input."""
        return self.mutate(rng, self.valid[rng.randrange(len(self.valid))])


def _json(rng: Random, content: bytes) -> bytes:
    """A JSON file: its tree mutated, or its bytes."""
    if rng.randrange(4) == 0:
        return bytes_of.anywhere(rng, content)
    return values.json_text(rng, values.mutated(rng, json.loads(content)))


def _now_and_then(content: bytes) -> bool:
    """Whether charts are drawn of this input, which takes a hundred times as long as reading it."""
    return content[-9] % 64 == 0 if len(content) > 9 else True


def _file_target(path: Path, mutate: Callable[[Random, bytes], bytes], read: Callable[[], object]) -> Target:
    """A reader of one file of a folder that is valid otherwise."""

    def put(content: bytes) -> object:
        path.write_bytes(content)
        return read()

    return Target((path.read_bytes(),), mutate, put)


# -- recipes ----------------------------------------------------------------------------------------------------------


def _recipe(folder: Path) -> Target:
    path = folder / "recipe.yaml"

    def read(content: bytes) -> object:
        path.write_bytes(content)
        recipe = load_recipe(str(path), overrides=["flip=false"])
        channels = recipe.channels if isinstance(recipe.channels, int) else 3
        classes = 2 if recipe.classes == "from-data" else recipe.classes
        return stage_config(recipe, recipe.stages[0].name, channels=channels, classes=classes, class_names=None)

    valid = tuple(read_packaged(name).encode() for name in ("demo", "fashion-mnist-32-small", "photos-64"))
    return Target(valid, lambda rng, content: values.yaml_text(rng, content.decode()), read)


def _overrides(folder: Path) -> Target:
    def mutate(rng: Random, content: bytes) -> bytes:
        made = values.yaml_text(rng, content.decode())
        return made if rng.randrange(2) else bytes_of.anywhere(rng, made)

    def read(content: bytes) -> object:
        setting = content.decode("utf-8", "surrogateescape").replace("\0", "")  # as it comes from a command line
        parse_overrides([setting])
        return load_recipe("demo", overrides=[setting], stage="sr32")

    valid = (b"training.batch_size=64", b"network.multipliers=[1, 2]", b"stages.sr32.sampling={steps: 5}", b"flip=true")
    return Target(valid, mutate, read)


# -- stages, cascades, runs -------------------------------------------------------------------------------------------


def _stage_file(name: str, mutate: Callable[[Random, bytes], bytes], folder: Path) -> Target:
    stage = seeds.cascade_folder(folder / "cascade") / "sr8"
    return _file_target(stage / name, mutate, lambda: Stage.load(stage))


def _cascade_manifest(folder: Path) -> Target:
    cascade = seeds.cascade_folder(folder / "cascade")
    return _file_target(cascade / "cascade.json", _json, lambda: Cascade.from_pretrained(cascade).plan())


def _run(folder: Path) -> Path:
    return seeds.run_folder(folder / "run")


def _checkpoint_manifest(folder: Path) -> Target:
    checkpoint = next((_run(folder) / "checkpoints").iterdir())
    return _file_target(checkpoint / "manifest.json", _json, lambda: averaged_weights(checkpoint, None))


def _checkpoint_file(name: str, mutate: Callable[[Random, bytes], bytes], folder: Path) -> Target:
    """A file of a checkpoint whose manifest has the hash of whatever it is: what a stranger would send."""
    checkpoint = next((_run(folder) / "checkpoints").iterdir())
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    state = seeds.fresh_state()

    def read() -> None:
        manifest["files"][name] = hashlib.sha256((checkpoint / name).read_bytes()).hexdigest()
        (checkpoint / "manifest.json").write_text(json.dumps(manifest))
        state.load(checkpoint)

    return _file_target(checkpoint / name, mutate, read)


def _optimizer(folder: Path) -> Target:
    """The optimizer's file alone, of a smaller network: a file is soon tried, and has the same parts."""
    network = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), folder / OPTIMIZER)
    parameters = list(network.parameters())

    def read() -> None:
        fresh = torch.optim.Adam(network.parameters())
        try:
            fresh.load_state_dict(load_optimizer(folder, parameters))
        except (RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise UserError(f"does not fit: {error}") from None  # as TrainingState.load does

    return _file_target(folder / OPTIMIZER, bytes_of.torch_file, read)


def _recorded_config(folder: Path) -> Target:
    run = _run(folder)
    config = seeds.stage_config("base4")
    return _file_target(run / "config.json", _json, lambda: open_run(run, config, allow_changes=False))


def _metrics(folder: Path) -> Target:
    run = _run(folder)

    def read(content: bytes) -> object:
        (run / "metrics.jsonl").write_bytes(content)
        MetricsLog(run, 16)  # takes up whatever it is
        (run / "metrics.jsonl").write_bytes(content)
        record = read_run("run", run)
        return read_metrics(run), run_part(record).body if _now_and_then(content) else ""

    return Target((seeds.metrics(),), bytes_of.json_lines, read)


def _preview(folder: Path) -> Target:
    run = _run(folder)
    (run / "previews").mkdir(exist_ok=True)
    (run / "previews" / "000000000008.png").write_bytes(seeds.images("PNG")[0])
    return _file_target(run / "previews" / "000000000008.png", bytes_of.png, lambda: read_run("run", run))


# -- data -------------------------------------------------------------------------------------------------------------


def _prepared(name: str, mutate: Callable[[Random, bytes], bytes], folder: Path) -> Target:
    data = seeds.prepared_folder(folder / "data")
    return _file_target(data / name, mutate, lambda: PreparedData.open(data))


def _npz_target(folder: Path, read: Callable[[Path], object]) -> Target:
    path = folder / "samples.npz"

    def put(content: bytes) -> object:
        path.write_bytes(content)
        return read(path)

    return Target((seeds.npz(), seeds.npz(compressed=True), seeds.npz(one_hot=True)), bytes_of.zipped, put)


def _samples(folder: Path) -> Target:
    def read(path: Path) -> object:
        source = open_archive(path, folder)
        return list(source.reader.read([0], 3)), source.items

    return _npz_target(folder, read)


def _given(folder: Path) -> Target:
    return _npz_target(folder, lambda path: read_given_images(path, 2, 3))


def _idx(kind: str, folder: Path) -> Target:
    data = seeds.idx_folder(folder / "idx")
    name = "t10k-images-idx3-ubyte" if kind == "images" else "train-labels-idx1-ubyte.gz"
    return _file_target(
        data / name, bytes_of.idx if kind == "images" else bytes_of.gzipped, lambda: load_idx_folder(data)
    )


def _shard(folder: Path) -> Target:
    path = folder / "shard.tar"

    def read(content: bytes) -> object:
        path.write_bytes(content)
        records = [record for part in open_shards(str(path), lambda line: None).parts for record in part.records()]
        for record in records:
            if isinstance(record.content, Bad):
                raise UserError(f"{record.name}: {record.content.reason}")
        return records

    return Target((seeds.shard(),), bytes_of.tar, read)


def _image(form: str, folder: Path) -> Target:
    path = folder / f"picture.{form.lower()}"
    valid = seeds.images(form)

    def read(content: bytes) -> object:
        path.write_bytes(content)
        for result in (look(path, True), decode(path, 3), decode(path, 1)):
            if isinstance(result, Bad):
                raise UserError(f"{path}: {result.reason}")
        return None

    def mutate(rng: Random, content: bytes) -> bytes:
        return bytes_of.png(rng, content) if form == "PNG" else bytes_of.anywhere(rng, content, valid)

    # Tens of millions of pixels, decoded twice: one with alpha is there as the decoder's, as red, green, blue and
    # alpha, as an array, laid on white, and as an image again, 20 bytes a pixel.
    return Target(valid, mutate, read, memory=2 * 2**30, seconds=15)


# -- evaluation, search, report ---------------------------------------------------------------------------------------


def _scores(folder: Path) -> Target:
    path = folder / "scores.json"

    def read(content: bytes) -> object:
        path.write_bytes(content)
        found = read_scores(path)
        record = read_scores_record("scores", path)
        return table(found) if found else "", scores_part(record).body if _now_and_then(content) else ""

    return Target((seeds.scores(),), _json, read)


def _search(folder: Path) -> Target:
    record = seeds.search_record()
    store = SearchStore(folder)

    def read(content: bytes) -> object:
        (folder / "search.json").write_bytes(content)
        store.check(record.request)
        subject = read_search("search", folder)
        return search_part(subject).body if _now_and_then(content) else ""

    return Target((json.dumps(record.model_dump(mode="json")).encode(),), _json, read)


class _Place(NamedTuple):
    """As much of a point as a search's folder needs to find its files."""

    key: str = "p0"


def _search_score(folder: Path) -> Target:
    (folder / "points").mkdir()
    point: Any = _Place()
    store = SearchStore(folder)
    store.score_path(point).write_text(seeds.search_record().searched[0].points[0].model_dump_json())
    return _file_target(store.score_path(point), _json, lambda: store.score(point))


def _search_images(folder: Path) -> Target:
    (folder / "points").mkdir()
    point: Any = _Place()
    store = SearchStore(folder)
    store.images_path(point).write_bytes(seeds.npz())
    return _file_target(store.images_path(point), bytes_of.zipped, lambda: store.load_images(point, range(2)))


def _reference(folder: Path) -> Target:
    data = PreparedData.open(seeds.prepared_folder(folder / "data"))
    split, key = data.split("train"), "0" * 64
    path = folder / f"reference-{key}.npz"
    features = torch.zeros(len(split), 3)
    known = (FeatureStatistics.empty(3).add(features), features, torch.zeros(len(split), dtype=torch.int64))
    reference._write(path, key, known)
    return _file_target(path, bytes_of.zipped, lambda: reference._read(path, key, split, True))


def _classifier(name: str, mutate: Callable[[Random, bytes], bytes], folder: Path) -> Target:
    place = seeds.classifier_folder(folder / "classifier")
    return _file_target(place / name, mutate, lambda: load_classifier(place))


def _foreign(folder: Path) -> Target:
    path = folder / "weights.pth"
    torch.save({"a.weight": torch.zeros(2, 3), "b": torch.ones(4, dtype=torch.float16)}, path)
    new = path.read_bytes()
    torch.save({"a.weight": torch.zeros(2, 3)}, path, _use_new_zipfile_serialization=False)
    old = path.read_bytes()

    def read(content: bytes) -> object:
        path.write_bytes(content)
        return load_foreign_weights(path, 2**20)

    def mutate(rng: Random, content: bytes) -> bytes:
        return bytes_of.torch_file(rng, content) if content == new else bytes_of.anywhere(rng, content)

    return Target((new, old), mutate, read)


def _class_names(folder: Path) -> Target:
    def read(content: bytes) -> object:
        name = class_folder(content.decode("utf-8", "surrogateescape"))
        place = folder / name
        if place.parent != folder or place.resolve().parent != folder.resolve() or name != place.name:
            raise AssertionError(f"{name!r} is not one folder")
        place.mkdir(exist_ok=True)
        shutil.rmtree(place)
        return place

    valid = tuple(word.encode() for word in ("T-shirt/top", "../..", "Bücher", "con", "a" * 300, "..", ". .", "𝔘" * 90))
    return Target(valid, bytes_of.anywhere, read)


_FORMS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "JPEG2000", "AVIF", "ICO", "PPM", "TGA")
TARGETS: dict[str, Callable[[Path], Target]] = {
    "recipe": _recipe,
    "overrides": _overrides,
    "stage-config": partial(_stage_file, "config.json", _json),
    "stage-weights": partial(_stage_file, "model.safetensors", bytes_of.safetensors),
    "cascade-manifest": _cascade_manifest,
    "checkpoint-manifest": _checkpoint_manifest,
    "checkpoint-weights": partial(_checkpoint_file, "model.safetensors", bytes_of.safetensors),
    "checkpoint-average": partial(_checkpoint_file, "ema-16.safetensors", bytes_of.safetensors),
    "optimizer": _optimizer,
    "recorded-config": _recorded_config,
    "metrics": _metrics,
    "preview": _preview,
    "prepared-manifest": partial(_prepared, "manifest.json", _json),
    "prepared-images": partial(_prepared, "train/images_8.npy", bytes_of.npy),
    "prepared-labels": partial(_prepared, "val/labels.npy", bytes_of.npy),
    "samples-npz": _samples,
    "given-npz": _given,
    "idx": partial(_idx, "images"),
    "idx-gz": partial(_idx, "labels"),
    "shard": _shard,
    **{f"image-{form.lower()}": partial(_image, form) for form in _FORMS},
    "scores": _scores,
    "search-record": _search,
    "search-score": _search_score,
    "search-images": _search_images,
    "reference-cache": _reference,
    "classifier-config": partial(_classifier, "config.json", _json),
    "classifier-weights": partial(_classifier, "model.safetensors", bytes_of.safetensors),
    "foreign-weights": _foreign,
    "class-names": _class_names,
}
"""Makes a reader's target in an empty folder, by the reader's name."""
