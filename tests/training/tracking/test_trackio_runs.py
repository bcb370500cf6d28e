"""Against a stand-in that takes what the documented interface takes, and nothing else."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cascaded_diffusion.training.tracking.base import Place, check_trackers
from cascaded_diffusion.training.tracking.trackio_runs import TrackioTracker


class FakeRun:
    """``trackio.Run``, as far as it is used; it talks on stdout as the real one does."""

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.rows: list[tuple[int | None, dict[str, Any]]] = []

    def log(self, metrics: dict[str, Any], step: int | None = None) -> None:
        self.rows.append((step, metrics))

    def finish(self) -> None:
        sys.stdout.write("* Run finished\n")


@pytest.fixture
def runs(stand_in: Callable[..., Any]) -> list[FakeRun]:
    """The runs that a stand-in for trackio has opened."""
    opened: list[FakeRun] = []

    def init(project: str, *, name: str, config: dict[str, Any], resume: str, embed: bool) -> FakeRun:
        sys.stdout.write("* Trackio project initialized\n")
        assert not any(key.startswith("_") for key in config)
        run = FakeRun(project=project, name=name, config=config, resume=resume, embed=embed)
        opened.append(run)
        return run

    stand_in(
        "trackio",
        init=init,
        Image=lambda picture: ("image", picture.shape),
        Table=lambda columns, data: ("table", columns, data),
    )
    return opened


def test_a_run(runs: list[FakeRun], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check_trackers(["trackio"]) == ("trackio",)
    tracker = TrackioTracker(Place(tmp_path / "base16", "0123abcd"))
    tracker.config({"class_names": ["a", "b"]})
    tracker.scalars(8, {"loss": 0.5})
    tracker.image(8, "preview", np.zeros((4, 6, 3), np.uint8))
    tracker.table(9, "points", ["s"], [[0.1]])
    tracker.close()
    (run,) = runs
    assert run.options == {
        "project": "cascaded-diffusion",
        "name": "base16-0123abcd",
        "config": {"class_names": ["a", "b"]},
        "resume": "allow",
        "embed": False,
    }
    assert run.rows == [
        (8, {"loss": 0.5}),
        (8, {"preview": ("image", (4, 6, 3))}),
        (9, {"points": ("table", ["s"], [[0.1]])}),
    ]
    captured = capsys.readouterr()
    assert captured.out == ""  # stdout is the command's own
    assert "Run finished" in captured.err


def test_closing_what_was_never_opened(runs: list[FakeRun], tmp_path: Path) -> None:
    TrackioTracker(Place(tmp_path, "0123abcd")).close()
    assert runs == []
