"""What a user can get wrong: one line on stderr that names it and what is allowed, and exit status 2."""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Refused = Callable[..., str]


@pytest.fixture(scope="session")
def places(
    tmp_path_factory: pytest.TempPathFactory, recipe: Path, data: Path, runs: Path, cascade: Path
) -> dict[str, Path]:
    """What the commands below name in braces."""
    root = tmp_path_factory.mktemp("wrong")
    (root / "empty").mkdir()
    (root / "filled").mkdir()
    (root / "filled/something.txt").write_text("here before")
    (root / "text.yaml").write_text("just text")
    (root / "bad.yaml").write_text("name: [")
    (root / "odd.yaml").write_text(recipe.read_text().replace("flip:", "flipp:"))
    (root / "tall.yaml").write_text(recipe.read_text().replace("resolution: 16", "resolution: 24"))
    (root / "date.yaml").write_text("name: 2000-02-31")
    (root / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    (root / "bad").mkdir()
    for folder, side in (("tiny", 7), ("fit", 8), ("wide", 12)):
        (root / folder).mkdir()
        Image.fromarray(np.full((side, side + 2), 9, np.uint8)).save(root / folder / "a.png")
    (root / "bad/a.png").write_text("no image")
    (root / "part.npz").write_bytes(b"PK\x03\x04 cut short")
    np.savez(root / "colour.npz", np.zeros((2, 8, 8, 3), np.uint8))
    np.savez(root / "float.npz", np.zeros((2, 8, 8, 1), np.float32))
    np.savez(root / "classes.npz", np.zeros((2, 8, 8, 1), np.uint8), np.array([0, 7]))
    return {"root": root, "recipe": recipe, "data": data, "runs": runs, "cascade": cascade}


def check(refused: Refused, places: dict[str, Path], out: Path, command: str, words: str) -> None:
    arguments = [word.format(**places, out=out) for word in command.split()]
    line = refused(*arguments)
    for word in words.split(" & "):
        assert word in line, line
    assert not out.exists()


PARSER = [
    ("nope", "No such command 'nope' & cdm --help"),
    ("sampel", "Did you mean 'sample'?"),
    ("--nope", "No such option: --nope"),
    ("sample {cascade} --outt x", "No such option: --outt & --out & cdm sample --help"),
    ("sample {cascade}", "Missing option '--out'"),
    ("sample --out x", "Missing argument 'CASCADE'"),
    ("sample {cascade} x --out x", "unexpected extra argument"),
    ("sample {cascade} --out", "'--out' requires an argument"),
    ("train {recipe} --data {data} --out {out}", "Missing option '--stage'"),
    ("assemble {out}", "Missing argument 'PART"),
    ("recipe nope", "recipe: 'nope' is not packaged & photos-64"),
    ("recipe demo --list", "--list & demo"),
    ("plan photo-64", "'photo-64' & neither a file nor a packaged recipe & did you mean photos-64?"),
    ("plan demo --gpu h900", "--gpu: 'h900' & h100"),
    ("plan demo --gpus two", "'--gpus' & 'two' & from 1"),
    ("plan demo --batch-size 0", "'--batch-size' & '0' & from 1"),
]

RECIPES = [
    ("plan {root}", "neither a file nor a packaged recipe"),
    ("plan {root}/text.yaml", "text.yaml holds str, not a mapping"),
    ("plan {root}/bad.yaml", "bad.yaml is not valid YAML"),
    ("plan {root}/date.yaml", "date.yaml is not valid YAML"),
    ("plan {root}/bytes.yaml", "bytes.yaml & cannot be read"),
    ("plan {root}/odd.yaml", "odd.yaml: flipp: unknown key; did you mean flip?"),
    ("plan {root}/tall.yaml", "tall.yaml: & 'sr16' does not fit resolution 24"),
]

TRAIN = [
    ("--stage base9", "stage: 'base9' & allowed: base8, sr16, sr32"),
    ("--stage base8 --set trainin.batch_size=4", "'trainin.batch_size' & did you mean training?"),
    ("--stage base8 --set training.batchsize=4", "training.batchsize: unknown key; did you mean batch_size?"),
    ("--stage base8 --set training.batch_size=many", "training.batch_size & given: 'many'"),
    ("--stage base8 --set training.batch_size=0", "training.batch_size & greater than or equal to 1 & given: 0"),
    ("--stage base8 --set training.precision=fp8", "training.precision & 'fp32' & given: 'fp8'"),
    ("--stage base8 --set training.batch_size", "'training.batch_size' is not of the form key.path=value"),
    ("--stage base8 --set training.batch_size=[", "not valid YAML"),
    ("--stage base8 --set training.batch_size.x=1", "batch_size is a value, not a group"),
    ("--stage base8 --set stages.base9.training.images=1", "no stage 'base9' & base8, sr16, sr32"),
    ("--stage base8 --set network.attention=[3]", "network.attention: 3"),
    ("--stage base8 --set network.multipliers=[1,1,1,1]", "8 cannot be halved into 4 levels"),
    ("--stage sr16 --set conditioning.s_max=1.5", "conditioning.s_max & given: 1.5"),
    ("--stage sr16 --set sampling.s=0.9", "sampling.s: 0.9 is above conditioning.s_max 0.8"),
    ("--stage sr16 --set conditioning.augmentation=blurr", "conditioning.augmentation & given: 'blurr'"),
    ("--stage base8 --set sampling.sampler=ddpm", "sampling.sampler & given: 'ddpm'"),
    ("--stage base8 --set channels=3", "channels: the recipe says 3, the data has 1"),
    ("--stage base8 --set classes=4", "classes: the recipe says 4, the data has 3"),
    ("--stage base8 --max-images 0", "'--max-images' & '0' & from 1"),
    ("--stage base8 --max-images 1e3", "'--max-images' & '1e3' & from 1"),
    ("--stage base8 --max-seconds soon", "'--max-seconds' & 'soon' & from 0"),
    ("--stage base8 --max-seconds -1", "'--max-seconds' & '-1' & from 0"),
    ("--stage base8 --device tpu9", "--device: 'tpu9' & cpu always is"),
    ("--stage base8 --device cuda:99", "--device: 'cuda:99' & cpu always is"),
    ("--stage base8 --data {root}/none", "none: no such folder & cdm prepare"),
    ("--stage base8 --data {root}/empty", "empty: not prepared data (no manifest.json)"),
    ("--stage base8 --out {root}/text.yaml", "text.yaml is a file"),
    ("--stage base8 --out {root}/text.yaml/run", "--out: & run cannot be made, for & text.yaml is not a folder"),
    ("--stage base8 --out {root}/filled", "filled: not a run folder and not empty (it holds something.txt)"),
    ("--stage base8 --out {runs}/sr16", "the settings differ & --allow-changes"),
    ("--stage base8 --set training.seed=1 --out {runs}/base8", "training.seed: 0 -> 1 & --allow-changes"),
]

ASSEMBLE = [
    ("{runs}/none", "none: no such folder"),
    ("{root}/empty", "empty: neither a run folder nor a stage folder (no config.json)"),
    ("{cascade}", "a whole cascade; name its stage folders"),
    ("{runs}/base8 {runs}/base8", "two parts are called base8"),
    ("{runs}/sr16", "the first stage of a cascade is a base stage, sr16 is not one"),
    ("{runs}/base8 {runs}/sr32", "sr32 enlarges images of 16 pixels, base8 makes 8"),
    ("{runs}/base8 --checkpoint 17", "--checkpoint: no checkpoint at 17 images; allowed: 16, 32"),
    ("{runs}/base8 --checkpoint newest", "'--checkpoint' & 'newest'"),
    ("{runs}/base8 --ema 5", "--ema: '5' & allowed: 16, 4, raw"),
    ("{runs}/base8 --ema best", "--ema: 'best' & allowed: 16, 4, raw"),
    ("{cascade}/base8 --checkpoint 16", "--checkpoint: none of & is a run folder"),
    ("{cascade}/base8 --ema raw", "--ema: none of & is a run folder"),
]

SAMPLE = [
    ("--classes Boat", "classes: 'Boat' is not a class & 0 to 2 & Bag, Hat, Shoe"),
    ("--classes Shoes", "did you mean 'Shoe'?"),
    ("--classes 3", "classes: '3' is not a class; allowed: 0 to 2"),
    ("--classes -1", "classes: '-1' is not a class"),
    ("--classes 0,,1", "--classes: '0,,1' has an empty entry"),
    ("--num 0", "'--num' & '0' & from 1"),
    ("--num many", "'--num' & 'many' & from 1"),
    ("--num 2.5", "'--num' & '2.5' & from 1"),
    ("--per-class 0", "'--per-class' & '0' & from 1"),
    ("--num 3 --per-class 2", "--num 3 and --per-class 2: give one of them"),
    ("--seed -1", "'--seed' & '-1' & from 0"),
    ("--seed x", "'--seed' & 'x' & from 0"),
    ("--batch-size 0", "--batch-size: '0' & from 1, or auto"),
    ("--batch-size big", "--batch-size: 'big' & from 1, or auto"),
    ("--device tpu9", "--device: 'tpu9' & cpu always is"),
    ("--precision fp8", "--precision: 'fp8' & auto, fp32, bf16"),
    ("--compile yes", "--compile: 'yes' & off, auto, on"),
    ("--compile auto --offload", "--compile: auto & --offload & allowed: off"),
    ("--num 9223372036854775807", "num: 9223372036854775807 & from 1 to 1,000,000,000"),
    ("--batch-size 99999999999", "--batch-size: '99999999999' is not allowed"),
    ("--device privateuseone", "--device: 'privateuseone' is not available here"),
    ("--steps 0", "steps: '0' & from 1"),
    ("--steps -5", "steps: '-5'"),
    ("--steps many", "steps: 'many'"),
    ("--steps 2.5", "steps: '2.5'"),
    ("--steps base8=21", "steps: 21 & T=20 & allowed 1 to 20"),
    ("--steps sr16=ddim5", "steps: 'ddim5' needs a discrete stage"),
    ("--steps base9=5", "steps: no stage 'base9' in use; allowed: base8, sr16, sr32"),
    ("--steps base8=5,base8=6", "--steps: 'base8=5,base8=6' & each stage once"),
    ("--steps 5,base8=6", "--steps: '5,base8=6' mixes"),
    ("--sampler euler", "sampler: 'euler' & ancestral, ddim, heun, dpmpp-2m"),
    ("--augmentation strong", "augmentation: 'strong' & truncated, nontruncated, none"),
    ("--augmentation sr16=blur", "augmentation: 'blur' for sr16 & truncated, nontruncated, none"),
    ("--augmentation sr32=truncated", "augmentation: sr32 was trained with augmentation blur and has no s"),
    ("--s much", "--s: 'much' is not a number"),
    ("--s nan", "--s: 'nan' is not a number"),
    ("--s sr16=", "--s: '' is not a number"),
    ("--s -0.1", "s: -0.1 for sr16 is out of range; allowed 0 to 0.8"),
    ("--s 0.81", "s: 0.81 for sr16 is out of range; allowed 0 to 0.8"),
    ("--s base8=0.1", "s: base8 is a base stage and has no s"),
    ("--s sr32=0.1", "s: sr32 was trained with augmentation blur and has no s"),
    ("--s 0.1 --augmentation none", "s: 0.1 for sr16 does not go with augmentation none"),
    ("--s 0.1 --until base8", "s: 0.1 has no effect here: base8 is a base stage"),
    ("--guidance strong", "--guidance: 'strong' is not a number"),
    ("--guidance -1", "guidance: -1.0 for base8 is out of range; allowed 0 to 100"),
    ("--guidance inf", "--guidance: 'inf' is not a number"),
    ("--until sr64", "until: no stage 'sr64' & base8, sr16, sr32"),
    ("--start-stage sr16", "--start-stage: sr16 needs --from-images"),
    ("--from-images {root}/fit --start-stage sr64", "start_stage: no stage 'sr64'"),
    ("--from-images {root}/fit --start-stage base8", "base8 is a base stage and takes no images"),
    ("--from-images {root}/fit --start-stage sr32 --until sr16", "until: sr16 comes before the start stage sr32"),
    ("--from-images {root}/none", "none is neither an image, a folder of images nor an .npz"),
    ("--from-images {root}/none.npz", "none.npz: no such file"),
    ("--from-images {root}/empty", "empty is neither an image, a folder of images nor an .npz"),
    ("--from-images {root}/tiny", "a.png: 7 pixels a side; at least 8"),
    ("--from-images {root}/wide --start-stage sr32", "a.png: 12 pixels a side; at least 16"),
    ("--from-images {root}/bad", "bad/a.png: in no image format that can be read"),
    ("--from-images {root}/part.npz", "part.npz: not a whole .npz file"),
    ("--from-images {root}/float.npz", "float.npz: arr_0.npy is float32"),
    ("--from-images {root}/colour.npz", "colour.npz: 3 image channels; allowed here: 1"),
    ("--from-images {root}/classes.npz", "classes: & 7"),
    ("--from-images {root}/fit --num 3", "num: 3 does not fit the 1 images given"),
    ("--from-images {root}/fit --per-class 3", "--per-class 3: does not go with --from-images"),
    ("--from-images {root}/fit --augmentation truncated", "truncated is not available, sr16 starts from given images"),
    ("--out {root}/x.zip", "--out: & x.zip ends in .zip"),
    ("--out {root}/filled", "filled: already there and not an empty folder"),
    ("--out {root}/text.yaml", "text.yaml"),
    ("--out {root}/text.yaml/x.npz", "--out: & x.npz cannot be made, for & text.yaml is not a folder"),
    ("--out {root}/text.yaml/x", "--out: & text.yaml/x cannot be made, for & text.yaml is not a folder"),
    ("--grid {root}/text.yaml/x.png", "--grid: & x.png cannot be made"),
    ("--stages {root}/text.yaml/x", "--stages: & text.yaml/x cannot be made"),
    ("--stages {root}/empty --out {root}/empty", "--stages: & empty is --out too"),
    ("--stages {root}/new/stages --out {root}/new", "--stages: & lies in --out"),
    ("--stages {root}/new --out {root}/new/x.npz", "--out: & lies in --stages"),
    ("--grid {root}/new/grid.png --out {root}/new", "--grid: & lies in --out"),
    ("--grid {root}/grid.jpg", "--grid: & grid.jpg is not the name of a .png file"),
    ("--stages {root}/filled", "filled: already there and not an empty folder"),
]

PREPARE = [
    ("{root}/none {out} --resolutions 8", "none: no such file or folder & fashion-mnist"),
    ("{root}/empty {out} --resolutions 8", "empty: no image files in it"),
    ("{root}/bad {out} --resolutions 8", "bad/a.png: unreadable image & --skip-bad"),
    ("{root}/fit {out} --resolutions 16", "a.png: 10x8 pixels, too small for resolution 16 & --allow-upscale"),
    ("{root}/fit {out} --resolutions 8,x", "--resolutions '8,x': give whole numbers"),
    ("{root}/fit {out} --resolutions 0", "resolutions: 0; give"),
    ("{root}/fit {out} --resolutions 8,8", "resolutions: 8 is given twice"),
    ("{root}/fit {out}", "Missing option '--resolutions'"),
    ("{root}/fit {out} --resolutions 8 --val 1", "val: 1.0; give a fraction above 0 and below 1"),
    ("{root}/fit {out} --resolutions 8 --val half", "'--val' & 'half'"),
    ("{root}/fit {out} --resolutions 8 --limit 0", "'--limit' & '0' & from 1"),
    ("{root}/fit {out} --resolutions 8 --workers -1", "'--workers' & '-1' & from 0"),
    ("{root}/fit {root}/filled --resolutions 8", "filled"),
    ("{root}/part.npz {out} --resolutions 8", "part.npz: not a whole .npz file"),
    ("wds:{root}/none-*.tar {out} --resolutions 8", "no file & none-*.tar; give files on this disk"),
    ("wds: {out} --resolutions 8", "wds:: no pattern"),
    ("{root}/fit {out} --resolutions 8 --image-column x", "has no columns and subsets to choose"),
]


@pytest.mark.parametrize("command, words", PARSER + RECIPES)
def test_commands_and_recipes(
    refused: Refused, places: dict[str, Path], tmp_path: Path, command: str, words: str
) -> None:
    check(refused, places, tmp_path / "out", command, words)


@pytest.mark.parametrize("options, words", TRAIN)
def test_train(refused: Refused, places: dict[str, Path], tmp_path: Path, options: str, words: str) -> None:
    defaults = [("--data", "{data}"), ("--out", "{out}")]
    filled = " ".join(f"{name} {value}" for name, value in defaults if name not in options)
    check(refused, places, tmp_path / "out", f"train {{recipe}} {filled} {options}", words)


@pytest.mark.parametrize("options, words", ASSEMBLE)
def test_assemble(refused: Refused, places: dict[str, Path], tmp_path: Path, options: str, words: str) -> None:
    check(refused, places, tmp_path / "out", f"assemble {{out}} {options}", words)


@pytest.mark.parametrize("options, words", SAMPLE)
def test_sample(refused: Refused, places: dict[str, Path], tmp_path: Path, options: str, words: str) -> None:
    filled = options if "--out" in options else f"{options} --out {{out}}"
    check(refused, places, tmp_path / "out", f"sample {{cascade}} {filled}", words)


@pytest.mark.parametrize("options, words", PREPARE)
def test_prepare(refused: Refused, places: dict[str, Path], tmp_path: Path, options: str, words: str) -> None:
    check(refused, places, tmp_path / "out", f"prepare {options}", words)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def no_json(path: Path) -> None:
    path.write_text("{")


def a_list(path: Path) -> None:
    path.write_text("[]")


def remove(path: Path) -> None:
    path.unlink()


def another_key(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "colour": 1}))


