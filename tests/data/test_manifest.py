import json
from pathlib import Path
from typing import Any

import pytest

from cascaded_diffusion.data.manifest import Manifest
from cascaded_diffusion.errors import UserError


def manifest(**changes: Any) -> dict[str, Any]:
    value: dict[str, Any] = {
        "format_version": 1,
        "source": "pictures",
        "channels": 3,
        "class_names": ["a", "b"],
        "counts": {"train": 2, "val": 0},
        "resolutions": [8, 16],
        "crop": "square",
        "resize": "area",
        "split": "all train",
        "upscaled": 0,
        "skipped": 0,
        "skipped_files": [],
        "files": {f"train/{name}.npy": "0" * 64 for name in ("images_8", "images_16", "labels")},
        "request": {
            "source_fingerprint": "0" * 64,
            "val": None,
            "limit": None,
            "skip_bad": False,
            "allow_upscale": False,
        },
    }
    return value | changes


def test_a_good_manifest_is_read(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(manifest()))
    read = Manifest.read(tmp_path)
    assert read.splits() == ["train"]
    assert read.model_dump(mode="json") == manifest()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"format_version": 3}, "format_version 3, not 1 or 2"),
        ({"channels": 4}, "channels: Input should be 1 or 3"),
        ({"counts": {"train": 0, "val": 0}}, "counts.train: "),
        ({"class_names": []}, "class_names: "),
        ({"resolutions": [16, 8]}, "distinct and ascending"),
        ({"resolutions": [8, 8]}, "distinct and ascending"),
        ({"skipped": 1}, "length of skipped_files"),
        ({"counts": {"train": 2, "val": 1}}, "files must list exactly"),
        ({"surprise": 1}, "surprise: unknown key"),
    ],
)
def test_a_wrong_manifest_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(manifest(**changes)))
    with pytest.raises(UserError) as error:
        Manifest.read(tmp_path)
    assert message in str(error.value)
    assert str(tmp_path / "manifest.json") in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["", "[1]", '"text"', "{", "{}"])
def test_what_is_no_manifest(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"manifest\.json: not "):
        Manifest.read(tmp_path)
