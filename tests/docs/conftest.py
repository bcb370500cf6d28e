"""A folder for the blocks of a page, with the data that pages may count on, and ``cdm`` on the path."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cascaded_diffusion.data.fashion_mnist import CLASS_NAMES
from cascaded_diffusion.data.prepare import prepare
from cascaded_diffusion.demo.run import IMAGES

SOURCE = Path(__file__).parents[2] / "src"
SERVER = Path(__file__).with_name("warm_cdm.py")
SHIM = Path(__file__).with_name("cdm_shim.py")


@pytest.fixture(scope="session")
def page_material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``data``, 500 images of Fashion-MNIST at 8, 16 and 32 pixels, and ``PICTURES``, 24 in three class folders."""
    root = tmp_path_factory.mktemp("material")
    with np.load(IMAGES) as archive:
        np.savez(root / "some.npz", arr_0=archive["arr_0"][:500], arr_1=archive["arr_1"][:500])
    prepare(str(root / "some.npz"), root / "data", resolutions=[8, 16, 32], val=0.2, workers=0)
    (root / "some.npz").unlink()
    manifest = json.loads((root / "data/manifest.json").read_text())
    (root / "data/manifest.json").write_text(json.dumps(manifest | {"class_names": list(CLASS_NAMES)}))
    generator = np.random.default_rng(0)
    for i in range(24):
        folder = root / "PICTURES" / ("birds", "boats", "bread")[i % 3]
        folder.mkdir(parents=True, exist_ok=True)
        coarse = generator.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((90 + i, 72 + i)).save(folder / f"{i:02}.png")
    return root


@pytest.fixture(scope="session")
def page_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of the blocks: this interpreter as ``python``, ``cdm`` from this checkout, and no network."""
    root = tmp_path_factory.mktemp("path")
    address = str(root / "cdm.socket")
    base = {
        **{
            name: os.environ[name]
            for name in ("HOME", "LANG", "TMPDIR", "CASCADED_DIFFUSION_CACHE")
            if name in os.environ
        },
        "PATH": f"{root}:/usr/bin:/bin",
        "PYTHONPATH": str(SOURCE),
        "OMP_NUM_THREADS": "1",
        "CDM_SOCKET": address,
        "HF_HUB_OFFLINE": "1",
        **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9"),
        **dict.fromkeys(("no_proxy", "NO_PROXY"), "127.0.0.1,localhost"),
    }
    for name, words in (("cdm", ["-IS", str(SHIM)]), ("python", [])):
        (root / name).write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, *words])} "$@"\n')
        (root / name).chmod(0o755)
    with subprocess.Popen([sys.executable, str(SERVER), address], env=base) as server:
        try:
            _await(Path(address), server)
            yield base
        finally:
            server.kill()


def _await(socket: Path, server: subprocess.Popen[bytes], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not socket.exists():
        assert server.poll() is None, "the process that runs cdm has ended"
        assert time.monotonic() < end, "the process that runs cdm does not answer"
        time.sleep(0.05)


@pytest.fixture
def page_folder(page_material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with copies of ``data`` and ``PICTURES``."""
    for name in ("data", "PICTURES"):
        shutil.copytree(page_material / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path
