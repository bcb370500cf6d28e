"""Against a stand-in that takes what the documented interface takes, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cascaded_diffusion.training.tracking.base import Place, check_trackers
from cascaded_diffusion.training.tracking.weights_and_biases import WandbTracker


class FakeSettings:
    """``wandb.Settings``: refuses what it does not know."""

    model_fields: dict[str, Any] = {"console": None, "finish_timeout": None}  # noqa: RUF012

    def __init__(self, **values: Any) -> None:
        assert set(values) <= set(self.model_fields)
        self.values = values


class OldSettings(FakeSettings):
    """As of a release without a limit on finishing."""

    model_fields: dict[str, Any] = {"console": None}  # noqa: RUF012


class FakeConfig(dict[str, Any]):
    """``run.config``: a changed value is refused unless that is allowed."""

    def update(self, values: dict[str, Any], allow_val_change: bool = False) -> None:  # type: ignore[override]
        changed = [key for key in values if key in self and self[key] != values[key]]
        assert not changed or allow_val_change
        super().update(values)


class FakeRun:
    """``wandb.Run``, as far as it is used."""

    def __init__(self, **options: Any) -> None:
        self.options, self.config = options, FakeConfig()
        self.rows: list[dict[str, Any]] = []
        self.metrics: list[tuple[str, str | None]] = []
        self.finished = 0

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.metrics.append((name, step_metric))

    def log(self, data: dict[str, Any]) -> None:
        self.rows.append(data)

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def runs(stand_in: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> list[FakeRun]:
    """The runs that a stand-in for wandb has opened."""
    opened: list[FakeRun] = []

    def init(
        *,
        id: str,
        name: str,
        dir: str,
        resume: str,
        reinit: str,
        settings: FakeSettings,
        project: str | None = None,
    ) -> FakeRun:
        options = {"id": id, "name": name, "dir": dir, "resume": resume, "reinit": reinit, "project": project}
        run = FakeRun(**options, settings=settings.values)
        opened.append(run)
        return run

    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    stand_in(
        "wandb",
        init=init,
        Settings=FakeSettings,
        Image=lambda picture: ("image", picture.shape),
        Table=lambda columns, data: ("table", columns, data),
    )
    return opened


def test_a_run(runs: list[FakeRun], tmp_path: Path) -> None:
    assert check_trackers(["wandb"]) == ("wandb",)
    folder = tmp_path / "base16"
    tracker = WandbTracker(Place(folder, "0123abcd"))
    tracker.config({"class_names": ["a", "b"], "training": {"learning_rate": 1e-4}})
    tracker.config({"class_names": ["a", "b"], "training": {"learning_rate": 2e-4}})
    tracker.scalars(8, {"loss": 0.5, "lr": 1e-4})
    tracker.image(8, "preview", np.zeros((4, 6, 3), np.uint8))
    tracker.table(9, "points", ["s"], [[0.1]])
    tracker.close()
    (run,) = runs
    assert run.options == {
        "id": "0123abcd",
        "name": "base16",
        "dir": str(folder),
        "resume": "allow",
        "reinit": "create_new",
        "project": "cascaded-diffusion",
        "settings": {"console": "off", "finish_timeout": 300.0},
    }
    assert run.metrics == [("images", None), ("*", "images")]
    assert run.config == {"class_names": ["a", "b"], "training": {"learning_rate": 2e-4}}
    assert run.rows == [
        {"images": 8, "loss": 0.5, "lr": 1e-4},
        {"images": 8, "preview": ("image", (4, 6, 3))},
        {"images": 9, "points": ("table", ["s"], [[0.1]])},
    ]
    assert run.finished == 1


def test_the_user_s_own_project_is_kept(runs: list[FakeRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    WandbTracker(Place(tmp_path, "0123abcd"))
    assert runs[0].options["project"] is None  # wandb reads the variable itself


def test_an_older_release_without_a_limit_on_finishing(
    runs: list[FakeRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wandb.Settings", OldSettings)
    WandbTracker(Place(tmp_path, "0123abcd"))
    assert runs[0].options["settings"] == {"console": "off"}