@pytest.mark.parametrize(
    "name, damage, words",
    [
        ("manifest.json", remove, "no manifest.json"),
        ("manifest.json", no_json, "manifest.json: not valid JSON"),
        ("manifest.json", a_list, "manifest.json: not a manifest of prepared data"),
        ("manifest.json", another_key, "manifest.json: colour"),
        ("train/images_8.npy", remove, "images_8.npy: missing"),
        ("train/images_8.npy", cut_short, "images_8.npy: not a whole .npy file"),
        ("val/images_32.npy", cut_short, "images_32.npy: not a whole .npy file"),
        ("train/labels.npy", cut_short, "labels.npy: not a whole .npy file"),
        (
            "train/images_8.npy",
            lambda path: np.save(path, np.zeros((3, 8, 8, 1), np.uint8)),
            "images_8.npy: uint8 (3, 8",
        ),
        ("train/images_8.npy", lambda path: np.save(path, np.zeros((3, 8, 8, 1))), "images_8.npy: float64"),
    ],
)
def test_damaged_data(
    refused: Refused, recipe: Path, data: Path, tmp_path: Path, name: str, damage: Callable[[Path], None], words: str
) -> None:
    shutil.copytree(data, tmp_path / "data")
    damage(tmp_path / "data" / name)
    options = ("--stage", "base8", "--data", tmp_path / "data", "--out", tmp_path / "out", "--device", "cpu")
    assert words in refused("train", recipe, *options)
    assert not (tmp_path / "out").exists()


