"""Hostile and damaged files of every kind, given to the commands that read them: status 2, one line, the file named."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cascaded_diffusion.evaluation.classifier import Classifier, ClassifierConfig, save_classifier

Refused = Callable[..., str]
Damage = Callable[[Path], object]

DEEP = "[" * 100_000
LAUGHS = "name: x\na0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
MANY_ROWS = {"descr": "|u1", "fortran_order": False, "shape": (2**40, 8, 8, 1)}


class _Trap:
    def __reduce__(self) -> object:
        return print, ("executed",)


def write(content: bytes | str) -> Damage:
    """Damage: the file has this content."""
    return lambda path: path.write_bytes(content.encode() if isinstance(content, str) else content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_link_out(path: Path) -> None:
    """The file, elsewhere."""
    elsewhere = path.parents[len(path.parents) - 4] / f"elsewhere-{path.name}"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def twice(path: Path) -> None:
    path.write_text(path.read_text().replace("{", '{"format_version": 1, "format_version": 1,', 1))


def not_a_number(path: Path) -> None:
    path.write_text(path.read_text().replace("{", '{"format_version": NaN,', 1))


def a_terabyte_of_weights(path: Path) -> None:
    header = {"stem.weight": {"dtype": "F32", "shape": [2**38], "data_offsets": [0, 2**40]}}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(64))


def a_terabyte_of_header(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 2**40) + b"{}")


def a_terabyte_of_pixels(path: Path) -> None:
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, MANY_ROWS)
        file.write(bytes(64))


def an_archive_of_a_terabyte(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive, archive.open("arr_0.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, MANY_ROWS)
        member.write(bytes(64))


def a_bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("arr_0.npy", "w") as member:
        form = {"descr": "|u1", "fortran_order": False, "shape": (2**19, 8, 8, 1)}
        np.lib.format.write_array_header_1_0(member, form)
        for _ in range(2**5):
            member.write(bytes(2**20))


def objects(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, np.array([_Trap()], dtype=object), allow_pickle=True)


def a_trap(path: Path) -> None:
    torch.save({"state": _Trap()}, path)


def a_wide_picture(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", 60_000, 60_000)
    path.write_bytes(content)


@pytest.fixture(autouse=True)
def _nothing_is_executed(capfd: pytest.CaptureFixture[str]) -> object:
    yield
    assert "executed" not in capfd.readouterr().out


@pytest.mark.parametrize(
    "damage, words",
    [
        (write(DEEP), "nested deeper than 32"),
        (write(LAUGHS), "its aliases make more than 20000 values"),
        (write("!!python/object/apply:print ['executed']"), "the tag"),
        (write("a: 1\n" * 100_000), "at most 131072 are read"),
        (write(b"name: \x00"), "not valid YAML"),
        (write('name: "\\ud800"'), "surrogates"),
        (write("name: 99999999999999999999999999"), "bits"),
        (a_pipe, "neither a file nor a packaged recipe"),
    ],
)
def test_recipe(refused: Refused, recipe: Path, tmp_path: Path, damage: Damage, words: str) -> None:
    path = Path(shutil.copy(recipe, tmp_path / "mine.yaml"))
    damage(path)
    line = refused("plan", path)
    assert "mine.yaml" in line
    assert words in line


@pytest.mark.parametrize(
    "name, damage, words",
    [
        ("manifest.json", write(DEEP), "nested deeper"),
        ("manifest.json", twice, "'format_version' stands twice"),
        ("manifest.json", not_a_number, "NaN is not a number"),
        ("manifest.json", a_pipe, "no manifest.json"),
        ("manifest.json", a_link_out, "a link that leads out"),
        ("train/images_8.npy", a_terabyte_of_pixels, "the manifest asks for"),
        ("train/images_8.npy", a_link_out, "a link that leads out"),
        ("train/images_8.npy", write(b"\x93NUMPY\x02\x00\xff\xff\xff\xff"), "a header of 4294967295 bytes"),
        ("train/labels.npy", a_pipe, "missing from the prepared data"),
        ("val/labels.npy", objects, "not a whole .npy file"),
    ],
)
def test_prepared_data(
    refused: Refused, recipe: Path, data: Path, tmp_path: Path, name: str, damage: Damage, words: str
) -> None:
    folder = Path(shutil.copytree(data, tmp_path / "data"))
    damage(folder / name)
    line = refused("train", recipe, "--stage", "base8", "--data", folder, "--out", tmp_path / "out", "--device", "cpu")
    assert str(folder) in line
    assert words in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name, damage, words",
    [
        ("cascade.json", write(DEEP), "cascade.json: not valid JSON (nested deeper"),
        ("cascade.json", twice, "cascade.json: not valid JSON (the key 'format_version' stands twice"),
        ("cascade.json", write("9" * 5000), "cascade.json: not valid JSON (a whole number of 5000 digits"),
        ("cascade.json", a_pipe, "not a cascade (no cascade.json)"),
        ("cascade.json", a_link_out, "cascade.json: a link that leads out"),
        ("sr16/config.json", a_pipe, "sr16/config.json: missing"),
        ("sr16/model.safetensors", a_link_out, "sr16/model.safetensors: a link that leads out"),
        ("sr16/model.safetensors", a_terabyte_of_weights, "model.safetensors: not the file that was assembled"),
    ],
)
def test_cascade(refused: Refused, broken: Path, tmp_path: Path, name: str, damage: Damage, words: str) -> None:
    damage(broken / name)
    assert words in refused("sample", broken, "--out", tmp_path / "out.npz")
    assert not (tmp_path / "out.npz").exists()


@pytest.mark.parametrize(
    "name, damage, words",
    [
        ("config.json", write(DEEP), "config.json: not valid JSON (nested deeper"),
        ("config.json", write('{"name": "base8\\u0000\\n\\u001b[31m"}'), "config.json: "),
        ("config.json", a_link_out, "config.json: a link that leads out"),
        ("model.safetensors", a_terabyte_of_header, "its header is to have 1099511627776 bytes"),
        ("model.safetensors", a_terabyte_of_weights, "its tensors take 1099511627776 bytes, 64 are there"),
        ("model.safetensors", cut, "model.safetensors: not a readable safetensors file"),
        ("model.safetensors", a_trap, "model.safetensors: not a readable safetensors file"),
        ("model.safetensors", a_link_out, "model.safetensors: a link that leads out"),
    ],
)
def test_stage(refused: Refused, broken: Path, tmp_path: Path, name: str, damage: Damage, words: str) -> None:
    (broken / "cascade.json").unlink()  # beside it, its hashes would be checked first
    damage(broken / "base8" / name)
    assert words in refused("assemble", tmp_path / "out", broken / "base8")
    assert not (tmp_path / "out").exists()


def test_a_stage_that_asks_for_terabytes(refused: Refused, broken: Path, tmp_path: Path) -> None:
    (broken / "cascade.json").unlink()
    config = json.loads((broken / "base8/config.json").read_text())
    config["network"] |= {"channels": 8192, "multipliers": [64]}
    (broken / "base8/config.json").write_text(json.dumps(config))
    assert "config.json: network.multipliers: [64] of 8192 channels makes a level of 524288 channels" in refused(
        "assemble", tmp_path / "out", broken / "base8"
    )


@pytest.mark.parametrize(
    "name, damage, words",
    [
        ("optimizer.pt", a_trap, "optimizer.pt: not an optimizer's state (it holds"),
        ("optimizer.pt", cut, "optimizer.pt: not an optimizer's state"),
        ("optimizer.pt", write(b""), "optimizer.pt: not an optimizer's state"),
        ("optimizer.pt", lambda path: os.truncate(path, 2**36), "optimizer.pt: 68719476736 bytes; at most"),
        ("model.safetensors", a_terabyte_of_weights, "model.safetensors: not a readable safetensors file"),
        ("ema-16.safetensors", a_terabyte_of_header, "ema-16.safetensors: not a readable safetensors file"),
    ],
)
def test_checkpoint_with_hashes_that_are_right(
    refused: Refused,
    recipe: Path,
    data: Path,
    runs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    damage: Damage,
    words: str,
) -> None:
    """What a stranger would send: hashes only find damage."""
    run = Path(shutil.copytree(runs / "base8", tmp_path / "base8"))
    folder = run / "checkpoints/000000000032"
    damage(folder / name)
    manifest = json.loads((folder / "manifest.json").read_text())
    large = (folder / name).stat().st_size > 2**30
    digest = "0" * 64 if large else hashlib.sha256((folder / name).read_bytes()).hexdigest()
    if large:  # its hash would take minutes
        monkeypatch.setattr("cascaded_diffusion.training.checkpoint.sha256_of", manifest["files"].get)
        monkeypatch.setattr(
            "cascaded_diffusion.training.checkpoint.sha256_of", lambda path: manifest["files"][path.name]
        )
    manifest["files"][name] = digest
    (folder / "manifest.json").write_text(json.dumps(manifest))
    line = refused("train", recipe, "--stage", "base8", "--data", data, "--out", run, "--device", "cpu")
    assert words in line


def test_run(refused: Refused, recipe: Path, data: Path, runs: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(runs / "base8", tmp_path / "base8"))
    options = ("--stage", "base8", "--data", data, "--out", run, "--device", "cpu")
    precious = tmp_path / "precious"
    precious.write_text("content")
    for name in (".lock", "config.json", "metrics.jsonl"):
        kept = (run / name).read_bytes()
        (run / name).unlink()
        (run / name).symlink_to(precious)
        assert f"{name}: a link" in refused("train", recipe, *options)
        assert precious.read_text() == "content"
        (run / name).unlink()
        (run / name).write_bytes(kept)


@pytest.mark.parametrize(
    "damage, words",
    [
        (an_archive_of_a_terabyte, "claims 70368744177664 bytes"),
        (a_bomb, "bytes that unpack to"),
        (objects, "object"),
        (cut, "not a whole .npz file"),
        (write(b"PK\x05\x06" + bytes(18)), "no array arr_0"),
        (write(b""), "not a whole .npz file"),
    ],
)
def test_samples(refused: Refused, cascade: Path, data: Path, tmp_path: Path, damage: Damage, words: str) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, np.zeros((4, 8, 8, 1), np.uint8))
    damage(path)
    for command in (
        ("prepare", path, tmp_path / "out", "--resolutions", "8", "--workers", "0"),
        ("sample", cascade, "--out", tmp_path / "out", "--from-images", path),
        ("evaluate", path, "--data", data, "--features", "fashion-mnist"),
    ):
        line = refused(*command)
        assert f"{path}: " in line
        assert words in line
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "damage, words",
    [
        (a_wide_picture, ""),
        (a_pipe, "pipe"),
        (write(b"\x89PNG\r\n\x1a\n"), ""),
        (write(b"GIF89a" + b"\xff" * 30), ""),
        (write(b"%!PS-Adobe-3.0 EPSF-3.0\n"), "in no image format"),
    ],
)
def test_picture(refused: Refused, cascade: Path, tmp_path: Path, damage: Damage, words: str) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)).save(folder / "a.png")
    damage(folder / "a.png")
    for command in (
        ("prepare", folder, tmp_path / "out", "--resolutions", "8", "--workers", "0"),
        ("sample", cascade, "--out", tmp_path / "out", "--from-images", folder),
    ):
        line = refused(*command)
        assert f"{folder}/a.png: " in line
        assert words in line
        assert not (tmp_path / "out").exists()


def test_picture_whose_header_is_whole(cdm: Callable[..., Any], tmp_path: Path) -> None:
    """Only when its pixels are wanted does it show; the work has begun, and has told so."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)).save(folder / "a.png")
    halve(folder / "a.png")
    result = cdm("prepare", folder, tmp_path / "out", "--resolutions", "8", "--workers", "0")
    assert result.status == 2
    assert result.err.splitlines()[-1].startswith(f"cdm: {folder}/a.png: unreadable image (")
    assert not (tmp_path / "out").exists()


