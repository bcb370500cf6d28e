import os
from pathlib import Path
from typing import Any

import pytest

from cascaded_diffusion.data.workspace import free_space_check, workspace
from cascaded_diffusion.errors import UserError


def test_the_folder_appears_complete(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with workspace(out, None) as (work, scratch):
        (scratch / "pixels.npy").write_text("x")
        (work / "train").mkdir()
        (work / "manifest.json").write_text("{}")
        assert not out.exists()
    assert sorted(path.name for path in out.iterdir()) == ["manifest.json", "train"]
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_an_empty_folder_is_filled_and_stays_the_one_it_was(tmp_path: Path) -> None:
    """It may be a mount point, or the folder that somebody works in."""
    out = tmp_path / "out"
    out.mkdir()
    before = out.stat().st_ino
    tmp_path.chmod(0o500)
    try:
        with workspace(out, None) as (work, scratch):
            (work / "train").mkdir()
            (work / "manifest.json").write_text("{}")
            (scratch / "pixels.npy").write_text("x")
    finally:
        tmp_path.chmod(0o700)
    assert sorted(path.name for path in out.iterdir()) == ["manifest.json", "train"]
    assert out.stat().st_ino == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_empty_folder_is_filled_after_a_kill(tmp_path: Path) -> None:
    for folder in (".preparing/val", "train"):  # killed between two renames
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / ".preparing/manifest.json").write_text("{}")
    (tmp_path / "train/images_8.npy").write_text("x")
    with workspace(tmp_path, None) as (work, _):
        assert [path.name for path in work.iterdir()] == ["scratch"]
        assert [path.name for path in tmp_path.iterdir()] == [".preparing"]
        (work / "manifest.json").write_text("{}")
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


@pytest.mark.parametrize("left", [(), ("train/x",), ("manifest.json", "train/x")])
def test_folders_of_a_person_are_no_leftovers(left: tuple[str, ...], tmp_path: Path) -> None:
    """A killed run's hidden folder lies in what looks like an empty one, and somebody has put splits there since."""
    for path in (*(f".preparing/{name}" for name in left), "train/photo.png"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("x")
    with pytest.raises(UserError, match="not empty and not prepared data"), workspace(tmp_path, None):
        pass
    assert (tmp_path / "train/photo.png").exists()


def test_an_interruption_while_it_is_filled_leaves_it_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = os.rename

    def interrupted(old: Path, new: Path) -> None:
        if new.name == "manifest.json":
            raise KeyboardInterrupt
        rename(old, new)

    monkeypatch.setattr(os, "rename", interrupted)

    def prepare() -> None:
        with workspace(tmp_path, None) as (work, _):
            (work / "train").mkdir()
            (work / "manifest.json").write_text("{}")

    with pytest.raises(KeyboardInterrupt):
        prepare()
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_has_finished_meanwhile_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    mkdir = Path.mkdir

    def late(path: Path, **options: Any) -> None:
        if path.name == ".preparing":  # between the first look and the lock
            mkdir(tmp_path / "out/train")
            (tmp_path / "out/manifest.json").write_text("{}")
        mkdir(path, **options)

    monkeypatch.setattr(Path, "mkdir", late)
    with workspace(tmp_path / "out", None):
        monkeypatch.undo()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["manifest.json", "train"]


def test_an_empty_folder_that_another_fills_is_left_to_it(tmp_path: Path) -> None:
    def prepare() -> None:
        with workspace(tmp_path, None) as (work, _):
            (work / "manifest.json").write_text("{}")
            (tmp_path / "thesis.tex").write_text("x")

    with pytest.raises(UserError, match="another program has filled it"):
        prepare()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_of_a_failure(tmp_path: Path, error: type[BaseException]) -> None:
    def fail() -> None:
        with workspace(tmp_path / "out", None) as (work, _):
            (work / "manifest.json").write_text("{}")
            raise error

    with pytest.raises(error):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / ".out.preparing"
    for name in ("train/images_8.npy", "scratch/pixels.npy"):
        (left / name).parent.mkdir(parents=True)
        (left / name).write_text("x")
    (left / ".manifest.json.abc").write_text("x")
    with workspace(tmp_path / "out", None) as (work, scratch):
        assert [path.name for path in work.iterdir()] == ["scratch"]
        assert list(scratch.iterdir()) == []


def test_a_strangers_file_in_the_way_is_not_removed(tmp_path: Path) -> None:
    left = tmp_path / ".out.preparing"
    left.mkdir()
    (left / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match=r"thesis.tex: not left by cdm prepare"), workspace(tmp_path / "out", None):
        pass
    assert (left / "thesis.tex").exists()


def test_two_runs_cannot_share_a_folder(tmp_path: Path) -> None:
    with (
        workspace(tmp_path / "out", None) as (work, _),
        pytest.raises(UserError, match="another cdm prepare"),
        workspace(tmp_path / "out", None),
    ):
        pass
    assert not work.exists()


def test_what_is_there_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/a.txt").write_text("x")
    for name, message in [("file", "a file of this name exists"), ("full", "not empty and not prepared data")]:
        with pytest.raises(UserError, match=message), workspace(tmp_path / name, None):
            pass
    with pytest.raises(UserError, match="cannot be made"), workspace(tmp_path / "file" / "out", None):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full"]


@pytest.mark.parametrize("out", ["source", "source/out", "source/a/b"])
def test_not_inside_the_source(tmp_path: Path, out: str) -> None:
    (tmp_path / "source").mkdir()
    with pytest.raises(UserError, match="lies inside the source"), workspace(tmp_path / out, tmp_path / "source"):
        pass


def test_a_full_disk_is_noticed_before_writing(tmp_path: Path) -> None:
    free_space_check(tmp_path, 1)
    with pytest.raises(UserError, match=r"1000000000\.0 GB needed"):
        free_space_check(tmp_path, 10**18)
