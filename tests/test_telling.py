"""Lines on stderr: written where they can be, and never the end of the work."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cascaded_diffusion.telling import tell


def test_a_line_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    tell("one line")
    assert capsys.readouterr().err == "one line\n"


@pytest.mark.parametrize("stderr", ["2>/dev/full", "2>&-"])
def test_where_nothing_can_be_written_work_goes_on(stderr: str) -> None:
    code = "from cascaded_diffusion.telling import tell; tell('lost'); tell('too'); print('done')"
    ended = subprocess.run(f'"{sys.executable}" -c "{code}" {stderr}', shell=True, capture_output=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, b"done\n")
