"""examples/emoji/get_emoji.py on two packages made up here; no npm, no network."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from cascaded_diffusion.errors import UserError

EMOJI = Path(__file__).parents[2] / "examples" / "emoji"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(EMOJI)
    return importlib.import_module("get_emoji")


def _row(code: str, category: str, *tones: str) -> dict[str, object]:
    plain = code.replace("-FE0F", "")
    variations = {tone: {"unified": f"{plain}-{tone}", "non_qualified": None} for tone in tones}
    return {"unified": code, "non_qualified": plain, "category": category, "skin_variations": variations}


@pytest.fixture
def packages(tmp_path: Path, script: ModuleType) -> Path:
    """A node_modules folder with both packages, and six pictures of which one has no category."""
    folder = tmp_path / "node_modules"
    assets = folder / script.PICTURES[0] / "assets"
    assets.mkdir(parents=True)
    for name, size in {
        "0023-fe0f-20e3": (256, 256),
        "1f600": (256, 264),
        "1f44b": (64, 32),
        "1f44b-1f3fd": (256, 256),
        "1f3c3-200d-2642-fe0f": (256, 256),
        "e50a": (256, 256),
    }.items():
        Image.new("RGBA", size, (200, 30, 60, 255)).save(assets / f"{name}.webp", lossless=True)
    table = [
        _row("0023-FE0F-20E3", "Symbols"),
        _row("1F600", "Smileys & Emotion"),
        _row("1F44B", "People & Body", "1F3FB", "1F3FD"),
        _row("1F3C3-200D-2642-FE0F", "People & Body"),
        _row("1F3FB", "Component"),
    ]
    (folder / script.TABLE[0]).mkdir()
    (folder / script.TABLE[0] / "emoji.json").write_text(json.dumps(table))
    for name, version in (script.PICTURES, script.TABLE):
        said = {"name": name, "version": version, "license": "MIT", "author": "Somebody"}
        (folder / name / "package.json").write_text(json.dumps(said))
        (folder / name / "README.md").write_text("[![](licence badge)]\n* Pictures are licensed to everybody.\n")
    return folder


@pytest.mark.parametrize(
    "code, base",
    [
        ("1F44B-1F3FD", "1f44b"),
        ("1F44B", "1f44b"),
        ("0023-FE0F-20E3", "23-20e3"),
        ("1F3C3-1F3FB-200D-2642-FE0F", "1f3c3"),
        ("1F3C3-200D-2640-FE0F-200D-27A1-FE0F", "1f3c3"),
        ("1F468-1F3FF-200D-2695-FE0F", "1f9d1-200d-2695"),
        ("1F469-200D-1F680", "1f9d1-200d-1f680"),
        ("1F9D1-200D-1F680", "1f9d1-200d-1f680"),
        ("2640-FE0F", "2640"),
        ("1F1E6-1F1E8", "1f1e6-1f1e8"),
    ],
)
def test_twins_have_one_base(script: ModuleType, code: str, base: str) -> None:
    assert script.base_of(code) == base


def test_pictures_get_their_category_by_code_point(script: ModuleType, packages: Path) -> None:
    emoji, without = script.join(packages / script.PICTURES[0] / "assets", packages / script.TABLE[0] / "emoji.json")
    assert {one.code: one.category for one in emoji} == {
        "23-20e3": "symbols",
        "1f600": "smileys",
        "1f44b": "people",
        "1f44b-1f3fd": "people",
        "1f3c3-200d-2642": "people",
    }
    assert without == ["e50a.webp"]


def test_no_twin_crosses_the_split(script: ModuleType) -> None:
    codes = [f"{0x1F400 + i:x}" for i in range(400)]
    split = {code: script.Emoji(Path(), code, "animals").split for code in codes}
    assert all(
        split[code] == script.Emoji(Path(), f"{code}-{tone}-200d-2640", "animals").split
        for code in codes
        for tone in ("1f3fb", "1f3ff")
    )
    assert 20 <= sum(value == "val" for value in split.values()) <= 60  # a tenth of 400, five standard deviations about


def test_pictures_are_padded_or_shrunk_on_white(script: ModuleType, packages: Path) -> None:
    assets = packages / script.PICTURES[0] / "assets"
    small = np.asarray(script.on_white(assets / "1f44b.webp"))
    assert small.shape == (256, 256, 3)
    assert (small[0] == 255).all()
    assert (small[128, 128] == (200, 30, 60)).all()
    assert (small != 255).any(axis=2).sum() == 64 * 32
    tall = np.asarray(script.on_white(assets / "1f600.webp"))
    assert (tall[128, 128] == (200, 30, 60)).all()
    assert (tall[:, 0] == 255).all()


def test_transparent_pixels_become_white(script: ModuleType, tmp_path: Path) -> None:
    Image.new("RGBA", (256, 256), (0, 0, 0, 0)).save(tmp_path / "clear.webp", lossless=True)
    assert (np.asarray(script.on_white(tmp_path / "clear.webp")) == 255).all()


def test_one_command_from_packages_to_arrays(
    script: ModuleType,
    packages: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    command = ["get_emoji.py", str(out), "--packages", str(packages), "--resolutions", "8,16"]
    monkeypatch.setattr(sys, "argv", command)
    assert script.main() == 0
    pictures = sorted(path.relative_to(out / "pictures").as_posix() for path in out.glob("pictures/*/*/*.png"))
    assert len(pictures) == 5
    labels = [np.load(path) for path in sorted(out.glob("data/*/labels.npy"))]
    assert sum(map(len, labels)) == 5
    said = json.loads((out / "licences.json").read_text())
    assert [one["licence"] for one in said] == ["MIT", "MIT"]
    assert said[0]["readme_says"] == ["Pictures are licensed to everybody."]
    assert said[0]["licence_files"] == []
    assert script.main() == 0  # once more: nothing is done again
    assert "is there already" in capsys.readouterr().out


def test_another_licence_or_version_is_refused(script: ModuleType, packages: Path) -> None:
    name, version = script.PICTURES
    path = packages / name / "package.json"
    path.write_text(json.dumps({"version": version, "license": "GPL-3.0"}))
    with pytest.raises(UserError, match=r"licence is 'GPL-3.0'; allowed: MIT, Apache-2.0"):
        script.licence_of(packages, name, version)
    path.write_text(json.dumps({"version": "9.9.9", "license": "MIT"}))
    with pytest.raises(UserError, match=r"version 9.9.9; allowed: 1.1.0"):
        script.licence_of(packages, name, version)
    path.unlink()
    with pytest.raises(UserError, match="no package"):
        script.licence_of(packages, name, version)


def test_a_machine_without_npm_is_told(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "argv", ["get_emoji.py", str(tmp_path / "out")])
    assert script.main() == 2
    assert "npm is not installed" in capsys.readouterr().err
    assert not (tmp_path / "out" / "pictures").exists()