def test_idx_files(refused: Refused, tmp_path: Path) -> None:
    folder = tmp_path / "idx"
    folder.mkdir()
    for part in ("train", "t10k"):
        pixels = struct.pack(">IIII", 0x803, 2, 28, 28) + bytes(2 * 28 * 28)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(pixels)
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, 2) + bytes(2))
    command = ("prepare", folder, tmp_path / "out", "--resolutions", "8", "--workers", "0")
    path = folder / "t10k-images-idx3-ubyte"
    path.write_bytes(struct.pack(">IIII", 0x803, 2**32 - 1, 28, 28))
    assert f"{path}: its header claims 4294967295 entries" in refused(*command)
    path.unlink()
    path = path.with_suffix(".gz")
    path.write_bytes(gzip.compress(struct.pack(">IIII", 0x803, 50_000, 28, 28) + bytes(50_000 * 784), 1))
    assert f"{path}: " in (line := refused(*command))
    assert "bytes that unpack to 39200000" in line


@pytest.mark.parametrize(
    "name, damage, words",
    [
        ("metrics.jsonl", write("[" * 5000 + "\n"), "metrics.jsonl: line 1: not valid JSON"),
        ("metrics.jsonl", write('{"images": 1e400}\n'), "metrics.jsonl: line 1: not valid JSON"),
        ("metrics.jsonl", write("x" * 2**21), "metrics.jsonl: line 1 is longer"),
        ("metrics.jsonl", a_link_out, "metrics.jsonl: a link that leads out"),
        ("config.json", twice, "config.json: not valid JSON"),
        ("previews/000000000032.png", write(b"\x89PNG\r\n\x1a\n"), "000000000032.png: not a readable PNG"),
        ("scores.json", write('{"format_version": 1, "scores": {"fd": {"value": "x"}}}'), "scores.json: not a score"),
        ("cascade.json", write('{"stages": [{"name": "../x", "folder": "../x"}]}'), "cascade.json: stages.0"),
        ("search.json", write('{"request": []}'), "search.json: "),
    ],
)
def test_report(refused: Refused, runs: Path, tmp_path: Path, name: str, damage: Damage, words: str) -> None:
    folder = Path(shutil.copytree(runs / "base8", tmp_path / "base8"))
    (folder / "previews").mkdir(exist_ok=True)
    for path in (folder / "previews").iterdir():
        path.unlink()
    if not (folder / name).exists():
        (folder / name).write_text("{}")
    damage(folder / name)
    assert words in refused("report", folder, "--out", tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_a_report_passes_over_json_that_is_none(cdm: Any, runs: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(runs / "base8", tmp_path / "base8"))
    write(DEEP)(folder / "scores.json")
    result = cdm("report", folder, "--out", tmp_path / "page.html")
    assert result.status == 0
    assert "scores.json: not valid JSON" in result.err


@pytest.mark.parametrize(
    "name, damage, words",
    [
        ("eye/config.json", write(DEEP), "eye/config.json: not valid JSON"),
        ("eye/config.json", write('{"classes": 1e12}'), "eye/config.json: "),
        ("eye/model.safetensors", a_terabyte_of_weights, "eye/model.safetensors: not a readable safetensors file"),
        ("eye/model.safetensors", a_link_out, "eye/model.safetensors: a link that leads out"),
        ("eye.pt2", a_trap, "eye.pt2: not a file of torch.export.save"),
        ("eye.pt2", a_bomb, "eye.pt2: arr_0.npy: "),
        ("eye.pth", a_trap, "eye.pth: not a file of weights (it holds"),
        ("eye.pth", write(b"\x80\x02" + b"(" * 1000), "eye.pth: not a file of weights"),
    ],
)
def test_features(refused: Refused, data: Path, tmp_path: Path, name: str, damage: Damage, words: str) -> None:
    torch.manual_seed(0)
    config = ClassifierConfig(architecture="small", resolution=8, channels=1, classes=3)
    save_classifier(Classifier(config), tmp_path / "eye")
    np.savez(tmp_path / "x.npz", np.zeros((4, 8, 8, 1), np.uint8))
    damage(tmp_path / name)
    given = {".pt2": f"{tmp_path}/eye.pt2", ".pth": f"inception:{tmp_path}/eye.pth?unchecked=1"}
    features = given.get(Path(name).suffix, str(tmp_path / "eye"))
    assert words in refused("evaluate", tmp_path / "x.npz", "--data", data, "--features", features)