def test_data_without_the_resolution(refused: Refused, recipe: Path, data: Path, tmp_path: Path) -> None:
    changed = recipe.read_text().replace("base8", "base4").replace("resolution: 8", "resolution: 4")
    (tmp_path / "changed.yaml").write_text(changed)
    options = ("--stage", "base4", "--data", data, "--out", tmp_path / "out", "--device", "cpu")
    assert "no images of resolution 4; it has 8, 16, 32" in refused("train", tmp_path / "changed.yaml", *options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name, damage, words",
    [
        ("cascade.json", remove, "not a cascade (no cascade.json)"),
        ("cascade.json", no_json, "cascade.json: not valid JSON"),
        ("cascade.json", a_list, "cascade.json: "),
        ("cascade.json", another_key, "cascade.json: colour"),
        ("sr16/model.safetensors", remove, "sr16/model.safetensors: missing"),
        ("sr16/model.safetensors", flip_a_byte, "sr16/model.safetensors: not the file that was assembled"),
        ("sr16/model.safetensors", cut_short, "sr16/model.safetensors: not the file that was assembled"),
        ("base8/config.json", remove, "base8/config.json: missing"),
        ("base8/config.json", no_json, "base8/config.json: not the file that was assembled"),
    ],
)
def test_damaged_cascade(
    refused: Refused, broken: Path, tmp_path: Path, name: str, damage: Callable[[Path], None], words: str
) -> None:
    damage(broken / name)
    assert words in refused("sample", broken, "--out", tmp_path / "out.npz")
    assert not (tmp_path / "out.npz").exists()


