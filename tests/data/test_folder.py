import hashlib
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from cascaded_diffusion.data.folder import open_folder
from cascaded_diffusion.errors import UserError


def image_at(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)
    return path


def test_class_folders(class_folder: Path) -> None:
    source = open_folder(class_folder)
    assert source.name == "pictures"
    assert source.class_names == ["ant", "bee", "cat"]
    assert [(item.key, item.label, item.split) for item in source.items][3:5] == [
        ("ant/3.png", 0, None),
        ("bee/0.png", 1, None),
    ]
    assert source.split_rule is None
    assert source.reader.name("ant/3.png") == f"{class_folder}/ant/3.png"


def test_folders_inside_a_class_belong_to_it(tmp_path: Path) -> None:
    image_at(tmp_path / "b/deep/deeper/1.png")
    image_at(tmp_path / "a/0.PNG")
    source = open_folder(tmp_path)
    assert [(item.key, item.label) for item in source.items] == [("a/0.PNG", 0), ("b/deep/deeper/1.png", 1)]


def test_flat_folder_has_no_classes(tmp_path: Path) -> None:
    image_at(tmp_path / "b.png")
    image_at(tmp_path / "a.png")
    (tmp_path / "empty").mkdir()
    source = open_folder(tmp_path)
    assert source.class_names is None
    assert [(item.key, item.label) for item in source.items] == [("a.png", -1), ("b.png", -1)]


def test_hidden_files_and_litter_are_passed_over_and_others_counted(tmp_path: Path) -> None:
    image_at(tmp_path / "a/1.png")
    for name in (".hidden.png", ".DS_Store", "Thumbs.db", "desktop.ini"):
        (tmp_path / "a" / name).write_text("x")
        (tmp_path / name).write_text("x")
    image_at(tmp_path / ".cache/2.png")
    image_at(tmp_path / "__MACOSX/2.png")
    (tmp_path / "README.md").write_text("x")
    (tmp_path / "a/1.json").write_text("{}")
    source = open_folder(tmp_path)
    assert [item.key for item in source.items] == ["a/1.png"]
    assert sorted(source.ignored or []) == ["README.md", "a/1.json"]


def test_anything_called_like_an_image_is_listed(tmp_path: Path) -> None:
    image_at(tmp_path / "a.png")
    (tmp_path / "b.jpg").write_text("no image")
    (tmp_path / "c.heic").write_text("not readable here")
    (tmp_path / "d.png").symlink_to("nowhere.png")
    assert [item.key for item in open_folder(tmp_path).items] == ["a.png", "b.jpg", "c.heic", "d.png"]


@pytest.mark.parametrize("flat", [False, True])
def test_splits(tmp_path: Path, flat: bool) -> None:
    for name in ("train/cat/1.png", "train/ant/1.png", "val/cat/2.png"):
        path = tmp_path / name
        image_at(path.parents[1] / f"{path.parent.name}{path.name}" if flat else path)
    source = open_folder(tmp_path)
    assert source.class_names == (None if flat else ["ant", "cat"])
    expected = [("train", -1), ("train", -1), ("val", -1)] if flat else [("train", 0), ("train", 1), ("val", 1)]
    assert [(item.split, item.label) for item in source.items] == expected
    assert source.split_rule is not None


@pytest.mark.parametrize(
    "train, val",
    [
        ("Train", "Val"),
        ("TRAIN", "valid"),
        ("training", "validation"),
        ("train_set", "Val-Set"),
        ("Training Set", "devset"),
        ("train2017", "val2017"),
        ("train_images", "val_images"),
    ],
)
@pytest.mark.parametrize("flat", [False, True])
def test_splits_by_other_names(tmp_path: Path, train: str, val: str, flat: bool) -> None:
    for name in (f"{train}/cat1.png", f"{train}/ant1.png", f"{val}/cat2.png"):
        image_at(tmp_path / (name if flat else f"{name[:-5]}/{name[-5:]}"))
    source = open_folder(tmp_path)
    assert source.class_names == (None if flat else ["ant", "cat"])
    expected = [("train", -1), ("train", -1), ("val", -1)] if flat else [("train", 0), ("train", 1), ("val", 1)]
    assert [(item.split, item.label) for item in source.items] == expected
    assert source.split_rule == f"its folders {train} and {val}"


def test_splits_by_other_names_are_another_source_than_such_classes(tmp_path: Path) -> None:
    """Data that were prepared when these folders still were classes must not pass for what is asked for now."""

    def of_paths_and_sizes(root: Path) -> str:
        sums = (f"{path.relative_to(root)}\0{path.stat().st_size}\n" for path in sorted(root.glob("*/*.png")))
        return hashlib.sha256("".join(sums).encode()).hexdigest()

    for train, val in (("train", "val"), ("Train", "Val")):
        root = tmp_path / f"of-{train}"
        image_at(root / train / "1.png")
        image_at(root / val / "2.png")
        assert (open_folder(root).fingerprint == of_paths_and_sizes(root)) is (train == "train")


@pytest.mark.parametrize("name", ["train", "Training", "train-set"])
def test_train_alone_leaves_the_split_open(tmp_path: Path, name: str) -> None:
    image_at(tmp_path / name / "a/1.png")
    source = open_folder(tmp_path)
    assert source.class_names == ["a"]
    assert source.split_rule is None
    assert source.items[0].split is None


