"""``cdm ui``."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that is in use."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


@pytest.mark.parametrize(
    "options, words",
    [
        (("nowhere",), "cascade: 'nowhere' is neither a folder nor packaged"),
        (("demo", "--port", "0"), "'--port': '0'; allowed: whole numbers from 1"),
        (("demo", "--port", "65536"), "65536; allowed: 1 to 65535"),
        (("demo", "--port", "http"), "'--port': 'http'"),
        (("demo", "--max-num", "0"), "'--max-num': '0'"),
        (("demo", "--device", "abacus"), "--device: 'abacus'"),
        (("demo", "--host", "203.0.113.1"), "--host: '203.0.113.1' is not an address of this machine"),
        ((), "Missing argument 'CASCADE'"),
    ],
)
def test_what_is_wrong_is_named(refused: Callable[..., str], options: tuple[str, ...], words: str) -> None:
    assert words in refused("ui", *options)


def test_a_port_in_use_is_named(refused: Callable[..., str], taken: int) -> None:
    assert f"--port: {taken} cannot be used on 127.0.0.1" in refused("ui", "demo", "--port", taken)


def test_a_missing_extra_is_named(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cascaded_diffusion.cli.ui.find_spec", lambda name: None)
    line = refused("ui", "demo")
    assert line.endswith("pip install 'cascaded-diffusion[ui]'")


def test_neither_help_nor_sampling_imports_gradio(cdm_process: Any, tmp_path: Path) -> None:
    _, environment = cdm_process
    code = (
        "import sys, contextlib\n"
        "from cascaded_diffusion.cli.app import main\n"
        "with contextlib.suppress(SystemExit): main(sys.argv[1:])\n"
        "assert not {'gradio', 'fastapi', 'uvicorn'} & set(sys.modules), sys.modules\n"
    )
    for arguments in (
        ["ui", "--help"],
        ["sample", "demo", "--out", str(tmp_path / "x.npz"), "--num", "1", "--steps", "1"],
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it(
    cdm_process: Any, tiny_cascade_folder: Path, tmp_path: Path, number: int, status: int
) -> None:
    """With a page open, whose connection would stay for ever, and leaving no files behind."""
    command, environment = cdm_process
    environment = {**environment, "TMPDIR": str(tmp_path)}
    arguments = [*command, "ui", str(tiny_cascade_folder), "--device", "cpu", "--host", "0.0.0.0"]
    process = subprocess.Popen(
        arguments, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().split()[0]
        assert urllib.request.urlopen(url, timeout=30).status == 200
        beats = urllib.request.urlopen(f"{url}gradio_api/heartbeat/abc", timeout=30)
        threading.Thread(target=beats.read, args=(1,), daemon=True).start()
        began = time.monotonic()
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        assert process.returncode == status
        assert time.monotonic() - began < 30
        beats.close()
    finally:
        process.kill()
        process.wait()
    lines = err.splitlines()
    assert "0.0.0.0: whoever reaches this machine can use the page; it asks for no password" in lines
    assert [line for line in lines if "Traceback" in line or "Error" in line] == []
    assert list(tmp_path.iterdir()) == []
