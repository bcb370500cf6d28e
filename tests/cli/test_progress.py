"""A bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from cascaded_diffusion.cli import progress
from cascaded_diffusion.cli.progress import ProgressDisplay


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_plain_lines(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressDisplay() as display:
        for done in range(0, 1001, 10):
            display.advance("checking", done, 1000)
            clock.now += 0.5
        display.note("a note")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "checking: 200 of 1,000, 20 images/s, 40 s left",
        "checking: 400 of 1,000, 20 images/s, 30 s left",
        "checking: 600 of 1,000, 20 images/s, 20 s left",
        "checking: 800 of 1,000, 20 images/s, 10 s left",
        "checking: 1,000 of 1,000, 20 images/s",
        "a note",
    ]


def test_speed_is_that_of_this_process(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressDisplay() as display:
        display.begin("base16", 5_000)
        clock.now += 20
        display.advance("base16", 5_100, 5_200)
    assert capsys.readouterr().err == "base16: 5,100 of 5,200, 5 images/s, 20 s left\n"


def test_each_work_has_its_own_clock(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressDisplay() as display:
        display.advance("one", 0, 100)
        clock.now += 10
        display.advance("one", 100, 100)
        display.advance("two", 0, 100)
        clock.now += 20
        display.advance("two", 100, 100)
    assert capsys.readouterr().err == "one: 100 of 100, 10 images/s\ntwo: 100 of 100, 5 images/s\n"


def test_nothing_of_its_own_on_stdout(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressDisplay() as display:
        display.advance("samples", 1, 1)
    assert capsys.readouterr().out == ""


BAR = """
import sys, time
sys.path.insert(0, sys.argv[1])
from cascaded_diffusion.cli.progress import ProgressDisplay
with ProgressDisplay() as display:
    for done in range(9):
        display.advance("samples", done, 8)
        time.sleep(0.05)
    display.note("loss [0.5] and more")
print("the end")
"""


def test_bar_on_a_terminal() -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"} | {"NO_COLOR": ""}
    arguments = [sys.executable, "-c", BAR, str(Path(progress.__file__).parents[2])]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=theirs, env=environment) as run:
        os.close(theirs)
        shown = b""
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:  # what a terminal gives when its other end is closed
                break
            if not part:
                break
            shown += part
        os.close(ours)
        assert run.stdout is not None
        assert run.stdout.read() == b"the end\n"
    text = shown.decode()
    assert run.returncode == 0
    assert "\x1b[" in text
    assert "━" in text
    assert "8/8" in text
    assert "images/s" in text
    assert "0:00:00" in text
    assert "loss [0.5] and more" in text
    assert "of 8" not in text