@pytest.mark.parametrize("name", ["train", "Train", "testing", "valid"])
def test_one_that_is_called_like_a_split_may_be_a_class_among_others(tmp_path: Path, name: str) -> None:
    image_at(tmp_path / name / "1.png")
    image_at(tmp_path / name / "more/2.png")
    image_at(tmp_path / "car/1.png")
    assert open_folder(tmp_path).class_names == sorted(["car", name])


def test_names_that_only_begin_like_a_splits_are_classes(tmp_path: Path) -> None:
    names = ["developer", "settest", "train station", "trainer", "valley"]
    for name in names:
        image_at(tmp_path / name / "deep/1.png")
    assert open_folder(tmp_path).class_names == names


@pytest.mark.parametrize(
    "files, message",
    [
        ([], "no image files in it (no files at all)"),
        (["a/readme.txt", "b.csv"], "no image files in it (2 other files, such as a/readme.txt)"),
        (["a.png", "b/1.png"], "both directly in it (a.png) and in folders (b/1.png)"),
        (["train/1.png", "val/1.png", "test/1.png"], "holds test beside its splits train and val"),
        (["train/1.png", "val/1.png", "a.png"], "holds image files beside its splits"),
        (["train/1.png", "test/1.png"], "its folders are test, train; name the splits train and val"),
        (["val/1.png"], "its folders are val; name the splits"),
        (["Train/a/1.png", "TEST/a/1.png"], "its folders are TEST, Train; name the splits train and val"),
        (["Train/1.png", "train_set/1.png", "val/1.png"], "its folders are Train, train_set, val; name the splits"),
        (["Train/1.png", "Val/1.png", "Test/1.png"], "holds Test beside its splits Train and Val; keep only the two"),
        (["Train/a/1.png", "holdout/a/1.png"], "named like splits (Train) beside others (holdout); keep train and val"),
        (["test/a/1.png", "car/1.png"], "named like splits (test) beside others (car); keep train and val, or"),
        (["Train/1.png", "test/1.png", "car/1.png"], "named like splits (Train, test) beside others (car)"),
        (["val/a/1.png", *(f"{i}/a/1.png" for i in range(9))], "beside others (0, 1, 2, 3, 4, ...); keep"),
        (["Train/a/1.png", "Val/b/1.png"], "Val: class b is not in Train, which has a"),
        (["Train/a/1.png", "Val/1.png"], "Train has class folders and Val has none"),
        (["Train/a.txt", "Val/1.png"], "Train: no image files in it"),
        (["Train/a/1.png", "Train/b/x.txt", "Val/a/1.png"], "Train/b: a class folder without images"),
        (["train/a/1.png", "val/b/1.png"], "val: class b is not in train, which has a"),
        (["train/a/1.png", "val/1.png"], "train has class folders and val has none"),
        (["train/a.txt", "val/1.png"], "train: no image files in it"),
        (["a/1.png", "b/notes.txt"], "b: a class folder without images"),
    ],
)
def test_wrong_layouts_are_named(tmp_path: Path, files: list[str], message: str) -> None:
    for name in files:
        image_at(tmp_path / name) if name.endswith("png") else image_at(tmp_path / "x.png").rename(
            mkdirs(tmp_path / name)
        )
    with pytest.raises(UserError) as error:
        open_folder(tmp_path)
    assert message in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_val_need_not_have_every_class(tmp_path: Path) -> None:
    for name in ("Train/a", "Train/b", "Validation/a"):
        image_at(tmp_path / name / "1.png")
    (tmp_path / "Validation/b").mkdir()
    assert open_folder(tmp_path).class_names == ["a", "b"]


def mkdirs(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    image_at(tmp_path / "elsewhere/1.png")
    (tmp_path / "set").mkdir()
    (tmp_path / "set/a").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert [item.key for item in open_folder(tmp_path / "set").items] == ["a/1.png"]
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "set", target_is_directory=True)
    with pytest.raises(UserError, match="a link that leads back"):
        open_folder(tmp_path / "set")


def test_names_that_are_no_text(tmp_path: Path) -> None:
    broken = os.fsdecode(b"caf\xe9")
    image_at(tmp_path / "a" / f"{broken}.png")
    assert open_folder(tmp_path).reader.name(f"a/{broken}.png").endswith("a/caf\\udce9.png")
    image_at(tmp_path / broken / "1.png")
    with pytest.raises(UserError, match=r"folder name caf\\udce9 is not valid text"):
        open_folder(tmp_path)


def test_fingerprint_follows_names_and_sizes_not_the_place(class_folder: Path, tmp_path: Path) -> None:
    fingerprint = open_folder(class_folder).fingerprint
    copy = tmp_path / "copy"
    shutil.copytree(class_folder, copy)
    assert open_folder(copy).fingerprint == fingerprint
    (copy / "ant/0.png").rename(copy / "ant/9.png")
    assert open_folder(copy).fingerprint != fingerprint
    (copy / "ant/9.png").rename(copy / "ant/0.png")
    with (copy / "ant/0.png").open("ab") as file:
        file.write(b"x")
    assert open_folder(copy).fingerprint != fingerprint
