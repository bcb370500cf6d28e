from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cascaded_diffusion.cascade.manifest import CascadeManifest

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


def test_a_folder_goes_up_as_it_is(hub: Any, done: Callable[..., Any], cascade: Path) -> None:
    options = ("--private", "--data-note", "Garments in grey.", "--licence", "mit", "--dataset", "user/garments")
    result = done("push", cascade, "user/three", *options, "--device", "cpu")
    assert result.out == (
        f"{hub.endpoint}/user/three: base8 -> sr16 -> sr32, with a card; cdm sample user/three takes it\n"
    )
    files = hub.files("user/three")
    for entry in CascadeManifest.read(cascade).stages:
        for name in entry.sha256:
            assert files[f"{entry.folder}/{name}"] == (cascade / entry.folder / name).read_bytes()
    assert files["cascade.json"] == (cascade / "cascade.json").read_bytes()
    card = files["README.md"].decode()
    assert "Garments in grey." in card
    assert "license: mit" in card
    assert hub.repositories["user/three"].private


def test_what_is_wrong_is_told_before_the_work(
    hub: Any, refused: Callable[..., str], cascade: Path, tmp_path: Path
) -> None:
    (tmp_path / "other.json").write_text(json.dumps({"a": 1}))
    for arguments, words in [
        ((cascade, "three"), "hub: 'three' is not the name of a repository; give user/name"),
        ((cascade, "user/three", "--licence", "My own"), "licence: 'My own' is not known"),
        ((cascade, "user/three", "--scores", tmp_path / "none.json"), "none.json: no such file"),
        ((cascade, "user/three", "--scores", tmp_path / "other.json"), "other.json: not a scores file"),
        (
            ("nowhere", "user/three"),
            "cascade: 'nowhere' is neither a folder nor packaged (demo)",
        ),
    ]:
        assert words in refused("push", *arguments)
    assert hub.repositories == {}
    assert hub.requests == []
    assert "does not allow it with this token" in refused("push", cascade, "someone/three", "--device", "cpu")
