from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import cascaded_diffusion.training.checkpoint as module
from cascaded_diffusion.cascade.stage import StageConfig
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.training.checkpoint import (
    averaged_weights,
    checkpoint_folders,
    find_checkpoint,
    load_optimizer,
    prune,
    read_checkpoint,
    write_checkpoint,
)
from cascaded_diffusion.training.run import open_run, take_over

Configure = Callable[..., StageConfig]


def _write(run: Path, images: int, value: float = 1.0) -> Path:
    weights = {"a": torch.full((2, 3), value)}
    optimizer = {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    averages = {half_life: {"a": torch.full((2, 3), value + half_life)} for half_life in (20, 100)}
    extra = {"stage": "base8", "ema_half_lives": [20, 100]}
    return write_checkpoint(run, images, weights=weights, averages=averages, optimizer=optimizer, extra=extra)


def test_a_checkpoint_is_a_folder_named_by_the_images_seen(tmp_path: Path) -> None:
    folder = _write(tmp_path, 1234)
    assert folder.parent == tmp_path / "checkpoints"
    assert int(folder.name) == 1234
    assert folder.name.isdigit()
    names = {"model.safetensors", "ema-20.safetensors", "ema-100.safetensors", "optimizer.pt"}
    assert {path.name for path in folder.iterdir()} == names | {"manifest.json"}
    manifest = read_checkpoint(folder)
    assert set(manifest["files"]) == names
    assert manifest["images"] == 1234
    assert manifest["stage"] == "base8"
    assert load_optimizer(folder, [torch.zeros(2, 3)])["param_groups"][0]["lr"] == 0.1


def test_only_complete_digit_named_folders_are_read(tmp_path: Path) -> None:
    _write(tmp_path, 200)
    _write(tmp_path, 1000)
    parent = tmp_path / "checkpoints"
    for stranger in (".writing-000000002000", ".deleting-000000000100", "latest", "²", "12a"):
        (parent / stranger).mkdir()
    (parent / "3000").write_text("a file")
    assert [int(path.name) for path in checkpoint_folders(tmp_path)] == [200, 1000]
    assert find_checkpoint(tmp_path).name.endswith("1000")


def _leave_behind(run: Path) -> None:
    for leftover in (".writing-000000000100", ".deleting-000000000050"):
        shutil.copytree(_write(run.with_name("other"), 100), run / "checkpoints" / leftover)


def test_leftovers_are_cleaned_by_the_next_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "run"
    _leave_behind(run)
    assert checkpoint_folders(run) == []
    _write(run, 100)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["000000000100"]


def test_leftovers_are_cleaned_where_no_checkpoint_follows(tmp_path: Path, base_config: Configure) -> None:
    """A process that died in the last pruning of all has left nothing to be written."""
    run = tmp_path / "run"
    open_run(run, base_config(8), allow_changes=False)
    newest = _write(run, 100)
    _leave_behind(run)
    opened = open_run(run, base_config(8), allow_changes=False)
    assert opened.whole is not None
    assert opened.whole.folder == newest
    take_over(run, base_config(8), opened)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["000000000100"]


@pytest.mark.parametrize("name", ["model.safetensors", "ema-20.safetensors", "optimizer.pt", "manifest.json"])
def test_a_death_while_writing_leaves_no_checkpoint(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process 'dies' when it comes to a file; what is there afterwards is what was there before."""
    _write(tmp_path, 100)

    def die(*args: Any, **kwargs: Any) -> None:
        if any(Path(getattr(a, "name", ".")).name == name for a in args):
            raise KeyboardInterrupt
        original(*args, **kwargs)

    place = {"optimizer.pt": (torch, "save"), "manifest.json": (module, "write_json")}.get(
        name, (module, "write_tensors")
    )
    original = getattr(*place)
    monkeypatch.setattr(*place, die)
    with pytest.raises(KeyboardInterrupt):
        _write(tmp_path, 200)
    monkeypatch.undo()
    assert [int(path.name) for path in checkpoint_folders(tmp_path)] == [100]
    read_checkpoint(find_checkpoint(tmp_path))


def test_writing_the_same_checkpoint_again_replaces_it_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the process dies half-way through deleting the old one."""
    _write(tmp_path, 100, 1.0)
    assert float(averaged_weights(_write(tmp_path, 100, 2.0), "raw")[0]["a"][0, 0]) == 2

    def die(path: Path) -> None:
        (path / "model.safetensors").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", die)
    with pytest.raises(KeyboardInterrupt):
        _write(tmp_path, 100, 3.0)
    monkeypatch.undo()
    for folder in checkpoint_folders(tmp_path):
        read_checkpoint(folder)


def test_prune_keeps_the_newest(tmp_path: Path) -> None:
    for images in (100, 200, 300, 1000):
        _write(tmp_path, images)
    prune(tmp_path, None)
    assert len(checkpoint_folders(tmp_path)) == 4
    prune(tmp_path, 2)
    assert [int(path.name) for path in checkpoint_folders(tmp_path)] == [300, 1000]
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["000000000300", "000000001000"]
    prune(tmp_path, 5)
    assert len(checkpoint_folders(tmp_path)) == 2


def test_a_death_while_pruning_leaves_only_whole_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for images in (100, 200):
        _write(tmp_path, images)

    def die(path: Path) -> None:
        (path / "manifest.json").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", die)
    with pytest.raises(KeyboardInterrupt):
        prune(tmp_path, 1)
    monkeypatch.undo()
    assert [int(path.name) for path in checkpoint_folders(tmp_path)] == [200]


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def _flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["model.safetensors", "ema-100.safetensors", "optimizer.pt"])
@pytest.mark.parametrize("damage, word", [(Path.unlink, "missing"), (_truncate, "damaged"), (_flip_bit, "damaged")])
def test_damage_names_the_file(name: str, damage: Any, word: str, tmp_path: Path) -> None:
    folder = _write(tmp_path, 100)
    damage(folder / name)
    with pytest.raises(UserError) as caught:
        read_checkpoint(folder)
    assert str(folder / name) in str(caught.value)
    assert word in str(caught.value)
    with pytest.raises(UserError):
        averaged_weights(folder, None)


@pytest.mark.parametrize(
    "changes, word",
    [
        ({"files": None}, "not a checkpoint's manifest"),
        ({"images": "many"}, "not a checkpoint's manifest"),
        ({"format_version": 2}, "format_version 2 cannot be read; allowed: 1"),
        ({"files": {}}, "model.safetensors is not in its list"),
        ({"files": {"model.safetensors": "0" * 64, "optimizer.pt": "0" * 64}}, "damaged"),
        ({"files": {"../model.safetensors": "", "model.safetensors": "", "optimizer.pt": ""}}, "missing"),
    ],
)
def test_a_wrong_manifest_is_refused(changes: dict[str, Any], word: str, tmp_path: Path) -> None:
    folder = _write(tmp_path, 100)
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError) as caught:
        read_checkpoint(folder)
    assert word in str(caught.value)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("content", ["", "[]", "{", "3"])
