"""``tracking.json``: what each tracker knows of a run, so that a resumed run tells it the rest, and nothing twice.

Losing the file loses no result: the trackers then begin a new run of theirs, from ``metrics.jsonl``.
"""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from cascaded_diffusion.config import StrictModel, explain
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.files import read_json, write_json

__all__ = ["TRACKING_FILE", "Known", "TrackingRecord", "read_record", "write_record"]

TRACKING_FILE = "tracking.json"


def _identity() -> str:
    return uuid.uuid4().hex[:12]


class Known(StrictModel):
    """What one tracker has been told."""

    identity: str = Field(
        default_factory=_identity, pattern=r"^[0-9a-z]{4,32}$", description="Names the run in that tracker."
    )
    config: str | None = Field(
        default=None, pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the configuration it was given last."
    )
    rows: int = Field(default=0, ge=0, le=10**15, description="Images seen at the last line of metrics.jsonl it has.")
    pictures: int = Field(default=0, ge=0, le=10**15, description="Images seen at the last preview it has.")


class TrackingRecord(StrictModel):
    """The content of ``tracking.json``."""

    format_version: Literal[1] = Field(default=1, description="Version of this file's layout.")
    trackers: dict[Literal["tensorboard", "wandb", "trackio"], Known] = Field(
        default_factory=dict, max_length=3, description="What each tracker has been told."
    )


def read_record(folder: Path) -> TrackingRecord:
    """The folder's record, empty if it has none; ``UserError`` names what is wrong with it."""
    path = folder / TRACKING_FILE
    if not path.exists():
        return TrackingRecord()
    try:
        return TrackingRecord.model_validate(read_json(path, limit=2**20))
    except ValidationError as error:
        raise UserError(f"{path}: {explain(error)}; delete it, and the trackers begin new runs") from None


def write_record(folder: Path, record: TrackingRecord) -> None:
    """Replace the folder's record."""
    write_json(folder / TRACKING_FILE, record.model_dump(mode="json"))
