"""Finished batches of a sampling that was interrupted."""

from __future__ import annotations

import contextlib
import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cascaded_diffusion.cascade import walk
from cascaded_diffusion.cascade.chain import Cascade
from cascaded_diffusion.cascade.sample_store import batch_store, sampling_request, store_folder
from cascaded_diffusion.errors import UserError

CPU = torch.device("cpu")
REQUEST = {"stages": {"base8": {}, "sr16": {}}, "seed": 0}


def _batch(value: int, count: int = 2) -> dict[str, np.ndarray]:
    return {name: np.full((count, r, r, 3), value, np.uint8) for name, r in (("base8", 8), ("sr16", 16))}


def _interrupted(out: Path, *, batches: int = 2, request: dict[str, Any] = REQUEST) -> None:
    with contextlib.suppress(KeyboardInterrupt), batch_store(out, request) as store:
        for i in range(batches):
            store.save(2 * i, 2 * i + 2, _batch(i))
        raise KeyboardInterrupt


def test_finished_batches_are_there_again(tmp_path: Path) -> None:
    out = tmp_path / "samples.npz"
    _interrupted(out)
    with batch_store(out, REQUEST) as store:
        assert store.resumed
        assert store.images == 4
        found = store.load(2, 4)
        assert found is not None
        assert all(np.array_equal(found[name], images) for name, images in _batch(1).items())
        assert store.load(4, 6) is None
        both = store.load(1, 4)  # kept in batches of another size
        assert both is not None
        assert both["sr16"][:, 0, 0, 0].tolist() == [0, 1, 1]
        assert store.load(2, 5) is None
    assert list(tmp_path.iterdir()) == []


def test_a_stage_is_read_batch_by_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with batch_store(tmp_path / "samples.npz", REQUEST) as store:
        for i in range(3):
            store.save(2 * i, 2 * i + 2, {name: part[..., :1] for name, part in _batch(i).items()})
        loaded: list[int] = []
        load = store.read
        monkeypatch.setattr(store, "read", lambda start, stop: (loaded.append(start), load(start, stop))[1])
        kept = store.stage("sr16", rgb=True)
        assert (kept.shape, len(kept)) == ((6, 16, 16, 3), 6)
        seen = [(int(image[0, 0, 0]), len(loaded)) for image in kept]
        assert seen == [(0, 2), (0, 2), (1, 3), (1, 3), (2, 4), (2, 4)]
        assert kept.rows(np.array([1, 4, 5]))[:, 0, 0, 2].tolist() == [0, 2, 2]
        (store_folder(tmp_path / "samples.npz") / "000000002-000000004.npz").write_bytes(b"")
        with pytest.raises(RuntimeError, match="images 2 to 3 can no longer be read"):
            list(kept)


def test_batches_of_several_sizes_are_read_as_one(tmp_path: Path) -> None:
    with batch_store(tmp_path / "samples.npz", REQUEST) as store:
        for start, stop in ((0, 4), (2, 6), (0, 3), (6, 7)):
            store.save(start, stop, {"base8": np.arange(start, stop, dtype=np.uint8)[:, None, None, None]})
        store._stages = {"base8"}
        assert store.images == 7
        kept = store.stage("base8")
        assert [int(image.item()) for image in kept] == list(range(7))
        assert kept.rows(np.array([0, 3, 5, 6])).ravel().tolist() == [0, 3, 5, 6]
        store.save(9, 10, {"base8": np.zeros((1, 1, 1, 1), np.uint8)})
        with pytest.raises(RuntimeError, match="image 7 is not among those that are kept"):
            list(store.stage("base8"))


def test_nothing_is_left_of_a_sampling_that_had_no_batch(tmp_path: Path) -> None:
    _interrupted(tmp_path / "samples.npz", batches=0)
    assert list(tmp_path.iterdir()) == []


def test_batches_of_another_request_are_neither_used_nor_dropped(tmp_path: Path) -> None:
    out = tmp_path / "samples.npz"
    _interrupted(out)
    words = r"other settings \(seed, steps\); .* remove the folder .*\.samples\.npz\.sampling"
    with pytest.raises(UserError, match=words), batch_store(out, {**REQUEST, "seed": 1, "steps": 2}):
        pass
    with batch_store(out, REQUEST) as store:
        assert store.images == 4


def test_a_request_without_batches_is_nobodys(tmp_path: Path) -> None:
    """A process was killed before it had finished any."""
    folder = store_folder(tmp_path / "samples.npz")
    folder.mkdir()
    (folder / "request.json").write_text(json.dumps(REQUEST))
    (folder / ".000000000-000000002.npz.partial").write_bytes(b"half")
    with batch_store(tmp_path / "samples.npz", {**REQUEST, "seed": 1}) as store:
        assert not store.resumed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_batches_of_an_unknown_request_are_not_used(tmp_path: Path, content: str) -> None:
    out = tmp_path / "samples.npz"
    _interrupted(out)
    (store_folder(out) / "request.json").write_text(content)
    with pytest.raises(UserError, match="an interrupted sampling to it had other settings"), batch_store(out, REQUEST):
        pass