def test_a_manifest_that_is_none_is_refused(content: str, tmp_path: Path) -> None:
    folder = _write(tmp_path, 100)
    (folder / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"manifest\.json"):
        read_checkpoint(folder)


def test_choosing_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no checkpoint; train the stage first"):
        find_checkpoint(tmp_path)
    for images in (100, 2000):
        _write(tmp_path, images)
    assert int(find_checkpoint(tmp_path, 100).name) == 100
    with pytest.raises(UserError, match=r"no checkpoint at 150 images; allowed: 100, 2000"):
        find_checkpoint(tmp_path, 150)


def test_choosing_an_average(tmp_path: Path) -> None:
    folder = _write(tmp_path, 100)
    for ema, value, choice in ((None, 21, "20"), ("100", 101, "100"), ("raw", 1, "raw"), ("20", 21, "20")):
        weights, chosen = averaged_weights(folder, ema)
        assert chosen == choice
        assert float(weights["a"][0, 0]) == value
    for wrong in ("50", "20.0", "²", "none", ""):
        with pytest.raises(UserError, match=rf"--ema: '{wrong}' is not kept by this run; allowed: 20, 100, raw"):
            averaged_weights(folder, wrong)


PARAMETERS = [torch.zeros(2, 3), torch.zeros(4)]


def _optimizer_file(folder: Path, **changes: Any) -> Path:
    moments = {"step": torch.tensor(1.0), "exp_avg": torch.zeros(2, 3), "exp_avg_sq": torch.zeros(2, 3)}
    state = {"state": {0: moments}, "param_groups": [{"lr": 0.1, "params": [0, 1]}]} | changes
    torch.save(state, folder / "optimizer.pt")
    return folder


def test_an_optimizers_state_is_read(tmp_path: Path) -> None:
    assert set(load_optimizer(_optimizer_file(tmp_path), PARAMETERS)["state"]) == {0}
    assert load_optimizer(_optimizer_file(tmp_path, state={}), PARAMETERS)["state"] == {}


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"state": {0: {"exp_avg": torch.zeros(3, 2)}}}, "not those of this network's parameters"),
        ({"state": {2: {"exp_avg": torch.zeros(2, 3)}}}, "not those of this network's parameters"),
        ({"state": {"a": {}}}, "not those of this network's parameters"),
        ({"state": {0: [1]}}, "not those of this network's parameters"),
        ({"state": {0: {"exp_avg": "text"}}}, "not those of this network's parameters"),
        ({"state": None}, "no state and param_groups in it"),
        ({"state": {0: {"exp_avg": torch.zeros(1).expand(2**40)}}}, "a number of 41 bits"),
        ({"state": {0: {"exp_avg": torch.zeros(2**19)}}}, r"optimizer\.pt: \d+ bytes; at most \d+ are read"),
        ({"more": torch.Size([1])}, "torch Size"),
    ],
)
def test_a_state_that_is_not_this_networks_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=rf"optimizer\.pt: .*{words}|{words}"):
        load_optimizer(_optimizer_file(tmp_path, **changes), PARAMETERS)


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "..", ".", "", "a/b", "\x1b", "ü"])
def test_file_names_that_no_checkpoint_has_are_refused(tmp_path: Path, name: str) -> None:
    folder = _write(tmp_path, 100)
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"][name] = "0" * 64
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="missing from the checkpoint"):
        read_checkpoint(folder)


@pytest.mark.parametrize("half_lives", [None, 3, ["20"], [True], {"20": 1}, [[]]])
def test_half_lives_that_are_none_are_refused(tmp_path: Path, half_lives: Any) -> None:
    folder = _write(tmp_path, 100)
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"ema_half_lives": half_lives}))
    with pytest.raises(UserError, match=r"manifest\.json: ema_half_lives is"):
        averaged_weights(folder, None)
