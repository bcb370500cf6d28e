"""The part about a run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from PIL import Image

from cascaded_diffusion.errors import UserError
from cascaded_diffusion.report.runs import compare_runs, read_run, run_part


@pytest.fixture
def run(tmp_path: Path, tiny_runs: Mapping[str, Path]) -> Path:
    """A copy of a run folder that a test may change, without its checkpoints."""
    folder = tmp_path / "run"
    shutil.copytree(tiny_runs["base8"], folder, ignore=shutil.ignore_patterns("checkpoints", "previews"))
    return folder


def test_a_run_shows_its_losses_and_settings(tiny_runs: Mapping[str, Path]) -> None:
    record = read_run("mine", tiny_runs["sr16"])
    part = run_part(record)
    assert part.title == "Run: mine (sr16)"
    assert part.body.count("<svg") == 4  # loss, loss by time, gradient norm, learning rate
    assert f"{record.metrics[-1]['images']:,} of {record.config.training.images:,}" in part.body
    assert "gaussian augmentation" in part.body
    assert "<details>" in part.body


def test_the_losses_by_time_have_a_line_for_every_part_of_it(tiny_runs: Mapping[str, Path]) -> None:
    body = run_part(read_run("mine", tiny_runs["base8"])).body
    assert all(f"{i}/8 to {i + 1}/8" in body for i in range(8))


def test_a_run_that_has_only_begun_says_what_is_missing(run: Path) -> None:
    (run / "metrics.jsonl").unlink()
    body = run_part(read_run("mine", run)).body
    assert "No loss was logged yet" in body
    assert "training.preview_every" in body
    assert "0 of" in body


def test_a_half_written_last_line_belongs_to_a_run_that_goes_on(run: Path) -> None:
    whole = read_run("mine", run).metrics
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"images": 9')
    assert read_run("mine", run).metrics == whole


@pytest.mark.parametrize(
    "line", ["[]", "x", '{"images": 9, "loss": NaN, "loss_by_time": []}', '{"images": 9, "loss": 1, "loss_by_time": 3}']
)
def test_a_damaged_log_is_named_with_its_line(run: Path, line: str) -> None:
    path = run / "metrics.jsonl"
    count = len(path.read_text().splitlines())
    with path.open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(UserError, match=rf"metrics\.jsonl: line {count + 1}[ :]"):
        read_run("mine", run)


def test_of_many_previews_the_first_and_the_last_are_shown_and_some_between(run: Path) -> None:
    (run / "previews").mkdir()
    for images in range(100, 1200, 100):
        Image.new("L", (4, 4), images % 250).save(run / "previews" / f"{images:012d}.png")
    shown = [images for images, _ in read_run("mine", run).previews]
    assert len(shown) == 6
    assert (shown[0], shown[-1]) == (100, 1100)
    assert run_part(read_run("mine", run)).body.count("data:image/png;base64,") == 6


def test_a_single_preview_is_shown(run: Path) -> None:
    (run / "previews").mkdir()
    Image.new("L", (4, 4)).save(run / "previews" / "000000000100.png")
    assert [images for images, _ in read_run("mine", run).previews] == [100]


def test_a_damaged_preview_is_named(run: Path) -> None:
    (run / "previews").mkdir()
    (run / "previews" / "000000000100.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"000000000100\.png: not a readable PNG"):
        read_run("mine", run)


def test_runs_are_compared_in_one_chart_whatever_they_are_called(tiny_runs: Mapping[str, Path]) -> None:
    runs = [read_run(f"_{name} <x>", path) for name, path in tiny_runs.items()]
    body = compare_runs(runs).body
    assert body.count("<svg") == 1
    assert "base8 &lt;x&gt;" in body
    assert "sr16 &lt;x&gt;" in body


def test_the_settings_on_the_page_are_those_recorded(run: Path) -> None:
    raw = json.loads((run / "config.json").read_text())
    assert f"&quot;learning_rate&quot;: {raw['training']['learning_rate']}" in run_part(read_run("mine", run)).body


@pytest.mark.parametrize(
    "change",
    [
        {"loss": 1e300},
        {"loss": True},
        {"loss": "0.5"},
        {"images": -1},
        {"images": 2**60},
        {"images": 1.5},
        {"loss_by_time": [0.1] * 101},
        {"loss_by_time": {"a": 1}},
        {"loss_by_time": ["x"]},
    ],
)
def test_lines_that_no_chart_can_show_are_refused(run: Path, change: dict[str, object]) -> None:
    line = {"images": 8, "loss": 0.5, "loss_by_time": [0.5]}
    (run / "metrics.jsonl").write_text(f"{json.dumps(line)}\n{json.dumps(line | change)}\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl: line 2 is not one of a run's log"):
        read_run("mine", run)


def test_a_preview_as_large_as_no_browser_shows_is_refused(run: Path) -> None:
    (run / "previews").mkdir()
    Image.new("1", (40_000, 1)).save(run / "previews" / "000000000100.png")
    with pytest.raises(UserError, match=r"000000000100\.png: a picture of 40000x1 pixels"):
        read_run("mine", run)
    with (run / "previews" / "000000000100.png").open("r+b") as file:
        file.truncate(2**40)
    with pytest.raises(UserError, match=r"000000000100\.png: 1099511627776 bytes, at most"):
        read_run("mine", run)
