"""Only files are read, and only as much as is expected."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cascaded_diffusion.errors import UserError
from cascaded_diffusion.reading.plain import open_file, read_bytes, read_lines, refuse_outside

Frugal = Callable[[Callable[[], object]], str]


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_bytes(path, 5) == b"12345"
    with pytest.raises(UserError, match="file: 5 bytes, at most 4 are read"):
        read_bytes(path, 4)


@pytest.mark.parametrize(
    "make, words",
    [
        (Path.mkdir, "it is a folder"),
        (os.mkfifo, "it is a pipe"),
        (lambda path: path.symlink_to("/dev/zero"), "it is a device"),
        (lambda path: path.symlink_to("nowhere"), "no such file"),
        (lambda path: path.symlink_to(path), "cannot be read"),
    ],
)
def test_what_is_no_file_is_refused_at_once(
    tmp_path: Path, frugal: Frugal, make: Callable[[Path], object], words: str
) -> None:
    make(tmp_path / "file")
    outcome = frugal(lambda: read_bytes(tmp_path / "file", 100))
    assert outcome.startswith("UserError: ")
    assert words in outcome


def test_names_that_no_file_can_have_are_refused(tmp_path: Path) -> None:
    for name in ("a\0b", "x" * 300, "file/below"):
        (tmp_path / "file").touch()
        with pytest.raises(UserError, match="cannot be read"):
            open_file(tmp_path / name)


def test_a_file_that_holds_more_than_it_says_is_read_up_to_its_limit() -> None:
    with pytest.raises(UserError, match="at most 10 are read"):
        read_bytes(Path("/proc/self/maps"), 10)


def test_long_lines_come_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"ab\ncdefgh\ni")
    assert list(read_lines(path, 4)) == [b"ab\n", b"cdef", b"gh\n", b"i"]


def test_links_must_stay_in_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    (tmp_path / "secret").write_text("s")
    (folder / "file").write_text("f")
    (folder / "inside").symlink_to("file")
    (folder / "out").symlink_to("../secret")
    (folder / "inner/far").symlink_to(tmp_path, target_is_directory=True)
    (folder / "circle").symlink_to("circle")
    (tmp_path / "folder-beside").mkdir()
    refuse_outside(folder, folder / "file", folder / "inside", folder / "missing")
    (tmp_path / "link").symlink_to(folder, target_is_directory=True)
    refuse_outside(tmp_path / "link", tmp_path / "link/file", tmp_path / "link/inside")
    for name in ("out", "inner/far/secret", "../folder-beside"):
        with pytest.raises(UserError, match=r"a link that leads out of .*folder"):
            refuse_outside(folder, folder / "file", folder / name)
    with pytest.raises(UserError, match=r"cannot be followed|leads out"):
        refuse_outside(folder, folder / "circle/x")


def test_a_snapshot_of_the_hub_may_link_to_its_own_blobs_alone(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b/snapshots/1234"
    blobs = tmp_path / "models--a--b/blobs"
    for folder in (snapshot / "base8", blobs):
        folder.mkdir(parents=True)
    (blobs / "ab12").write_text("content")
    (tmp_path / "secret").write_text("s")
    (snapshot / "base8/config.json").symlink_to("../../../blobs/ab12")
    (snapshot / "base8/other").symlink_to(tmp_path / "secret")
    refuse_outside(snapshot / "base8", snapshot / "base8/config.json")
    refuse_outside(snapshot, snapshot / "base8/config.json")
    with pytest.raises(UserError, match="leads out"):
        refuse_outside(snapshot, snapshot / "base8/other")
