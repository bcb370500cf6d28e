from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cascaded_diffusion.cascade.chain import Cascade
from cascaded_diffusion.cascade.manifest import CascadeManifest, check_chain, schedules_agree
from cascaded_diffusion.cascade.stage import StageConfig
from cascaded_diffusion.errors import UserError

Configure = Callable[..., StageConfig]


@pytest.fixture
def folder(tmp_path: Path, tiny_cascade_folder: Path) -> Path:
    """A copy of the tiny cascade's folder, to be damaged."""
    return Path(shutil.copytree(tiny_cascade_folder, tmp_path / "cascade"))


def _edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "cascade.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def _refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        Cascade.from_pretrained(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_recorded(tiny_cascade_folder: Path) -> None:
    content = json.loads((tiny_cascade_folder / "cascade.json").read_text())
    assert content["format_version"] == 1
    assert content["classes"] == 4
    assert [stage["name"] for stage in content["stages"]] == ["base8", "sr16"]
    for stage in content["stages"]:
        assert stage["folder"] == stage["name"]
        assert sorted(stage["sha256"]) == ["config.json", "model.safetensors"]
        assert {"steps", "sampler", "augmentation", "s", "guidance"} <= stage["sampling"].keys()
        assert stage["provenance"] == {"images": 64, "ema": "16"}
    assert content["stages"][1]["truncated"] is True
    assert sorted(path.name for path in tiny_cascade_folder.iterdir()) == ["base8", "cascade.json", "sr16"]


@pytest.mark.parametrize("stage", ["base8", "sr16"])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("where", [0, 0.5, 1])
def test_one_wrong_bit_is_noticed(stage: str, name: str, where: float, folder: Path) -> None:
    path = folder / stage / name
    content = bytearray(path.read_bytes())
    content[round(where * (len(content) - 1))] ^= 1
    path.write_bytes(content)
    assert f"{path}: not the file that was assembled" in _refusal(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(name: str, folder: Path) -> None:
    (folder / "sr16" / name).unlink()
    assert f"{folder / 'sr16' / name}: missing from the cascade" in _refusal(folder)


def test_a_missing_stage_folder_is_named(folder: Path) -> None:
    shutil.rmtree(folder / "sr16")
    assert str(folder / "sr16") in _refusal(folder)


@pytest.mark.parametrize(
    "value", ["../base8", "/etc", "base8/../sr16", "sub/base8", "base8/", ".", "..", "sr16", "", "Base8", "base08"]
)
def test_a_folder_is_the_stages_name_and_nothing_else(value: str, folder: Path) -> None:
    _edit(folder, lambda content: content["stages"][0].update(folder=value))
    line = _refusal(folder)
    assert "cascade.json: stages.base8.folder: " in line
    assert repr(value) in line


@pytest.mark.parametrize("value", ["../base8", "sub/base8", "..", "base8\\..", "base", "sr0", "base99999", "base8\n"])
def test_a_stages_name_cannot_leave_the_folder(value: str, folder: Path) -> None:
    _edit(folder, lambda content: content["stages"][0].update(folder=value, name=value))
    line = _refusal(folder)
    assert "cascade.json: stages.0.name" in line
    assert "allowed: base<R> or sr<R>" in line


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda c: c.update(extra=1), ["extra"]),
        (lambda c: c["stages"][1].update(extra=1), ["stages.sr16.extra"]),
        (lambda c: c["stages"][1]["sampling"].update(step=1), ["stages.sr16.sampling.step"]),
        (lambda c: c.update(format_version=2), ["format_version", "2"]),
        (lambda c: c.update(stages=[]), ["stages"]),
        (lambda c: c.pop("stages"), ["stages"]),
        (lambda c: c["stages"][0]["sha256"].pop("config.json"), ["stages.base8.sha256", "config.json"]),
        (lambda c: c["stages"][0]["sha256"].update({"../x": "0"}), ["stages.base8.sha256"]),
        (lambda c: c["stages"].append(c["stages"][1]), ["sr16", "twice"]),
        (lambda c: c["stages"][1]["sampling"].update(s=2), ["stages.sr16.sampling.s", "2"]),
    ],
)
def test_a_wrong_manifest_is_told_by_key(change: Callable[[Any], Any], words: list[str], folder: Path) -> None:
    _edit(folder, change)
    line = _refusal(folder)
    assert all(word in line for word in ["cascade.json", *words]), line


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '"x"'])
def test_a_manifest_that_is_none(content: str, folder: Path) -> None:
    (folder / "cascade.json").write_text(content)
    assert "cascade.json" in _refusal(folder)


def test_settings_that_a_stage_has_not_learned_are_refused(folder: Path) -> None:
    _edit(folder, lambda content: content["stages"][1]["sampling"].update(s=0.9))
    assert "sr16: sampling.s: 0.9 is above conditioning.s_max 0.5" in _refusal(folder)


def test_a_config_of_another_stage_in_the_folder_is_refused(folder: Path) -> None:
    """Hashes that agree do not make base8 of what says sr16."""
    shutil.rmtree(folder / "base8")
    shutil.copytree(folder / "sr16", folder / "base8")
    _edit(folder, lambda content: content["stages"][0].update(sha256=content["stages"][1]["sha256"]))
    assert "its config.json is that of sr16, not base8" in _refusal(folder)


