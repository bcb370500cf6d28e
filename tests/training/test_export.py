from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cascaded_diffusion.cascade.chain import Cascade
from cascaded_diffusion.cascade.stage import Stage, StageConfig
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.files import sha256_of
from cascaded_diffusion.training.checkpoint import checkpoint_folders
from cascaded_diffusion.training.export import is_run, load_part, stage_from_run
from cascaded_diffusion.training.run import open_run
from cascaded_diffusion.training.state import TrainingState

Configure = Callable[..., StageConfig]


@pytest.mark.parametrize(
    "ema, file", [(None, "ema-16"), ("16", "ema-16"), ("64", "ema-64"), ("raw", "model")], ids=["default", *"abc"]
)
def test_a_stage_has_the_weights_that_were_asked_for(ema: str | None, file: str, tiny_runs: Mapping[str, Path]) -> None:
    stage, provenance = stage_from_run(tiny_runs["base8"], ema=ema)
    folder = checkpoint_folders(tiny_runs["base8"])[-1]
    expected = load_file(folder / f"{file}.safetensors")
    assert all(torch.equal(parameter, expected[name]) for name, parameter in stage.network.named_parameters())
    assert provenance == {"images": 64, "ema": "raw" if file == "model" else file.removeprefix("ema-")}
    assert not stage.network.training


def test_an_earlier_checkpoint(tiny_runs: Mapping[str, Path]) -> None:
    stage, provenance = stage_from_run(tiny_runs["base8"], images=32)
    expected = load_file(checkpoint_folders(tiny_runs["base8"])[0] / "ema-16.safetensors")
    assert provenance["images"] == 32
    assert all(torch.equal(parameter, expected[name]) for name, parameter in stage.network.named_parameters())
    with pytest.raises(UserError, match=r"no checkpoint at 40 images; allowed: 32, 64"):
        stage_from_run(tiny_runs["base8"], images=40)


def test_a_run_without_checkpoints_is_an_untrained_stage(tmp_path: Path, base_config: Configure) -> None:
    open_run(tmp_path, base_config(), allow_changes=False)
    with pytest.raises(UserError, match=r"no checkpoint; train the stage first"):
        load_part(tmp_path)


def test_a_checkpoint_from_before_the_first_step_is_an_untrained_stage(tmp_path: Path, base_config: Configure) -> None:
    """A run that is ended by a signal before its first step leaves one."""
    open_run(tmp_path, base_config(), allow_changes=False)
    TrainingState.fresh(base_config(), torch.device("cpu")).save(tmp_path)
    assert [int(path.name) for path in checkpoint_folders(tmp_path)] == [0]
    with pytest.raises(UserError, match=r"before the first step; train the stage first"):
        load_part(tmp_path)


def test_folders_that_are_no_part(tmp_path: Path, tiny_cascade_folder: Path) -> None:
    for folder, words in (
        (tmp_path / "nowhere", "no such folder"),
        (tmp_path, r"neither a run folder nor a stage folder \(no config\.json\)"),
        (tiny_cascade_folder, "a whole cascade; name its stage folders"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            load_part(folder)
        assert str(folder) in str(caught.value)


def test_a_config_without_weights_is_refused(tmp_path: Path, tiny_cascade_folder: Path) -> None:
    shutil.copy(tiny_cascade_folder / "base8" / "config.json", tmp_path)
    with pytest.raises(UserError, match=r"no checkpoint; train the stage first"):
        load_part(tmp_path)


def test_a_plain_stage_folder(tmp_path: Path, tiny_cascade_folder: Path) -> None:
    shutil.copytree(tiny_cascade_folder / "sr16", tmp_path / "elsewhere")
    stage, sampling, provenance = load_part(tmp_path / "elsewhere")
    assert stage.name == "sr16"
    assert sampling == stage.config.sampling
    assert provenance == {}


def test_a_cascades_sub_folder_keeps_its_tuned_settings_and_provenance(
    tmp_path: Path, tiny_cascade_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cascade = Cascade.from_pretrained(tiny_cascade_folder)
    tuned = cascade.defaults["sr16"].model_copy(update={"s": 0.25, "steps": 7})
    cascade.defaults["sr16"] = tuned
    cascade.save_pretrained(tmp_path / "tuned")
    stage, sampling, provenance = load_part(tmp_path / "tuned" / "sr16")
    assert sampling == tuned
    assert stage.config.sampling != tuned
    assert provenance == {"images": 64, "ema": "16"}
    monkeypatch.chdir(tmp_path / "tuned" / "sr16")
    assert load_part(Path("."))[1] == tuned
    base, *_ = load_part(tmp_path / "tuned" / "base8")
    again = Cascade([base, stage], defaults={"sr16": sampling})
    assert again.defaults["sr16"] == tuned


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_changed_sub_folder_of_a_cascade_is_refused(name: str, tmp_path: Path, tiny_cascade_folder: Path) -> None:
    shutil.copytree(tiny_cascade_folder, tmp_path / "changed")
    path = tmp_path / "changed" / "sr16" / name
    if name == "config.json":
        path.write_text(json.dumps(json.loads(path.read_text()) | {"flip": True}))
    else:
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}: not the file that was assembled"):
        load_part(tmp_path / "changed" / "sr16")


def test_what_is_a_run(tiny_runs: Mapping[str, Path], tiny_cascade_folder: Path) -> None:
    assert is_run(tiny_runs["base8"])
    assert not is_run(tiny_cascade_folder)
    assert not is_run(tiny_cascade_folder / "base8")


def test_a_stage_from_a_run_samples_as_its_saved_folder_does(tmp_path: Path, tiny_runs: Mapping[str, Path]) -> None:
    stage, _ = stage_from_run(tiny_runs["base8"])
    stage.save(tmp_path / "base8")
    again = Stage.load(tmp_path / "base8")
    assert all(torch.equal(a, b) for a, b in zip(stage.network.parameters(), again.network.parameters(), strict=True))


def test_an_average_that_lacks_a_tensor_is_refused(tiny_runs: Mapping[str, Path], tmp_path: Path) -> None:
    """It must not be filled up with new weights."""
    run = Path(shutil.copytree(tiny_runs["base8"], tmp_path / "base8"))
    folder = checkpoint_folders(run)[-1]
    weights = load_file(folder / "ema-16.safetensors")
    weights.pop("stem.weight")
    save_file(weights, folder / "ema-16.safetensors")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["ema-16.safetensors"] = sha256_of(folder / "ema-16.safetensors")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"tensors missing for this config\.json: stem\.weight"):
        stage_from_run(run)


def test_a_run_whose_files_are_elsewhere_is_not_read(tiny_runs: Mapping[str, Path], tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_runs["base8"], tmp_path / "base8"))
    (run / "checkpoints").rename(tmp_path / "elsewhere")
    (run / "checkpoints").symlink_to("../elsewhere")
    with pytest.raises(UserError, match=r"manifest\.json: a link that leads out of"):
        stage_from_run(run)
