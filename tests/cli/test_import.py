"""``cdm import``: from a checkpoint of another project to samples, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cascaded_diffusion.interop.guided_diffusion import GuidedDiffusionArguments, translate_keys
from cascaded_diffusion.interop.script_flags import read_flags

Done = Callable[..., Any]

SHARED = (
    "--num_channels 32 --num_res_blocks 1 --channel_mult 1,1 --attention_resolutions 8 --class_cond True "
    "--learn_sigma True --resblock_updown True --num_head_channels 16 --timestep_respacing 4"
)
BASE = f"{SHARED} --image_size 16 --noise_schedule cosine"
SR = f"{SHARED} --large_size 32 --small_size 16"


def write_checkpoint(path: Path, flags: str, *, upsampler: bool) -> None:
    """A checkpoint of random weights as guided-diffusion would have saved it, of three classes."""
    arguments = read_flags(flags, "guided-diffusion").constructor_arguments(upsampler=upsampler, classes=3)
    network = GuidedDiffusionArguments(**arguments).build()
    generator = torch.Generator().manual_seed(len(flags))
    state = {}
    for theirs, ours in translate_keys(network).items():
        value = network.get_parameter(ours)
        drawn = torch.randn(value.shape, generator=generator) / (value[0].numel() if value.ndim > 1 else 4) ** 0.5
        state[theirs] = drawn[..., None] if theirs.endswith(("qkv.weight", "proj_out.weight")) else drawn
    assert not any(isinstance(value, nn.Parameter) for value in state.values())
    torch.save(state, path)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``base.pt`` (16 pixels) and ``sr.pt`` (16 -> 32)."""
    root = tmp_path_factory.mktemp("checkpoints")
    write_checkpoint(root / "base.pt", BASE, upsampler=False)
    write_checkpoint(root / "sr.pt", SR, upsampler=True)
    return root


def test_two_checkpoints_make_a_cascade_that_samples(done: Done, checkpoints: Path, tmp_path: Path) -> None:
    result = done("import", "guided-diffusion", checkpoints / "base.pt", tmp_path / "base16", "--flags", BASE)
    assert result.out == (
        f"{tmp_path / 'base16'}: base16, 16x16 pixels, 3 classes, cosine T=1000, ancestral 4 steps\n"
    )  # fmt: skip
    assert result.err == ""
    flags = f"{SR} --batch_size 4 --classifier_scale 1.0"
    result = done("import", "guided-diffusion", checkpoints / "sr.pt", tmp_path / "sr32", "--flags", flags)
    assert "sr32, 32x32 pixels, from 16, 3 classes, linear T=1000" in result.out
    assert "without meaning for a stage: batch_size 4, classifier_scale 1.0" in result.err
    done("assemble", tmp_path / "cascade", tmp_path / "base16", tmp_path / "sr32")
    provenance = [
        stage["provenance"] for stage in json.loads((tmp_path / "cascade/cascade.json").read_text())["stages"]
    ]
    assert [origin["file"] for origin in provenance] == ["base.pt", "sr.pt"]
    assert provenance[0]["flags"] == BASE
    result = done("sample", tmp_path / "cascade", "--out", tmp_path / "x.npz", "--classes", "2", "--num", "2")
    assert "base16 ancestral 4 steps; sr32 ancestral 4 steps" in result.out
    images = np.load(tmp_path / "x.npz")["arr_0"]
    assert images.shape == (2, 32, 32, 3)
    assert images.std() > 10


def test_improved_diffusion_has_its_own_defaults(done: Done, tmp_path: Path) -> None:
    flags = "--image_size 16 --num_channels 32 --num_res_blocks 1 --channel_mult 1,1 --timestep_respacing 2"
    write_checkpoint(tmp_path / "x.pt", flags, upsampler=False)
    for kind in ("guided-diffusion", "improved-diffusion"):
        done("import", kind, tmp_path / "x.pt", tmp_path / kind, "--flags", flags)
        config = json.loads((tmp_path / kind / "config.json").read_text())
        assert config["diffusion"]["rescale_steps"] is (kind == "improved-diffusion")
        done("assemble", tmp_path / f"{kind}-cascade", tmp_path / kind)


def damaged_copy(checkpoints: Path, path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    state = torch.load(checkpoints / "base.pt", weights_only=True)
    change(state)
    torch.save(state, path)
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("out.2.bias"), "out.2.bias is missing"),
        (lambda state: state.update(extra=torch.zeros(1)), "extra is not part of this network"),
        (lambda state: state.update({"out.2.bias": torch.zeros(5)}), "out.2.bias has shape [5], expected [6]"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    refused: Callable[..., str], checkpoints: Path, tmp_path: Path, change: Callable[..., Any], words: str
) -> None:
    path = damaged_copy(checkpoints, tmp_path / "x.pt", change)
    line = refused("import", "guided-diffusion", path, tmp_path / "out", "--flags", BASE)
    assert str(path) in line
    assert words in line
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.pt"]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("guided {base} {out}", ["'guided'", "guided-diffusion, improved-diffusion, diffusers"]),
        ("guided-diffusion {root}/nope.pt {out}", ["nope.pt: no such file"]),
        ("guided-diffusion {root} {out}", ["it is a folder, not a file"]),
        ("guided-diffusion {cut} {out}", ["cut.pt: not a file of weights"]),
        ("guided-diffusion {base} {out} --flags --num_chanels=32", ["--num_chanels", "did you mean --num_channels"]),
        ("guided-diffusion {base} {out} --low-resolution 8", ["--low-resolution 8", "--small_size, inside --flags"]),
        ("guided-diffusion {base} {root}", ["already there and not an empty folder"]),
        ("guided-diffusion {base} {base}/out", ["OUT: ", "is not a folder"]),
        ("diffusers {root} {out}", ["no config.json"]),
        ("diffusers {root} {out} --flags --image_size=64", ["--flags: a diffusers folder has its settings"]),
        ("diffusers {root} {out} --low-resolution 0", ["'0'; allowed: whole numbers from 1"]),
        ("guided-diffusion {base}", ["Missing argument 'OUT'"]),
    ],
)
def test_mistakes_are_one_line(
    refused: Callable[..., str], checkpoints: Path, tmp_path: Path, command: str, words: list[str]
) -> None:
    cut = tmp_path / "cut.pt"
    cut.write_bytes((checkpoints / "base.pt").read_bytes()[:5000])
    places = {"root": checkpoints, "base": checkpoints / "base.pt", "cut": cut, "out": tmp_path / "out"}
    line = refused("import", *(word.format(**places) for word in command.split()))
    for word in words:
        assert word in line
    assert not (tmp_path / "out").exists()


def test_nothing_is_left_of_a_failure(
    cdm: Done, checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cascaded_diffusion.interop.stage_folder.write_json", full)
    result = cdm("import", "guided-diffusion", checkpoints / "base.pt", tmp_path / "out", "--flags", BASE)
    assert result.status == 1
    assert result.err.startswith("cdm: OSError: [Errno 28] No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_a_note_of_origin_that_is_damaged(
    done: Done, refused: Callable[..., str], checkpoints: Path, tmp_path: Path
) -> None:
    done("import", "guided-diffusion", checkpoints / "base.pt", tmp_path / "base16", "--flags", BASE)
    (tmp_path / "base16/origin.json").write_text("[1]")
    assert "origin.json: not a JSON object" in refused("assemble", tmp_path / "out", tmp_path / "base16")
