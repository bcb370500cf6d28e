"""Importing the package is quick, loads nothing heavy, and gives every public name."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import cascaded_diffusion
from cascaded_diffusion import PreparedData, Stage, StageConfig, load_extractor, prepare, read_metrics, train
from cascaded_diffusion.cascade.stage import build_network
from cascaded_diffusion.version import VERSION

HEAVY = ("torch", "numpy", "pydantic", "PIL", "yaml", "safetensors", "rich")
SOURCE = str(Path(cascaded_diffusion.__file__).parents[1])

IMPORT = "import cascaded_diffusion"
HELP = """
import sys
from cascaded_diffusion.cli.app import main
sys.argv = ["cdm", *ARGUMENTS]
try:
    main()
except SystemExit as end:
    assert end.code == 0, end.code
"""


def run(code: str) -> str:
    start = f"import sys; sys.path.insert(0, {SOURCE!r})\n"
    result = subprocess.run([sys.executable, "-c", start + code], capture_output=True, text=True, check=True)
    assert result.stderr == ""
    return result.stdout


def heavy_modules(code: str) -> list[str]:
    return (
        run(f"{code}\nprint('loaded:', *(name for name in {HEAVY} if name in sys.modules))").split("loaded:")[1].split()
    )


def cpu_seconds(work: Callable[[], object]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    work()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_help_loads_nothing_heavy() -> None:
    assert heavy_modules(HELP.replace("ARGUMENTS", "['--help']")) == []


@pytest.mark.parametrize("arguments", [["--version"], [], ["sample", "--help"], ["train", "--help"]])
def test_other_help_loads_little(arguments: list[str]) -> None:
    # To read options, typer itself loads pydantic.
    assert set(heavy_modules(HELP.replace("ARGUMENTS", repr(arguments)))) <= {"pydantic"}


def test_import_loads_nothing_heavy() -> None:
    assert heavy_modules(IMPORT) == []


def test_recipes_are_listed_without_torch() -> None:
    assert "torch" not in heavy_modules(HELP.replace("ARGUMENTS", "['recipe', '--list']"))


@pytest.mark.parametrize("code", [IMPORT, HELP.replace("ARGUMENTS", "['--help']")])
def test_less_than_half_a_second(code: str) -> None:
    # Of the processor, in the best of five tries: other work on the machine must not fail it.
    assert any(cpu_seconds(lambda: run(code)) < 0.5 for _ in range(5))


def test_every_public_name_is_there() -> None:
    for name in cascaded_diffusion.__all__:
        assert getattr(cascaded_diffusion, name) is not None
    assert set(cascaded_diffusion.__all__) <= set(dir(cascaded_diffusion))
    assert {"Cascade", "Schedule", "UNet", "ddim", "train", "prepare"} <= set(cascaded_diffusion.__all__)


def test_places_and_devices_may_be_told_in_words(
    tmp_path: Path, colour_folder: Path, base_config: Callable[..., StageConfig]
) -> None:
    data = str(tmp_path / "data")
    prepare(colour_folder.parent / "colours.npz", data, resolutions=[8], workers=0)
    train(base_config(8), PreparedData.open(data), str(tmp_path / "run"), device="cpu", max_images=1)
    assert read_metrics(str(tmp_path / "run"))
    stage = str(tmp_path / "stage")
    Stage(base_config(8), build_network(base_config(8))).save(stage)
    assert Stage.load(stage).config == StageConfig.load(f"{stage}/config.json")
    assert load_extractor("fashion-mnist", device="cpu").name == "fashion-mnist"


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Nope'"):
        _ = cascaded_diffusion.Nope


def test_version() -> None:
    assert cascaded_diffusion.__version__ == VERSION
    assert run(HELP.replace("ARGUMENTS", "['--version']")).strip() == VERSION
