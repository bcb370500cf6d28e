"""Data sets in the hub's form: parquet files and folders of images on this disk, read by ``datasets`` without a net."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cascaded_diffusion.data.prepare import prepare
from cascaded_diffusion.data.prepared import PreparedData
from cascaded_diffusion.data.streams import Columns
from cascaded_diffusion.errors import UserError

datasets = pytest.importorskip("datasets")
Images = list[tuple[str, str, bytes]]
Contents = Callable[[Path], Images]
NAMES = ["ant", "bee", "cat"]


def run(source: object, out: Path, notes: list[str] | None = None, **options: Any) -> PreparedData:
    note = (lambda _: None) if notes is None else notes.append
    prepare(f"hf:{source}", out, **{"resolutions": [4, 16], "workers": 0, "note": note, **options})
    return PreparedData.open(out)


def refusal(source: object, tmp_path: Path, **options: Any) -> str:
    with pytest.raises(UserError) as error:
        run(source, tmp_path / "refused", **options)
    assert not (tmp_path / "refused").exists()
    assert "\n" not in str(error.value)
    return str(error.value)


def write_parquet(path: Path, images: Images, *, features: bool = True, **columns: Any) -> Path:
    """A file with the columns image and label, as the hub has them, or without its notes on what they mean."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows: dict[str, Any] = {
        "image": [{"bytes": content, "path": name} for _, name, content in images],
        "label": [NAMES.index(label) for label, _, _ in images],
        **columns,
    }
    table = pa.table({name: values for name, values in rows.items() if values is not None})
    if features:
        kinds: dict[str, Any] = {"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)}
        schema = datasets.Features(
            {
                name: kinds.get(name, datasets.Image() if isinstance(table[name][0].as_py(), dict) else kind)
                for name, kind in datasets.Features.from_arrow_schema(table.schema).items()
            }
        )
        table = table.cast(schema.arrow_schema)
    pq.write_table(table, path)
    return path


def test_the_same_pictures_as_a_folder(
    class_folder: Path, contents: Contents, same_arrays: Callable[..., bool], tmp_path: Path
) -> None:
    images = contents(class_folder)
    write_parquet(tmp_path / "d/train-00000-of-00002.parquet", images[:5])
    write_parquet(tmp_path / "d/train-00001-of-00002.parquet", images[5:])
    write_parquet(tmp_path / "plain.parquet", images, features=False, label=[label for label, _, _ in images])
    for i, options in enumerate([{}, {"val": 0.4}, {"limit": 5}, {"val": 0.4, "limit": 2, "workers": 2}]):
        prepare(str(class_folder), tmp_path / f"folder{i}", **{"resolutions": [4, 16], "workers": 0, **options})
        for name in ("d", "plain.parquet", "pictures"):  # pictures: the folder itself, as datasets reads it
            out = tmp_path / f"{name}-out{i}"
            data = run(tmp_path / name, out, **options)
            assert same_arrays(out, tmp_path / f"folder{i}"), (name, options)
            folder = PreparedData.open(tmp_path / f"folder{i}").manifest
            same = {"source": folder.source, "request": folder.request}
            assert data.manifest.model_copy(update=same) == folder
            assert data.manifest.source == name


def test_splits(class_folder: Path, contents: Contents, tmp_path: Path) -> None:
    images = contents(class_folder)
    for name, chosen in [("train", images[:4]), ("validation", images[4:6]), ("test", images[6:])]:
        write_parquet(tmp_path / f"d/{name}-00000.parquet", chosen)
    notes: list[str] = []
    data = run(tmp_path / "d", tmp_path / "both", notes)
    counts = data.manifest.counts
    assert (counts.train, counts.val) == (4, 2)
    assert data.class_names == NAMES
    assert [line.partition(": ")[2] for line in notes] == ["reading train as train", "reading validation as val"]
    assert "its own splits train and validation" in data.manifest.split.replace("the data set's", "its")
    data = run(f"{tmp_path / 'd'}:test", tmp_path / "one", val=0.5)
    assert data.manifest.counts.train + data.manifest.counts.val == 3
    assert "not for d, whose splits are the data set's own" in refusal(tmp_path / "d", tmp_path, val=0.5)
    line = refusal(f"{tmp_path / 'd'}:tst", tmp_path)
    assert "no split 'tst'; it has train, validation, test; did you mean test?" in line
    (tmp_path / "d/validation-00000.parquet").unlink()
    assert run(tmp_path / "d", tmp_path / "test").manifest.counts.val == 3
    (tmp_path / "d/train-00000.parquet").rename(tmp_path / "d/other-00000.parquet")
    assert run(f"{tmp_path / 'd'}:test", tmp_path / "again").manifest.counts.train == 3


def test_hidden_classes_are_none(class_folder: Path, contents: Contents, tmp_path: Path) -> None:
    images = contents(class_folder)
    write_parquet(tmp_path / "a.parquet", images, label=[-1] * 9)
    assert run(tmp_path / "a.parquet", tmp_path / "out").class_names is None
    write_parquet(tmp_path / "b.parquet", images, label=[0, 1, -1, 0, 1, 2, 0, 1, 2])
    line = refusal(tmp_path / "b.parquet", tmp_path)
    assert "b.parquet row 2: no class, where " in line
    assert "row 0 has the class number 0" in line


def test_columns_are_found_and_chosen(class_folder: Path, contents: Contents, tmp_path: Path) -> None:
    images = contents(class_folder)
    other = [{"bytes": content, "path": None} for _, _, content in reversed(images)]
    fine = [i % 2 for i in range(9)]
    first = write_parquet(tmp_path / "first.parquet", images, mask=other, fine=fine)
    notes: list[str] = []
    straight = run(first, tmp_path / "first", notes)
    assert f"hf:{first}: images from column image, not mask (--image-column chooses another)" in notes
    chosen = run(first, tmp_path / "chosen", columns=Columns(image="mask", label="fine"))
    assert chosen.class_names == ["0", "1"]
    np.testing.assert_array_equal(chosen.split("train").images(4)[::-1], straight.split("train").images(4))
    assert run(first, tmp_path / "none", columns=Columns(label="none")).class_names is None
    with pytest.raises(UserError, match="a source with other files"):
        run(first, tmp_path / "none", columns=Columns(label="fine"))

    line = refusal(first, tmp_path, columns=Columns(subset="nonsense"))
    assert "one file has no subsets; leave out the subset 'nonsense'" in line

    second = write_parquet(tmp_path / "second.parquet", images, image=None, left=other, right=other)
    line = refusal(second, tmp_path)
    assert "several columns of images; choose one with --image-column; it has " in line
    assert "label (int64), left (Image.Image), right (Image.Image)" in line
    assert run(second, tmp_path / "left", columns=Columns(image="left")).manifest.counts.train == 9
    line = refusal(second, tmp_path, columns=Columns(image="label"))
    assert "--image-column 'label' holds no images; it has " in line
    line = refusal(second, tmp_path, columns=Columns(image="left", label="right"))
    assert "--label-column 'right' holds no classes, give one or none; it has " in line

    third = write_parquet(tmp_path / "third.parquet", images, label=None, caption=["some words"] * 9)
    notes.clear()
    assert run(third, tmp_path / "third", notes).class_names is None
    assert "no column of classes, so the images have none (--label-column names one; it has image" in notes[0]
    fourth = write_parquet(tmp_path / "fourth.parquet", images, image=None, text=["x"] * 9)
    assert "no column of images; it has label (int64), text (string)" in refusal(fourth, tmp_path)


def test_several_columns_of_classes(class_folder: Path, contents: Contents, tmp_path: Path) -> None:
    images = contents(class_folder)
    kinds = datasets.Features(
        {
            "image": datasets.Image(),
            "fine": datasets.ClassLabel(num_classes=3),
            "coarse": datasets.ClassLabel(num_classes=2),
        }
    )
    rows = {"image": [{"bytes": c, "path": None} for _, _, c in images], "fine": [0, 1, 2] * 3, "coarse": [0, 1, 1] * 3}
    pq.write_table(pa.table(rows).cast(kinds.arrow_schema), tmp_path / "a.parquet")
    line = refusal(tmp_path / "a.parquet", tmp_path)
    assert "several columns of classes; choose one with --label-column, or none; it has image" in line
    data = run(tmp_path / "a.parquet", tmp_path / "out", columns=Columns(label="coarse"))
    assert data.split("train").labels.tolist() == [0, 1, 1] * 3


def test_bad_rows_are_named_or_left_out(class_folder: Path, contents: Contents, tmp_path: Path) -> None:
    images = contents(class_folder)
    images[1] = (images[1][0], "1.png", images[1][2][:-300])
    path = write_parquet(tmp_path / "d/train-00000.parquet", images[:4])
    outside = f"/etc/hostname::{tmp_path}/d/train-00000.parquet"  # the last is a file of the data set
    rows = [{"bytes": None, "path": "/etc/hostname"}, {"bytes": None, "path": None}, {"bytes": b"", "path": "x"}]
    rows.append({"bytes": None, "path": outside})
    write_parquet(tmp_path / "d/train-00001.parquet", images[4:8], image=rows)
    line = refusal(path.parent, tmp_path)
    assert f"hf:{path.parent}: train-00000.parquet row 1: unreadable image (" in line
    assert "--skip-bad" in line
    data = run(path.parent, tmp_path / "out", skip_bad=True)
    assert data.manifest.counts.train == 3
    told = [line.partition("train-0000")[2] for line in data.manifest.skipped_files]
    assert told[0].startswith("0.parquet row 1: ")
    assert told[1:] == [
        "1.parquet row 0: its path /etc/hostname is not among the data set's files",
        "1.parquet row 1: no image in this row",
        "1.parquet row 2: the file is empty",
        f"1.parquet row 3: its path {outside} is not among the data set's files",
    ]


def test_damaged_files(class_folder: Path, contents: Contents, tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "d/train-00000.parquet", contents(class_folder))
    content = path.read_bytes()
    path.write_bytes(content[:-9])
    assert f"{path}: not a whole parquet file" in refusal(path.parent, tmp_path)
    path.write_bytes(b"PAR1" + bytes(len(content) - 8) + b"PAR1")
    assert f"hf:{path.parent}: cannot be opened as a data set (" in refusal(path.parent, tmp_path)
    path.write_bytes(content[:4] + b"\xff" * 200 + content[204:])  # the rows; what is known of them is at the end
    assert f"hf:{path.parent}: train-00000.parquet: cannot be read to its end (" in refusal(path.parent, tmp_path)


def test_what_is_no_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "text").mkdir()
    (tmp_path / "text/a.txt").write_text("x")
    assert "hf:: give hf:NAME or hf:NAME:SPLIT" in refusal("", tmp_path)
    assert "hf:a:: give hf:NAME or hf:NAME:SPLIT" in refusal("a:", tmp_path)
    assert "hf:./none: no such file or folder" in refusal("./none", tmp_path)
    assert "hf:/none: no such file or folder" in refusal("/none:train", tmp_path)
    assert "hf:empty: cannot be opened as a data set" in refusal("empty", tmp_path)
    assert "hf:notes.txt: a .txt file; give a .parquet file or a folder" in refusal("notes.txt", tmp_path)
    assert "hf:text: its files are read as text; images are read from parquet, arrow" in refusal("text", tmp_path)


