import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cascaded_diffusion.data import sources
from cascaded_diffusion.data.fashion_mnist import load_idx_folder
from cascaded_diffusion.data.sources import ArrayReader, Facts, open_source
from cascaded_diffusion.errors import UserError


def test_kinds_of_sources(class_folder: Path, idx_folder: Callable[..., Path], tmp_path: Path) -> None:
    np.savez(tmp_path / "some.npz", arr_0=np.zeros((2, 4, 4), np.uint8))
    for path, name, count in [
        (class_folder, "pictures", 9),
        (idx_folder(), "idx", 17),
        (tmp_path / "some.npz", "some.npz", 2),
    ]:
        source = open_source(str(path), tmp_path, print)
        assert (source.name, len(source.items)) == (name, count)


def test_packaged_names_win_and_say_so(
    idx_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = load_idx_folder(idx_folder())
    monkeypatch.setattr(sources, "load_fashion_mnist", lambda note: data)
    monkeypatch.chdir(tmp_path)
    notes: list[str] = []
    assert open_source("fashion-mnist", tmp_path, notes.append).name == "fashion-mnist"
    assert notes == []
    (tmp_path / "fashion-mnist").mkdir()
    assert len(open_source("fashion-mnist", tmp_path, notes.append).items) == 17
    assert len(notes) == 1
    assert "./fashion-mnist" in notes[0]
    with pytest.raises(UserError, match="no image files"):
        open_source("./fashion-mnist", tmp_path, notes.append)


@pytest.mark.parametrize(
    "source, message",
    [
        ("nowhere", "nowhere: no such file or folder; give fashion-mnist, a folder of class folders"),
        ("notes.txt", "notes.txt: neither a folder nor an .npz file"),
    ],
)
def test_what_is_no_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("x")
    with pytest.raises(UserError) as error:
        open_source(source, tmp_path, print)
    assert message in str(error.value)


def test_array_reader(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 5, 1), dtype=np.uint8)
    np.save(tmp_path / "a.npy", images)
    reader = ArrayReader(tmp_path / "a.npy", "some.npz")
    assert reader.name(3) == "some.npz: image 3"
    assert reader.look([2], with_digest=False) == [Facts(3, 5, True, None)]
    digests = [hashlib.sha256(images[i].tobytes()).digest() for i in (2, 0)]
    assert reader.look([2, 0], with_digest=True) == [Facts(3, 5, True, digest) for digest in digests]
    assert reader.chunk == 256
