"""Packaged names, and places to write to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cascaded_diffusion.cli.places import check_place, tell_which
from cascaded_diffusion.errors import UserError


def test_packaged_names_win_and_the_command_says_so(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tell_which("recipe", "demo", ["demo"])
    (here / "demo").mkdir()
    (here / "other").mkdir()
    tell_which("recipe", "other", ["demo"])
    assert capsys.readouterr().err == ""
    tell_which("recipe", "demo", ["demo"])
    line = "demo: the packaged recipe is used, not what has this name here (write ./demo for that)\n"
    assert capsys.readouterr().err == line


def test_places(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "file").write_text("")
    for path in ("new", "new/deep/x.npz", "file", ".", str(here / "x")):
        check_place("--out", Path(path))
    for path in ("file/x.npz", "file/deep/x.npz"):
        with pytest.raises(UserError, match=f"^--out: {path} cannot be made, for {here}/file is not a folder$"):
            check_place("--out", Path(path))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match=f"^--out: new/x.npz cannot be made, for nothing may be written to {here}$"):
        check_place("--out", Path("new/x.npz"))