@pytest.mark.parametrize(
    "change, words",
    [
        ({"folder": "../sr16"}, "stages.sr16.folder: '../sr16' must equal the stage's name"),
        ({"name": "../sr16", "folder": "../sr16"}, "'../sr16' is not a stage name"),
        ({"sha256": {}}, "sha256: must name exactly"),
        ({"sampling": {"steps": 0}}, "stages.sr16.sampling.steps"),
    ],
)
def test_forged_cascade(refused: Refused, broken: Path, tmp_path: Path, change: dict[str, object], words: str) -> None:
    manifest = json.loads((broken / "cascade.json").read_text())
    manifest["stages"][1] |= change
    (broken / "cascade.json").write_text(json.dumps(manifest))
    assert words in refused("sample", broken, "--out", tmp_path / "out.npz")


@pytest.mark.parametrize(
    "name, damage, words",
    [
        ("config.json", no_json, "config.json: not valid JSON"),
        ("config.json", a_list, "config.json: "),
        ("config.json", another_key, "config.json: colour"),
        ("model.safetensors", cut_short, "model.safetensors: not a readable safetensors file"),
    ],
)
def test_damaged_stage_folder(
    refused: Refused, broken: Path, tmp_path: Path, name: str, damage: Callable[[Path], None], words: str
) -> None:
    (broken / "cascade.json").unlink()  # beside it, its hashes would be checked first
    damage(broken / "base8" / name)
    assert words in refused("assemble", tmp_path / "out", broken / "base8")
    assert not (tmp_path / "out").exists()