def test_out_inside_the_source(class_folder: Path, contents: Contents, tmp_path: Path) -> None:
    write_parquet(tmp_path / "d/train.parquet", contents(class_folder))
    with pytest.raises(UserError, match="lies inside the source"):
        run(tmp_path / "d", tmp_path / "d/out")


def test_columns_of_other_sources(class_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no columns and subsets to choose; those are for hf: data sets"):
        prepare(str(class_folder), tmp_path / "out", resolutions=[4], columns=Columns(image="x"))


def test_the_raw_images_are_not_kept(picture: Callable[..., np.ndarray], tmp_path: Path) -> None:
    images: Images = []
    for i in range(40):
        buffer = io.BytesIO()
        Image.fromarray(picture(i, 80, 80)).save(buffer, "PNG")
        images.append((NAMES[i % 3], f"{i}.png", buffer.getvalue()))
    path = write_parquet(tmp_path / "d/train.parquet", images)
    sizes: list[int] = []

    def weigh(what: str, done: int, total: int | None) -> None:
        assert total == 40
        sizes.append(sum(file.stat().st_size for file in (tmp_path / "w").rglob("*") if file.is_file()))

    run(path, tmp_path / "w/out", resolutions=[8], progress=weigh)
    assert max(sizes) < 40 * 8 * 8 * 3 + 10_000 < path.stat().st_size / 10


def test_a_hub_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    for name in ("user/name", "user/name:train"):
        with pytest.raises(RuntimeError) as error:
            run(name, tmp_path / "out")
        assert str(error.value).startswith("hf:user/name: the hub does not answer (")
        assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
    assert capfd.readouterr().err == ""
