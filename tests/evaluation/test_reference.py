from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cascaded_diffusion.data.prepared import PreparedData
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.evaluation.reference import reference, reference_hash


def _kept(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def test_statistics_features_and_labels(speckled_data: PreparedData, colour_eye: Any, tmp_path: Path) -> None:
    split = speckled_data.split("train")
    told: list[tuple[int, int]] = []
    found = reference(
        speckled_data,
        "train",
        8,
        colour_eye,
        need_features=True,
        cache=tmp_path,
        batch_size=20,
        watch=lambda done, total: told.append((done, total)),
    )
    expected = colour_eye(split.images(8)).features
    assert found.features is not None
    assert found.predicted is not None
    torch.testing.assert_close(found.features, expected)
    torch.testing.assert_close(found.statistics.mean, expected.double().mean(dim=0))
    torch.testing.assert_close(found.statistics.covariance, torch.cov(expected.double().T))
    assert (found.predicted.numpy() == split.labels).mean() > 0.9
    assert np.array_equal(found.labels, split.labels)
    assert (found.count, found.split, found.resolution, found.remark) == (len(split), "train", 8, "")
    assert told[-1] == (len(split), len(split))
    assert told == sorted(told)


def test_the_cache_is_used(speckled_data: PreparedData, colour_eye: Any, tmp_path: Path) -> None:
    first = reference(speckled_data, "val", 8, colour_eye, need_features=True, cache=tmp_path)
    colour_eye.seen = 0
    again = reference(speckled_data, "val", 8, colour_eye, need_features=True, cache=tmp_path)
    lean = reference(speckled_data, "val", 8, colour_eye, cache=tmp_path)
    assert colour_eye.seen == 0
    assert lean.features is None
    assert first.hash == again.hash == lean.hash
    assert first.features is not None
    assert again.features is not None
    assert torch.equal(first.features, again.features)
    for name in ("total", "outer"):
        assert torch.equal(getattr(first.statistics, name), getattr(lean.statistics, name))
    assert first.predicted is not None
    assert lean.predicted is not None
    assert torch.equal(first.predicted, lean.predicted)


def test_features_are_added_when_first_wanted(speckled_data: PreparedData, colour_eye: Any, tmp_path: Path) -> None:
    assert reference(speckled_data, "val", 8, colour_eye, cache=tmp_path).features is None
    assert reference(speckled_data, "val", 8, colour_eye, need_features=True, cache=tmp_path).features is not None
    colour_eye.seen = 0
    reference(speckled_data, "val", 8, colour_eye, need_features=True, cache=tmp_path)
    assert colour_eye.seen == 0


@pytest.mark.parametrize("damage", ["cut", "noise", "empty", "npy", "pickle", "other key", "shapes", "folder"])
def test_a_damaged_or_foreign_file_is_made_anew(
    damage: str, speckled_data: PreparedData, colour_eye: Any, tmp_path: Path
) -> None:
    first = reference(speckled_data, "val", 8, colour_eye, need_features=True, cache=tmp_path)
    path = _kept(tmp_path)
    content = path.read_bytes()
    with np.load(path) as file:
        arrays = dict(file)
    if damage == "cut":
        path.write_bytes(content[:-100])
    elif damage == "noise":
        path.write_bytes(content[:700] + bytes(byte ^ 85 for byte in content[700:900]) + content[900:])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "npy":
        with path.open("wb") as stream:
            np.save(stream, np.zeros(3))
    elif damage == "pickle":
        with path.open("wb") as stream:
            np.savez(stream, allow_pickle=True, **arrays | {"features": np.array([print], object)})
    elif damage == "other key":
        with path.open("wb") as stream:
            np.savez(stream, **arrays | {"key": np.array("0" * 64)})
    elif damage == "shapes":
        with path.open("wb") as stream:
            np.savez(stream, **arrays | {"features": arrays["features"][1:]})
    else:
        path.unlink()
        path.mkdir()
    colour_eye.seen = 0
    again = reference(speckled_data, "val", 8, colour_eye, need_features=True, cache=tmp_path)
    assert colour_eye.seen >= again.count
    assert first.features is not None
    assert again.features is not None
    assert torch.equal(first.features, again.features)
    colour_eye.seen = 0
    if damage != "folder":
        assert again.remark == ""
        reference(speckled_data, "val", 8, colour_eye, need_features=True, cache=tmp_path)
        assert colour_eye.seen == 0


def test_the_hash_follows_what_matters(speckled_data: PreparedData, colour_eye: Any) -> None:
    kinds = {(split, side) for split in ("train", "val") for side in (4, 8)}
    hashes = {reference_hash(speckled_data, *kind, colour_eye) for kind in kinds}
    assert len(hashes) == 4
    colour_eye.content_hash = "f" * 64
    assert reference_hash(speckled_data, "train", 8, colour_eye) not in hashes


def test_works_without_a_cache_that_can_be_written(
    speckled_data: PreparedData, colour_eye: Any, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    found = reference(speckled_data, "val", 8, colour_eye, cache=tmp_path / "file")
    assert found.count == len(speckled_data.split("val"))
    assert "cannot keep the features" in found.remark


def test_wrong_split_and_resolution(speckled_data: PreparedData, colour_eye: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no split 'test'"):
        reference(speckled_data, "test", 8, colour_eye, cache=tmp_path)
    with pytest.raises(UserError, match="no images of resolution 16"):
        reference(speckled_data, "val", 16, colour_eye, cache=tmp_path)