def test_stages_in_the_wrong_order_are_refused(folder: Path) -> None:
    _edit(folder, lambda content: content["stages"].reverse())
    assert "the first stage of a cascade is a base stage, sr16 is not one" in _refusal(folder)


def test_a_manifest_can_take_truncated_away_and_not_give_it(
    folder: Path, tmp_path: Path, tiny_cascade: Cascade
) -> None:
    _edit(folder, lambda content: content["stages"][1].update(truncated=False))
    assert not Cascade.from_pretrained(folder).truncated["sr16"]
    tiny_cascade.truncated["sr16"] = False
    tiny_cascade.save_pretrained(tmp_path / "again")
    assert not CascadeManifest.read(tmp_path / "again").stages[1].truncated


def test_no_cascade_here(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not a cascade \(no cascade\.json\); make one with cdm assemble"):
        CascadeManifest.read(tmp_path)


# -- chains -----------------------------------------------------------------------------------------------------------


def test_three_stages_that_chain(base_config: Configure, sr_config: Configure) -> None:
    blur = sr_config(32, low=16, conditioning={"augmentation": "blur"})
    check_chain([base_config(), sr_config(), blur])
    check_chain([base_config(), sr_config()])
    check_chain([base_config()])


@pytest.mark.parametrize(
    "change, words",
    [
        ({"low": 4}, ["sr16", "4 pixels", "base8", "8"]),
        ({"channels": 1}, ["sr16", "1 image channels", "base8", "3"]),
        ({"classes": 5}, ["sr16", "5 classes", "base8", "4 classes", "must agree"]),
        ({"class_names": ["a", "b", "c", "d"]}, ["sr16", "(a, b, c, ...)", "base8", "4 classes"]),
        (
            {"conditioning": {"low_schedule": {"timesteps": 50}}},
            ["sr16", "cosine T=50", "base8", "cosine T=40", "--no-truncated"],
        ),
    ],
)
def test_stages_that_do_not_chain_are_both_named(
    change: dict[str, Any], words: list[str], base_config: Configure, sr_config: Configure
) -> None:
    with pytest.raises(UserError) as caught:
        check_chain([base_config(), sr_config(16, **{"low": 8, **change})])
    line = str(caught.value)
    assert all(word in line for word in words), line


def test_other_class_names_are_refused(base_config: Configure, sr_config: Configure) -> None:
    first, second = (["a", "b", "c", "d"], ["a", "b", "c", "e"])
    with pytest.raises(UserError, match=r"the classes of a cascade must agree"):
        check_chain([base_config(class_names=first), sr_config(class_names=second)])
    check_chain([base_config(class_names=first), sr_config(class_names=first)])


def test_classes_above_a_base_without_are_refused(base_config: Configure, sr_config: Configure) -> None:
    with pytest.raises(UserError, match=r"sr16 has 4 classes, base8 has no classes"):
        check_chain([base_config(classes=None), sr_config()])
    check_chain([base_config(), sr_config(classes=None)])


def test_a_base_comes_first_and_only_there(base_config: Configure, sr_config: Configure) -> None:
    with pytest.raises(UserError, match=r"first stage of a cascade is a base stage, sr16 is not one"):
        check_chain([sr_config()])
    with pytest.raises(UserError, match=r"base16: a base stage can only be the first of a cascade, not after base8"):
        check_chain([base_config(), base_config(16)])
    with pytest.raises(UserError, match=r"at least one stage"):
        check_chain([])


def test_schedules_matter_to_gaussian_stages_that_may_be_truncated(
    base_config: Configure, sr_config: Configure
) -> None:
    base = base_config(diffusion={"noise_schedule": {"timesteps": 1000}})
    assert not schedules_agree(base, sr_config())
    spelled = {"kind": "linear", "timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02}
    linear = base_config(diffusion={"noise_schedule": spelled})
    left_out = {"augmentation": "gaussian", "low_schedule": {"kind": "linear", "timesteps": 1000}}
    assert schedules_agree(linear, sr_config(conditioning=left_out))
    check_chain([base, sr_config()], truncated=False)
    check_chain([base, sr_config(conditioning={"augmentation": "blur"})])
    check_chain([base, sr_config(conditioning={"augmentation": "none"})])


def test_links_that_lead_out_are_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "sr16").rename(tmp_path / "sr16")
    (folder / "sr16").symlink_to(tmp_path / "sr16", target_is_directory=True)
    with pytest.raises(UserError, match=r"sr16/config\.json: a link that leads out of"):
        Cascade.from_pretrained(folder)
    (folder / "sr16").unlink()
    (tmp_path / "sr16").rename(folder / "sr16")
    (folder / "cascade.json").rename(tmp_path / "elsewhere.json")
    (folder / "cascade.json").symlink_to("../elsewhere.json")
    with pytest.raises(UserError, match=r"cascade\.json: a link that leads out of"):
        Cascade.from_pretrained(folder)


def test_a_cascade_behind_a_link_is_opened(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder, target_is_directory=True)
    assert list(Cascade.from_pretrained(tmp_path / "link").stages) == ["base8", "sr16"]