@pytest.mark.parametrize("damage", ["cut", "emptied", "another stage", "too few", "not bytes"])
def test_a_damaged_batch_is_made_again(tmp_path: Path, damage: str) -> None:
    out = tmp_path / "samples.npz"
    _interrupted(out)
    path = store_folder(out) / "000000000-000000002.npz"
    content = path.read_bytes()
    batch = _batch(0)
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "emptied":
        path.write_bytes(b"")
    elif damage == "another stage":
        np.savez(path, base8=batch["base8"], sr32=batch["sr16"])
    elif damage == "too few":
        np.savez(path, base8=batch["base8"], sr16=batch["sr16"][:1])
    else:
        np.savez(path, base8=batch["base8"], sr16=batch["sr16"].astype(float))
    with batch_store(out, REQUEST) as store:
        assert store.load(0, 2) is None
        assert store.load(2, 4) is not None


def test_the_current_folder_is_a_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert store_folder(Path(".")) == tmp_path / ".here.sampling"


def test_two_processes_cannot_sample_to_one_place(tmp_path: Path) -> None:
    out = tmp_path / "samples.npz"
    with batch_store(out, REQUEST) as store:
        store.save(0, 2, _batch(0))
        with pytest.raises(UserError, match="another process is sampling to it"), batch_store(out, REQUEST):
            pass
        assert store.images == 2


def test_a_place_without_locks_is_sampled_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("cascaded_diffusion.files.fcntl.flock", refuse)
    out = tmp_path / "samples.npz"
    _interrupted(out)
    with batch_store(out, REQUEST) as store:
        assert store.resumed
    assert list(tmp_path.iterdir()) == []


def test_an_older_numpy_keeps_nothing_but_the_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before 2.2, savez took every keyword for an array."""
    save = np.savez

    def older(file: Any, **arrays: Any) -> None:
        assert set(arrays) == {"base8", "sr16"}
        save(file, **arrays)

    monkeypatch.setattr(np, "savez", older)
    with batch_store(tmp_path / "samples.npz", REQUEST) as store:
        store.save(0, 2, _batch(0))
        assert store.load(0, 2) is not None


def test_strangers_files_are_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "samples.npz"
    store_folder(out).mkdir()
    (store_folder(out) / "notes.txt").touch()
    with pytest.raises(UserError, match=r"notes\.txt: not left by an interrupted sampling"), batch_store(out, REQUEST):
        pass
    assert (store_folder(out) / "notes.txt").exists()


def _request(cascade: Cascade, low_res: np.ndarray | None = None, **changes: Any) -> dict[str, Any]:
    plan = cascade.plan(**changes.pop("settings", {}))
    labels = changes.pop("labels", np.arange(4))
    choices = {"seed": 0, "batch_size": 2, "precision": "fp32", **changes}
    return sampling_request(plan, labels, low_res, device=CPU, **choices)


@pytest.mark.parametrize("change", [
    {"seed": 1}, {"batch_size": 3}, {"precision": "bf16"}, {"labels": np.array([0, 1, 2, 2])},
    {"labels": np.arange(3)}, {"settings": {"steps": 3}}, {"settings": {"s": 0.2}},
    {"settings": {"until": "base8"}}, {"low_res": np.zeros((4, 8, 8, 3), np.uint8)},
])  # fmt: skip
def test_all_that_an_image_depends_on_is_in_the_request(tiny_cascade: Cascade, change: dict[str, Any]) -> None:
    request = _request(tiny_cascade)
    assert json.loads(json.dumps(request)) == request == _request(tiny_cascade)
    assert _request(tiny_cascade, **change) != request
    images = np.zeros((4, 8, 8, 3), np.uint8)
    assert _request(tiny_cascade, images) != _request(tiny_cascade, images + 1)


def test_one_weight_makes_another_request(tiny_cascade: Cascade) -> None:
    request = _request(tiny_cascade)
    with torch.no_grad():
        next(tiny_cascade.stages["sr16"].network.parameters()).view(-1)[0] += 1e-3
    assert _request(tiny_cascade) != request


def test_equal_weights_of_another_prediction_make_another_request(tiny_cascade: Cascade) -> None:
    request, stage = _request(tiny_cascade), tiny_cascade.stages["base8"]
    stage.config = stage.config.model_copy(
        update={"diffusion": stage.config.diffusion.model_copy(update={"prediction": "x0"})}
    )
    assert _request(tiny_cascade) != request


def test_an_interrupted_sampling_ends_with_the_same_images(
    tiny_cascade: Cascade, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted in every batch in turn: each is made once to its end, and the images are those of one go."""
    expected = tiny_cascade.sample(6, batch_size=2, return_stages=True)
    sample_batch: Callable[..., Any] = walk._sample_batch
    made: list[int] = []

    def interrupted(plan: Any, index: torch.Tensor, *rest: Any) -> Any:
        if int(index[0]) not in made:
            made.append(int(index[0]))
            raise KeyboardInterrupt
        made.append(int(index[0]))
        return sample_batch(plan, index, *rest)

    monkeypatch.setattr(walk, "_sample_batch", interrupted)
    request = _request(tiny_cascade)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt), batch_store(tmp_path / "x.npz", request) as store:
            tiny_cascade.sample(6, batch_size=2, keep=store)
    with batch_store(tmp_path / "x.npz", request) as store:
        found = tiny_cascade.sample(6, batch_size=2, return_stages=True, keep=store)
    assert made == [0, 0, 2, 2, 4, 4]
    assert all(np.array_equal(found[name], expected[name]) for name in ("base8", "sr16"))
