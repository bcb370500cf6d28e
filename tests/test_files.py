"""Files: complete or not there at all."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import stat
from pathlib import Path

import pytest

from cascaded_diffusion.errors import UserError
from cascaded_diffusion.files import (
    atomic_write,
    fill_folder,
    new_folder,
    read_json,
    sha256_of,
    sync_folder,
    write_json,
)


def test_a_file_takes_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.bin"
    with atomic_write(path) as file:
        file.write(b"half")
        file.flush()
        assert not path.exists()
        assert [entry.name[0] for entry in path.parent.iterdir()] == ["."]
        file.write(b" and half")
    assert path.read_bytes() == b"half and half"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_content_and_no_temporary(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")

    def fail() -> None:
        with atomic_write(path) as file:
            file.write(b"new")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_left_is_used_up_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    (tmp_path / ".file.bin.partial").write_bytes(b"half of something longer")
    with atomic_write(path) as file:
        file.write(b"whole")
    assert path.read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_of_one_file_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    with atomic_write(path) as first:
        first.write(b"first ")
        with atomic_write(path) as second:
            second.write(b"second")
            second.flush()
            first.write(b"writer")
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first writer"
    assert list(tmp_path.iterdir()) == [path]


def test_a_name_lost_between_opening_and_locking_is_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process gives the temporary its final name just before this one locks it."""
    path = tmp_path / "file.bin"
    lock = fcntl.flock

    def late(descriptor: int, operation: int) -> None:
        (tmp_path / ".file.bin.partial").write_bytes(b"the other's")
        (tmp_path / ".file.bin.partial").rename(tmp_path / "finished.bin")
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with atomic_write(path) as file:
        file.write(b"mine")
    assert path.read_bytes() == b"mine"
    assert (tmp_path / "finished.bin").read_bytes() == b"the other's"


def test_a_link_in_the_temporarys_place_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / ".file.bin.partial").symlink_to(victim)
    with atomic_write(tmp_path / "file.bin") as file:
        file.write(b"x")
    assert victim.read_bytes() == b"precious"
    (tmp_path / "victims").mkdir()
    (tmp_path / "victims" / "one").touch()
    (tmp_path / ".folder.partial").symlink_to(tmp_path / "victims")
    with new_folder(tmp_path / "folder") as made:
        (made / "new").touch()
    assert [entry.name for entry in (tmp_path / "victims").iterdir()] == ["one"]


def test_a_folder_takes_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    """And what a killed process left in its temporary is gone, but not what a link in there leads to."""
    left = tmp_path / ".folder.partial"
    (left / "deep").mkdir(parents=True)
    (left / "deep" / "old").touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept").touch()
    (left / "link").symlink_to(tmp_path / "elsewhere")
    with new_folder(tmp_path / "folder") as made:
        assert not list(made.iterdir())
        (made / "file").touch()
        assert not (tmp_path / "folder").exists()
    assert [entry.name for entry in (tmp_path / "folder").iterdir()] == ["file"]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["elsewhere", "folder"]
    assert (tmp_path / "elsewhere" / "kept").exists()


@pytest.mark.parametrize("how", ["there", "current", "link"])
def test_an_empty_folder_is_filled_and_not_replaced(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    inode = folder.stat().st_ino
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(folder)
    path = {"there": folder, "current": Path("."), "link": tmp_path / "link"}[how]
    with contextlib.suppress(RuntimeError), new_folder(path) as made:
        (made / "half").touch()
        raise RuntimeError
    (folder / ".partial").mkdir()  # a killed one's
    (folder / ".partial/half").touch()
    with new_folder(path) as made:
        (made / "inner").mkdir()
        (made / "manifest.json").write_text("{}")
        assert [entry.name for entry in folder.iterdir()] == [".partial"]
    assert sorted(entry.name for entry in folder.iterdir()) == ["inner", "manifest.json"]
    assert folder.stat().st_ino == inode
    assert {entry.name for entry in tmp_path.iterdir()} == {"folder", "link"}
    with pytest.raises(UserError, match="not an empty folder"), new_folder(path):
        pass


def test_an_empty_folder_that_another_fills_meanwhile_is_left_to_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not an empty folder"), new_folder(tmp_path):
        (tmp_path / "manifest.json").write_text("another's")
    assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir()] == [("manifest.json", "another's")]


def test_two_makers_of_one_folder_do_not_mix(tmp_path: Path) -> None:
    with new_folder(tmp_path / "folder") as first:
        with contextlib.suppress(RuntimeError), new_folder(tmp_path / "folder") as second:
            (second / "two").touch()
            raise RuntimeError("given up")
        (first / "one").touch()
    assert [entry.name for entry in (tmp_path / "folder").iterdir()] == ["one"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "file") as file:
            file.write(b"x")
        with new_folder(tmp_path / "folder"):
            pass
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o750


def test_json_goes_there_and_back(tmp_path: Path) -> None:
    value = {"name": "Bücher", "numbers": [1, 2.5, None, True], "folder": {}}
    write_json(tmp_path / "file.json", value)
    assert read_json(tmp_path / "file.json") == value
    assert (tmp_path / "file.json").read_bytes().endswith(b"}\n")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"a": 1,}', b"[" * 200_000])
def test_malformed_json_is_told_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match="not valid JSON") as caught:
        read_json(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_oversized_and_unreadable_json_is_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    with pytest.raises(UserError, match="no such file"):
        read_json(path)
    path.write_text(json.dumps(list(range(100))))
    with pytest.raises(UserError, match="at most 99 are read"):
        read_json(path, limit=99)
    assert len(read_json(path, limit=path.stat().st_size)) == 100
    for unreadable in (tmp_path, path / "below-a-file.json"):
        with pytest.raises(UserError, match="cannot be read"):
            read_json(unreadable)


def test_sha256_is_that_of_the_content(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    (tmp_path / "file").write_bytes(content)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_a_folder_can_be_flushed(tmp_path: Path) -> None:
    sync_folder(tmp_path)
    with pytest.raises(FileNotFoundError):
        sync_folder(tmp_path / "missing")


def test_what_another_has_put_there_is_not_moved_nor_deleted(tmp_path: Path) -> None:
    """Where filling a folder fails, only what was moved is moved back."""
    for name in ("made/a", "made/b", "target/b/theirs"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "made/b/ours").touch()
    with pytest.raises(OSError, match="not empty"):
        fill_folder(tmp_path / "target", tmp_path / "made")
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["a", "b"]
    assert [path.name for path in (tmp_path / "target").rglob("*")] == ["b", "theirs"]
