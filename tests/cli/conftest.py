"""The command line in this process, and a three-stage cascade that was prepared, trained and assembled with it.

Session-scoped folders are shared between tests: read them, copy them, never write to them.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from cascaded_diffusion.cascade.chain import Cascade
from cascaded_diffusion.cascade.stage import Stage
from cascaded_diffusion.cli.app import main


class Result(NamedTuple):
    """How a command ended, and what it wrote."""

    status: int
    out: str
    err: str


Cdm = Callable[..., Result]


def _run(*arguments: object) -> Result:
    out, err = io.StringIO(), io.StringIO()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main([str(argument) for argument in arguments])
        raise AssertionError("main returned, it must exit")
    except SystemExit as end:
        status = end.code
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert isinstance(status, int)
    return Result(status, out.getvalue(), err.getvalue())


def _refused(*arguments: object) -> str:
    result = _run(*arguments)
    assert result.status == 2, result
    assert result.err.startswith("cdm: ")
    assert result.err.count("\n") == 1, result.err
    assert "Traceback" not in result.err
    return result.err.removeprefix("cdm: ").removesuffix("\n")


@pytest.fixture(scope="session")
def cdm() -> Cdm:
    """``cdm("plan", "demo")``: run a command in this process."""
    return _run


@pytest.fixture(scope="session")
def done() -> Callable[..., Result]:
    """As ``cdm``, for commands that must succeed."""

    def run(*arguments: object) -> Result:
        result = _run(*arguments)
        assert result.status == 0, result.err
        return result

    return run


@pytest.fixture(scope="session")
def refused() -> Callable[..., str]:
    """As ``cdm``, for a user's errors: status 2 and one line ``cdm: ...``, which is returned."""
    return _refused


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def cdm_process() -> tuple[list[str], dict[str, str]]:
    """Command line and environment of ``cdm`` as a process of its own."""
    source = Path(__file__).parents[2] / "src"
    path = os.pathsep.join([str(source), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return [sys.executable, "-m", "cascaded_diffusion"], environment


NETWORK = "{channels: 32, multipliers: [1], blocks: 1, heads: 1, middle_attention: false, patch: 2}"
THREE_STAGES = f"""
name: three
flip: false
stages:
  - &base
    name: base8
    resolution: 8
    network: {NETWORK}
    diffusion: {{noise_schedule: {{kind: cosine, timesteps: 20}}, prediction: v}}
    training: &short
      {{images: 64, batch_size: 8, learning_rate: 1.0e-3, class_dropout: 0.2, ema_half_lives: [16, 4], ema_rampup: null,
       log_every: 16, preview_every: 16, preview_count: 3, checkpoint_every: 16}}
    sampling: {{sampler: ddim, steps: 5}}
  - name: sr16
    resolution: 16
    network: {NETWORK}
    diffusion: {{noise_schedule: {{kind: cosine, timesteps: null}}, prediction: v}}
    conditioning: {{augmentation: gaussian, s_max: 0.8}}
    training: *short
    sampling: {{sampler: ddim, steps: 4, augmentation: nontruncated, s: 0.2}}
  - name: sr32
    resolution: 32
    network: {NETWORK}
    diffusion: {{noise_schedule: {{kind: cosine, timesteps: 20}}}}
    conditioning: {{augmentation: blur}}
    training: *short
    sampling: {{sampler: ddim, steps: 4}}
"""
CLASSES = ("Bag", "Hat", "Shoe")


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe file: 8 -> 16 -> 32, gaussian noise at 16 and blur at 32."""
    path = tmp_path_factory.mktemp("recipe") / "three.yaml"
    path.write_text(THREE_STAGES)
    return path


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory, done: Cdm) -> Path:
    """Prepared data: 36 grey pictures of three classes at 8, 16 and 32 pixels."""
    root = tmp_path_factory.mktemp("three")
    generator = np.random.default_rng(0)
    for i in range(36):
        label = i % 3
        path = root / "pictures" / CLASSES[label] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        ramp = np.linspace(0, 120, 40)[None, :] + 50 * label + generator.integers(0, 30, (36, 1))
        Image.fromarray(ramp.astype(np.uint8)).save(path)
    done("prepare", root / "pictures", root / "data", "--resolutions", "8,16,32", "--val", "0.2", "--workers", "0")
    return root / "data"


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, done: Cdm, recipe: Path, data: Path) -> Path:
    """A folder with the run folders base8, sr16 and sr32, each trained on 32 images."""
    root = tmp_path_factory.mktemp("runs")
    for stage in ("base8", "sr16", "sr32"):
        options = ("--stage", stage, "--data", data, "--out", root / stage, "--max-images", "32")
        done("train", recipe, *options, "--device", "cpu")
    return root


@pytest.fixture(scope="session")
def cascade(tmp_path_factory: pytest.TempPathFactory, done: Cdm, runs: Path) -> Path:
    """The cascade assembled from ``runs``, with the last weights, which so short a run has moved more than averages."""
    folder = tmp_path_factory.mktemp("cascade") / "three"
    done("assemble", folder, runs / "base8", runs / "sr16", runs / "sr32", "--ema", "raw")
    return folder


@pytest.fixture(scope="session")
def relabelled(tmp_path_factory: pytest.TempPathFactory, cascade: Path) -> Callable[..., Path]:
    """``relabelled(classes=3, class_names=(...))``: the cascade's weights with other words in its configurations."""

    def make(**changes: object) -> Path:
        folder = tmp_path_factory.mktemp("relabelled") / "cascade"
        original = Cascade.from_pretrained(cascade)
        stages = [Stage(s.config.model_copy(update=changes), s.network) for s in original.stages.values()]
        Cascade(stages).save_pretrained(folder)
        return folder

    return make


@pytest.fixture
def broken(cascade: Path, tmp_path: Path) -> Path:
    """A copy of the cascade that a test may damage."""
    folder = tmp_path / "broken"
    shutil.copytree(cascade, folder)
    return folder