def test_weights_of_another_network(refused: Refused, broken: Path, tmp_path: Path) -> None:
    (broken / "cascade.json").unlink()
    (broken / "base8/model.safetensors").write_bytes((broken / "sr16/model.safetensors").read_bytes())
    assert "tensors unexpected for this config.json: " in refused("assemble", tmp_path / "out", broken / "base8")
    config = json.loads((broken / "sr32/config.json").read_text())
    config["network"]["channels"] = 64
    (broken / "sr32/config.json").write_text(json.dumps(config))
    assert "tensors of another shape" in refused("assemble", tmp_path / "out", broken / "sr32")


@pytest.mark.parametrize("name", ["ema-16.safetensors", "optimizer.pt"])
def test_damaged_checkpoint(refused: Refused, recipe: Path, data: Path, runs: Path, tmp_path: Path, name: str) -> None:
    run = tmp_path / "base8"
    shutil.copytree(runs / "base8", run)
    for checkpoint in (run / "checkpoints").iterdir():
        flip_a_byte(checkpoint / name)
    assert f"{name}: damaged" in refused("assemble", tmp_path / "out", run)
    assert f"{name}: damaged" in refused("train", recipe, "--stage", "base8", "--data", data, "--out", run)


def test_untrained_stage(refused: Refused, runs: Path, cascade: Path, tmp_path: Path) -> None:
    run = tmp_path / "base8"
    run.mkdir()
    (run / "config.json").write_bytes((runs / "base8/config.json").read_bytes())
    assert "base8: no checkpoint; train the stage first" in refused("assemble", tmp_path / "out", run)
    assert not (tmp_path / "out").exists()


