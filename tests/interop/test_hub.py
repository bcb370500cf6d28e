"""Pushing to and pulling from a stand-in hub on loopback, through the real ``huggingface_hub``."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cascaded_diffusion.cascade.chain import Cascade
from cascaded_diffusion.cascade.find import find_cascade
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.interop.hub import check_repository, is_repository, may_be_repository, pull, push

NAME = "user/tiny"
# The HTTP client's word to huggingface_hub about how it uploads.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def pushed(hub: Any, tiny_cascade_folder: Path) -> Any:
    """The stand-in with a cascade on it, and a note of it in no cache."""
    push(tiny_cascade_folder, NAME)
    return hub


def test_the_same_images_elsewhere(hub: Any, tiny_cascade: Cascade, tmp_path: Path) -> None:
    address = tiny_cascade.push_to_hub(NAME, private=True, message="first", data="Plain colours.", licence="mit")
    assert address == f"{hub.endpoint}/{NAME}"
    assert hub.repositories[NAME].private
    assert hub.repositories[NAME].messages == ["initial commit", "first"]
    files = hub.files(NAME)
    own = {f"{stage}/{file}" for stage in ("base8", "sr16") for file in ("config.json", "model.safetensors")}
    assert set(files) == {".gitattributes", "README.md", "samples.png", "cascade.json"} | own
    assert files["samples.png"].startswith(b"\x89PNG")
    assert b"Plain colours." in files["README.md"]

    pulled = Cascade.from_pretrained(NAME)
    np.testing.assert_array_equal(pulled.sample(6, seed=3), tiny_cascade.sample(6, seed=3))
    assert pulled.defaults == tiny_cascade.defaults
    assert pulled.provenance == tiny_cascade.provenance
    assert {path.name for path in (tmp_path / "hub-cache").iterdir()} >= {"models--user--tiny"}


def test_only_a_cascades_own_files_are_fetched(pushed: Any, tiny_cascade_folder: Path) -> None:
    repository = pushed.repositories[NAME]
    names = ["model.py", "weights.bin", "base8/optimizer.pt", "base8/x/config.json", "other/config.json"]
    strange = dict.fromkeys(names, (b"strange", False))
    repository.commit("main", repository.commits[repository.branches["main"]] | strange, "strangers")
    folder = pull(NAME)
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    stages = {f"{stage}/{file}" for stage in ("base8", "sr16") for file in ("config.json", "model.safetensors")}
    assert found == {"cascade.json"} | stages
    assert not [line for line in pushed.requests if any(name in line for name in strange)]


def test_changed_weights_are_refused(pushed: Any) -> None:
    repository = pushed.repositories[NAME]
    files = dict(repository.commits[repository.branches["main"]])
    content, lfs = files["sr16/model.safetensors"]
    other = content[:-1] + bytes([content[-1] ^ 1])
    pushed.blobs[__import__("hashlib").sha256(other).hexdigest()] = other
    repository.commit("main", files | {"sr16/model.safetensors": (other, lfs)}, "changed")
    with pytest.raises(UserError, match=r"sr16/model.safetensors: not the file that was assembled"):
        Cascade.from_pretrained(NAME)


def test_revisions(pushed: Any, tiny_cascade_folder: Path, tmp_path: Path) -> None:
    first = pushed.repositories[NAME].branches["main"]
    changed = tmp_path / "changed"
    shutil.copytree(tiny_cascade_folder, changed)
    manifest = json.loads((changed / "cascade.json").read_text())
    manifest["stages"][1]["sampling"]["s"] = 0.3
    (changed / "cascade.json").write_text(json.dumps(manifest))
    push(changed, NAME, revision="strong")
    assert Cascade.from_pretrained(NAME).defaults["sr16"].s == 0.1
    assert Cascade.from_pretrained(NAME, revision="strong").defaults["sr16"].s == 0.3
    assert Cascade.from_pretrained(NAME, revision=first).defaults["sr16"].s == 0.1
    with pytest.raises(UserError, match=r"user/tiny has no revision 'none' on http"):
        Cascade.from_pretrained(NAME, revision="none")


def test_stages_that_are_gone_are_removed(pushed: Any, tiny_cascade: Cascade) -> None:
    base = tiny_cascade.stages["base8"]
    Cascade([base]).push_to_hub(NAME)
    assert {name.partition("/")[0] for name in pushed.files(NAME) if "/" in name} == {"base8"}
    assert list(Cascade.from_pretrained(NAME).stages) == ["base8"]


def test_from_the_cache_when_the_hub_is_gone(
    pushed: Any, tiny_cascade: Cascade, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = Cascade.from_pretrained(NAME).sample(2)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    np.testing.assert_array_equal(Cascade.from_pretrained(NAME).sample(2), images)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    np.testing.assert_array_equal(Cascade.from_pretrained(NAME).sample(2), images)
    for offline in (True, False):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
        with pytest.raises(RuntimeError) as error:
            Cascade.from_pretrained("user/other")
        assert "hub: user/other: http://127.0.0.1:9 does not answer, and it is not in the cache" in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(RuntimeError, match=r"user/new: http://127.0.0.1:9 does not answer"):
        tiny_cascade.push_to_hub("user/new")


def test_what_the_hub_refuses(pushed: Any, tiny_cascade_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed.repositories["user/gated"] = type(pushed.repositories[NAME])(gated=True)
    pushed.repositories["user/gated"].commit("main", {}, "")
    pushed.repositories["user/empty"] = type(pushed.repositories[NAME])()
    pushed.repositories["user/empty"].commit("main", {"notes.txt": (b"x", False)}, "")
    with pytest.raises(
        UserError, match=r"'user/none' is not a folder here; hub: user/none: no such repository on http"
    ):
        Cascade.from_pretrained("user/none")
    with pytest.raises(UserError, match=r"hub: user/empty holds no cascade"):
        Cascade.from_pretrained("user/empty")
    with pytest.raises(UserError, match=r"hub: someone/else: .* does not allow it with this token"):
        push(tiny_cascade_folder, "someone/else")
    with pytest.raises(UserError, match=r"hub: user/more: .* does not allow it with this token"):
        push(tiny_cascade_folder, "user/more", token="hf_read")
    with pytest.raises(UserError, match=r"hub: user/more: .*(does not know you|no such repository).*hf auth login"):
        push(tiny_cascade_folder, "user/more", token="hf_wrong")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match=r"hub: user/gated is gated: ask for access at http"):
        Cascade.from_pretrained("user/gated")
    pushed.repositories[NAME].private = True
    with pytest.raises(UserError, match=r"no such repository on .*, or a private one"):
        Cascade.from_pretrained(NAME)
    assert Cascade.from_pretrained(NAME, token="hf_read").classes == 4


@pytest.mark.parametrize(
    "name", ["tiny", "a/b/c", "user/", "/name", "user/na me", "user/a--b", "user/a..b", "user/x.git"]
)
def test_names_that_no_repository_has(name: str, tiny_cascade_folder: Path) -> None:
    with pytest.raises(UserError) as error:
        check_repository(name)
    assert f"hub: {name!r} is not the name of a repository; give user/name" in str(error.value)
    with pytest.raises(UserError, match=r"is not the name of a repository"):
        push(tiny_cascade_folder, name)


def test_which_names_are_the_hubs() -> None:
    assert is_repository("user/name")
    assert may_be_repository("user/name")
    assert not any(is_repository(name) for name in ("name", "./a/b", "/a/b", "a/b/c", "../a", "~/a", "a/"))


def test_folders_win_and_need_no_package(
    tiny_cascade_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_cascade_folder, tmp_path / "user/tiny")
    assert find_cascade(NAME) == (Path(NAME), "here")
    assert list(Cascade.from_pretrained(NAME).stages) == ["base8", "sr16"]
    assert find_cascade("demo")[1] == "packaged"
    with pytest.raises(UserError) as error:
        Cascade.from_pretrained("else/name")
    assert "'else/name' is not a folder here; hub: loading else/name needs the package huggingface_hub" in str(
        error.value
    )
    assert str(error.value).endswith("pip install 'cascaded-diffusion[hub]'")


def test_a_command_takes_names_of_the_hub(pushed: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from cascaded_diffusion.cli.app import main

    with pytest.raises(SystemExit) as end:
        main(["sample", NAME, "--out", str(tmp_path / "x.npz"), "--num", "2"])
    assert end.value.code == 0
    assert np.load(tmp_path / "x.npz")["arr_0"].shape == (2, 16, 16, 3)
    with pytest.raises(SystemExit) as end:
        main(["sample", "user/none", "--out", str(tmp_path / "y.npz")])
    assert end.value.code == 2
    assert "user/none: no such repository" in capsys.readouterr().err


def test_a_search_leaves_the_cache_alone(pushed: Any) -> None:
    from cascaded_diffusion.cascade.search import open_cascade

    folder, is_kept = open_cascade(NAME)
    assert is_kept
    assert "hub-cache" in str(folder)
