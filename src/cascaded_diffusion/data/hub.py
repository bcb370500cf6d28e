"""Data sets of the Hugging Face hub, or in its form on this disk, as a stream: rows come one by one, nothing is kept.

The package ``datasets`` finds the files and reads the rows; images are decoded here, as those of a folder are.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import logging
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cascaded_diffusion.data.shards import MAX_MEMBER
from cascaded_diffusion.data.sources import Bad
from cascaded_diffusion.data.streams import Columns, Label, Part, Record, Stream
from cascaded_diffusion.errors import UserError, did_you_mean, one_line
from cascaded_diffusion.extras import load_extra, transport_errors

__all__ = ["open_hub_data"]

# Forms whose reading runs no code of the data set's author and unpickles nothing.
_FORMS = ("parquet", "arrow", "imagefolder", "webdataset")
_VAL_NAMES = ("val", "validation", "valid", "dev", "test")  # the first that is there becomes val
_LABEL_NAMES = ("label", "labels", "class", "cls", "target", "category")
_IMAGE_NAMES = ("image", "img")
_ARCHIVES = ("zip://", "tar://", "gzip://", "bz2://", "xz://", "zstd://", "lz4://")  # what a file in a file is in


@dataclass(frozen=True)
class _Chosen:
    """The columns that are read."""

    image: str
    label: str | None
    class_names: list[str] | None
    is_feature: bool  # whether the image column is declared as such


def open_hub_data(given: str, columns: Columns, scratch: Path, note: Callable[[str], None]) -> Stream:
    """Open ``NAME`` or ``NAME:SPLIT``: a data set of the hub, or a folder or file on this disk, which wins.

    Without ``SPLIT``, the split train is train, and the first of val, validation, valid, dev and test is val.

    Raises:
        UserError: no such data set, split or column; it names those that there are.
        RuntimeError: the hub does not answer.
    """
    name, split = _parse(given)
    datasets = load_extra("datasets", "datasets", f"hf:{given}: reading it")
    if Path(name).exists() and not name.startswith((".", "/", "~")):
        note(f"hf:{name}: what has this name here is read, not a data set of the hub")
    with _told_in_one_line(datasets, f"hf:{name}", "cannot be opened as a data set"):
        builder = _builder(datasets, name, columns.subset, scratch)
        form = type(builder).__module__.rpartition(".")[2]
        if form not in _FORMS:
            raise UserError(f"hf:{name}: its files are read as {form}; images are read from {', '.join(_FORMS)}")
        _check_files(builder)
        splits = dict(builder.as_streaming_dataset())
    wanted = _wanted(name, split, list(splits))
    chosen = _choose(datasets, name, splits[next(iter(wanted))].features, columns, note)
    for source in wanted:
        note(f"hf:{name}: reading {source} as {wanted[source] or 'all images'}")
    parts = [
        Part(
            role,
            _Rows(datasets, name, source, splits[source], chosen, _files(builder, source)),
            _total(builder, source),
        )
        for source, role in wanted.items()
    ]
    own = f"the data set's own splits {' and '.join(wanted)} (hf:NAME:{next(iter(wanted))} takes one alone)"
    return Stream(
        name=Path(name).resolve().name if Path(name).exists() else name,
        parts=parts,
        class_names=chosen.class_names,
        fingerprint=_fingerprint(builder, list(wanted), chosen, Path(name)),
        split_rule=own if len(wanted) > 1 else None,
    )


def _parse(given: str) -> tuple[str, str | None]:
    """A name and a split; what exists on this disk has no split in its name."""
    name, colon, split = given.rpartition(":")
    if not colon or Path(given).exists():
        name, colon, split = given, "", ""
    if not name or (colon and not split):
        raise UserError(f"hf:{given}: give hf:NAME or hf:NAME:SPLIT, such as hf:uoft-cs/cifar10:train")
    return name, split or None


def _builder(datasets: Any, name: str, subset: str | None, scratch: Path) -> Any:
    path = Path(name)
    if path.is_file():
        if path.suffix not in (".parquet", ".arrow"):
            raise UserError(f"hf:{name}: a {path.suffix or 'nameless kind of'} file; give a .parquet file or a folder")
        if subset is not None:
            raise UserError(f"hf:{name}: one file has no subsets; leave out the subset {subset!r}")
        return datasets.load_dataset_builder(path.suffix[1:], data_files=str(path), cache_dir=str(scratch))
    if name.startswith((".", "/", "~")) and not path.exists():
        raise UserError(f"hf:{name}: no such file or folder")
    return datasets.load_dataset_builder(str(path.resolve()) if path.is_dir() else name, subset, cache_dir=str(scratch))


def _check_files(builder: Any) -> None:
    """Name the file that is cut short, which an error of the library would not."""
    for paths in (builder.config.data_files or {}).values():
        for path in map(Path, paths):
            if path.suffix == ".parquet" and path.is_file():
                with path.open("rb") as file:
                    start = file.read(4)
                    file.seek(max(0, path.stat().st_size - 4))
                    if (start, file.read(4)) != (b"PAR1", b"PAR1"):
                        raise UserError(f"{path}: not a whole parquet file")


@contextlib.contextmanager
def _told_in_one_line(datasets: Any, place: str, what: str) -> Iterator[None]:
    """Turn the libraries' errors into ours, and keep what they would write beside them off the screen."""
    level, hidden = datasets.logging.get_verbosity(), datasets.utils.are_progress_bars_disabled()
    # Else it tells a server of every data set that is opened, those on this disk too.
    counts, datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = datasets.config.HF_UPDATE_DOWNLOAD_COUNTS, False
    datasets.logging.set_verbosity(logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    except UserError:
        raise
    except transport_errors() as error:
        raise RuntimeError(f"{place}: the hub does not answer ({one_line(error)})") from None
    except (OSError, ValueError, LookupError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"{place}: {what} ({one_line(error)})") from None
    finally:
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = counts
        datasets.logging.set_verbosity(level)
        if not hidden:
            datasets.enable_progress_bars()


def _wanted(name: str, split: str | None, there: list[str]) -> dict[str, str | None]:
    """Which of the splits that are there are read, as which split of ours; None: to be divided, or all train."""
    known = ", ".join(there)
    if split is not None:
        if split not in there:
            hint = did_you_mean(split, there)
            raise UserError(f"hf:{name}: no split {split!r}; it has {known}{hint}")
        return {split: None}
    if len(there) == 1:
        return {there[0]: None}
    val = next((candidate for candidate in _VAL_NAMES if candidate in there), None)
    if "train" not in there or val is None:
        raise UserError(f"hf:{name}: its splits are {known}; say which is meant with hf:{name}:SPLIT")
    return {"train": "train", val: "val"}


# -- columns ----------------------------------------------------------------------------------------------------------


def _choose(
    datasets: Any, name: str, features: Mapping[str, Any] | None, columns: Columns, note: Callable[[str], None]
) -> _Chosen:
    if not features:
        raise UserError(f"hf:{name}: its columns are not known")
    image = _image_column(datasets, name, features, columns.image, note)
    label = _label_column(datasets, name, features, columns.label, note)
    feature = features[label] if label is not None else None
    names = list(feature.names) if isinstance(feature, datasets.ClassLabel) else None
    return _Chosen(image, label, names, isinstance(features[image], datasets.Image))


def _image_column(
    datasets: Any, name: str, features: Mapping[str, Any], given: str | None, note: Callable[[str], None]
) -> str:
    """The column given, else the only one that holds images, else the one that is called image."""
    declared = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    possible = declared or [column for column, feature in features.items() if _holds_content(feature)]
    if given is not None:
        if given not in features or not (given in declared or _holds_content(features[given])):
            raise UserError(f"hf:{name}: --image-column {given!r} holds no images; {_listed(features)}")
        return given
    if not possible:
        raise UserError(f"hf:{name}: no column of images; {_listed(features)}")
    named = [column for column in possible if column.lower() in _IMAGE_NAMES]
    if len(possible) > 1 and len(named) != 1:
        raise UserError(f"hf:{name}: several columns of images; choose one with --image-column; {_listed(features)}")
    chosen = possible[0] if len(possible) == 1 else named[0]
    others = [column for column in possible if column != chosen]
    if others:
        note(f"hf:{name}: images from column {chosen}, not {', '.join(others)} (--image-column chooses another)")
    return chosen


def _holds_content(feature: Any) -> bool:
    """Whether a column that is not declared as images may hold the contents of image files."""
    kind = feature.get("bytes") if isinstance(feature, dict) else feature
    return getattr(kind, "dtype", None) in ("binary", "large_binary")


def _label_column(
    datasets: Any, name: str, features: Mapping[str, Any], given: str | None, note: Callable[[str], None]
) -> str | None:
    """The column given, else the only one of classes, else one that is called like classes, else none."""
    declared = [column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    if given is not None:
        if given == "none":
            return None
        if given not in features or not (given in declared or _holds_classes(features[given])):
            raise UserError(
                f"hf:{name}: --label-column {given!r} holds no classes, give one or none; {_listed(features)}"
            )
        return given
    possible = declared or [
        column for column, feature in features.items() if column.lower() in _LABEL_NAMES and _holds_classes(feature)
    ]
    if not possible:
        note(
            f"hf:{name}: no column of classes, so the images have none (--label-column names one; {_listed(features)})"
        )
        return None
    named = [column for column in possible if column.lower() == "label"]
    if len(possible) > 1 and not named:
        words = "several columns of classes; choose one with --label-column, or none"
        raise UserError(f"hf:{name}: {words}; {_listed(features)}")
    chosen = possible[0] if len(possible) == 1 else named[0]
    others = [column for column in possible if column != chosen]
    if others:
        note(f"hf:{name}: classes from column {chosen}, not {', '.join(others)} (--label-column chooses another)")
    return chosen


def _holds_classes(feature: Any) -> bool:
    kind = str(getattr(feature, "dtype", ""))
    return kind.startswith(("int", "uint")) or kind in ("string", "large_string")


def _listed(features: Mapping[str, Any]) -> str:
    kinds = [f"{column} ({_kind(feature)})" for column, feature in features.items()]
    return f"it has {', '.join(kinds)}"


def _kind(feature: Any) -> str:
    if isinstance(feature, dict) and "bytes" in feature:
        return "contents of files"
    return str(getattr(feature, "dtype", None) or type(feature).__name__).removeprefix("PIL.")


# -- rows -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rows:
    """The rows of one split as records, called by file and row where a file is a shard."""

    datasets: Any
    name: str
    split: str
    data: Any
    chosen: _Chosen
    files: dict[str, None]  # in order

    def __call__(self) -> Generator[Record, None, None]:
        kept = [column for column in (self.chosen.image, self.chosen.label) if column is not None]
        data = self.data.select_columns(kept)
        if self.chosen.is_feature:
            data = data.cast_column(self.chosen.image, self.datasets.Image(decode=False))
        names = list(self.files)
        shards = len(self.files) if len(self.files) == data.num_shards else 1
        for shard in range(shards):
            part = data.shard(shards, shard) if shards > 1 else data
            place = Path(names[shard]).name if len(names) == shards else self.split
            yield from self._read(part, f"hf:{self.name}: {place}")

    def _read(self, rows: Any, place: str) -> Iterator[Record]:
        with _told_in_one_line(self.datasets, place, "cannot be read to its end"):
            for number, row in enumerate(rows):
                yield Record(f"{place} row {number}", self._label(row), self._content(row[self.chosen.image]))

    def _label(self, row: Mapping[str, Any]) -> Label:
        """-1 is what the hub's data sets have for a hidden class."""
        value = None if self.chosen.label is None else row[self.chosen.label]
        if isinstance(value, int):
            return None if value == -1 else int(value)
        return value if isinstance(value, str) else None

    def _content(self, value: Any) -> bytes | Bad:
        """The content of the image's file, which is in the row or has a name of its own in the data set."""
        content = value.get("bytes") if isinstance(value, Mapping) else value
        path = value.get("path") if isinstance(value, Mapping) else None
        if isinstance(content, bytes | bytearray):
            return bytes(content)
        if not isinstance(path, str):
            return Bad("no image in this row")
        # "zip://a.png::FILE" is a.png in FILE. A row must not point at anything else on this disk or the net.
        *within, outermost = path.split("::")
        if outermost not in self.files or not all(hop.startswith(_ARCHIVES) for hop in within):
            return Bad(f"its path {path} is not among the data set's files")
        with self.datasets.utils.file_utils.xopen(path, "rb") as file:
            found = bytes(file.read(MAX_MEMBER + 1))
        return found if len(found) <= MAX_MEMBER else Bad(f"its file {path} has more than {MAX_MEMBER} bytes")


def _files(builder: Any, split: str) -> dict[str, None]:
    found = builder.config.data_files or {}
    return dict.fromkeys(str(path) for path in found.get(split, []))


def _total(builder: Any, split: str) -> int | None:
    """The number of rows, where the data set tells it or all its files are here."""
    told = getattr((builder.info.splits or {}).get(split), "num_examples", None)
    files = [Path(path) for path in _files(builder, split)]
    if told or not files or not all(path.suffix == ".parquet" and path.is_file() for path in files):
        return told or None
    parquet = importlib.import_module("pyarrow.parquet")
    return sum(int(parquet.read_metadata(path).num_rows) for path in files)


def _fingerprint(builder: Any, splits: list[str], chosen: _Chosen, folder: Path) -> str:
    """SHA-256 over what is read: files with their sizes here, or with the revision in the hub's names of them."""
    digest = hashlib.sha256(f"{chosen.image}\0{chosen.label}\0{builder.config.name}\n".encode())
    for split in splits:
        digest.update(f"{split}\n".encode())
        for path in _files(builder, split):
            local = Path(path)
            told = f"{local.name}\0{local.stat().st_size}" if local.is_file() else path
            digest.update(f"{told}\n".encode())
    return digest.hexdigest()