def test_existing_out_of_assemble(refused: Refused, runs: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")
    line = refused("assemble", tmp_path / "out", runs / "base8")
    assert "out: already there and not an empty folder" in line
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]
    assert "mine.txt: already there" in refused("assemble", tmp_path / "out/mine.txt", runs / "base8")
    assert "mine.txt is not a folder" in refused("assemble", tmp_path / "out/mine.txt/x", runs / "base8")


def test_class_names_where_there_are_none(refused: Refused, relabelled: Callable[..., Path], tmp_path: Path) -> None:
    folder = relabelled(class_names=None)
    assert "classes: 'Bag' is not a class; allowed: 0 to 2" in refused(
        "sample", folder, "--out", tmp_path / "x.npz", "--classes", "Bag"
    )


def test_run_in_use(refused: Refused, recipe: Path, data: Path, runs: Path, tmp_path: Path) -> None:
    run = tmp_path / "base8"
    shutil.copytree(runs / "base8", run)
    with (run / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        line = refused("train", recipe, "--stage", "base8", "--data", data, "--out", run)
    assert f"{run}: another process is training in this run folder" in line


@pytest.mark.parametrize(
    "command, words",
    [
        (["sampel"], "Did you mean 'sample'?"),
        (["sample", "{cascade}", "--out", "{out}", "--s", "0.9"], "s: 0.9 for sr16 is out of range; allowed 0 to 0.8"),
    ],
)
def test_as_a_process(
    cdm_process: tuple[list[str], dict[str, str]], cascade: Path, tmp_path: Path, command: list[str], words: str
) -> None:
    program, environment = cdm_process
    arguments = [word.format(cascade=cascade, out=tmp_path / "out.npz") for word in command]
    run = subprocess.run([*program, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert run.stdout == ""
    assert run.stderr.startswith("cdm: ")
    assert run.stderr.count("\n") == 1
    assert words in run.stderr
