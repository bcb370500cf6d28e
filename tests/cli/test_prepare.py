import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from cascaded_diffusion.cli.prepare import parse_resolutions, prepare_command
from cascaded_diffusion.data.prepared import PreparedData
from cascaded_diffusion.errors import UserError

app = typer.Typer()
app.command("prepare")(prepare_command)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for i in range(6):
        path = tmp_path / "pictures" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (16, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return tmp_path / "pictures"


def test_all_options(pictures: Path, tmp_path: Path) -> None:
    (pictures / "a/bad.png").write_text("x")
    (pictures / "a/readme.txt").write_text("x")
    options = "--resolutions 8,32 --val 0.3 --limit 4 --skip-bad --allow-upscale --workers 0"
    result = CliRunner().invoke(app, [str(pictures), str(tmp_path / "out"), *options.split()])
    assert result.exit_code == 0
    manifest = PreparedData.open(tmp_path / "out").manifest
    counts = f"{manifest.counts.train} train and {manifest.counts.val} val images"
    assert result.stdout == (
        f"{tmp_path / 'out'}: {counts}, colour, 2 classes, at 8, 32; 1 skipped; {manifest.upscaled} enlarged\n"
    )
    assert f"skipped {pictures}/a/bad.png: in no image format that can be read\n" in result.stderr
    assert "ignored as no images: 1 files, such as a/readme.txt\n" in result.stderr
    assert "checking: 7 of 7" in result.stderr
    assert manifest.request.limit == 4
    assert manifest.request.val == 0.3


def test_user_errors_pass_through(pictures: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [str(pictures), str(tmp_path / "out"), "--resolutions", "8,64"])
    assert isinstance(result.exception, UserError)
    assert "a/0.png: 20x16 pixels, too small for resolution 64" in str(result.exception)


@pytest.mark.parametrize("text", ["", "8,", "8;16", "eight", "8.5", "8,16x"])
def test_resolutions_that_are_no_numbers(text: str) -> None:
    with pytest.raises(UserError, match="give whole numbers above 0 separated by commas"):
        parse_resolutions(text)
    assert parse_resolutions("8, 16,32") == [8, 16, 32]


STOPPED_RUN = """
import signal, sys, time, typer
from cascaded_diffusion.cli import prepare, progress

def stop(self, what, done, total):
    if what == "writing train":
        print("in the middle", flush=True)
        time.sleep(60)

def end(number, frame):
    raise SystemExit(128 + number)

progress.ProgressDisplay.advance = stop
signal.signal(signal.SIGTERM, end)
app = typer.Typer()
app.command()(prepare.prepare_command)
if __name__ == "__main__":
    app()
"""


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_leave_nothing_behind(pictures: Path, tmp_path: Path, number: int, status: int) -> None:
    (tmp_path / "script.py").write_text(STOPPED_RUN)
    out = tmp_path / "results/out"
    arguments = [sys.executable, tmp_path / "script.py", pictures, out, "--resolutions", "8", "--workers", "2"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "in the middle\n"
        run.send_signal(number)
        _, errors = run.communicate(timeout=20)
    assert run.returncode == status
    assert "Traceback" not in errors
    assert list(out.parent.iterdir()) == []


def test_shards_and_columns_from_the_command_line(pictures: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a-0.tar", "w") as tar:
        for path in sorted(pictures.glob("*/*.png")):
            tar.add(path, f"{path.stem}.png")
            label = tmp_path / "label"
            label.write_text(path.parent.name)
            tar.add(label, f"{path.stem}.cls")
    options = ["--resolutions", "8", "--workers", "0"]
    result = CliRunner().invoke(app, [f"wds:{tmp_path}/a-{{0..0}}.tar", str(tmp_path / "out"), *options])
    assert result.exit_code == 0, result.exception
    assert result.stdout == f"{tmp_path / 'out'}: 6 train and 0 val images, colour, 2 classes, at 8\n"
    assert "reading: 6 of 6" in result.stderr
    result = CliRunner().invoke(app, [f"wds:{tmp_path}/a-0.tar", str(tmp_path / "x"), *options, "--label-column", "a"])
    assert isinstance(result.exception, UserError)
    assert "has no columns and subsets to choose" in str(result.exception)
