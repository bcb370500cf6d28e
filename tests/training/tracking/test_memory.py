from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cascaded_diffusion.errors import UserError
from cascaded_diffusion.training.tracking.memory import Known, TrackingRecord, read_record, write_record


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert read_record(tmp_path) == TrackingRecord()
    record = TrackingRecord(trackers={"wandb": Known(rows=30, pictures=20, config="a" * 64)})
    write_record(tmp_path, record)
    assert read_record(tmp_path) == record


def test_every_run_has_a_name_of_its_own() -> None:
    assert Known().identity != Known().identity


@pytest.mark.parametrize(
    "value, words",
    [
        ({"trackers": {"wandb": {"identity": "../../x"}}}, "trackers.wandb.identity"),
        ({"trackers": {"wandb": {"rows": -1}}}, "trackers.wandb.rows"),
        ({"trackers": {"mlflow": {}}}, "trackers.mlflow"),
        ({"trackres": {}}, "trackres: unknown key; did you mean trackers?"),
        ([], "tracking.json"),
    ],
)
def test_a_damaged_record_is_named_with_its_remedy(value: Any, words: str, tmp_path: Path) -> None:
    (tmp_path / "tracking.json").write_text(json.dumps(value))
    with pytest.raises(UserError) as caught:
        read_record(tmp_path)
    line = str(caught.value)
    assert words in line
    assert line.startswith(str(tmp_path / "tracking.json"))
    assert "delete it" in line
