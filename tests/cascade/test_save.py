from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cascaded_diffusion.cascade.manifest import CascadeManifest, verify_stage
from cascaded_diffusion.cascade.save import write_cascade
from cascaded_diffusion.cascade.stage import Stage, StageConfig

Configure = Callable[..., StageConfig]


def test_what_is_written_is_what_is_read(
    tmp_path: Path, random_stage: Callable[..., Stage], base_config: Configure, sr_config: Configure
) -> None:
    stages = [random_stage(base_config()), random_stage(sr_config())]
    parts = [(stage, stage.config.sampling, stage.name == "sr16", {"images": 5}) for stage in stages]
    written = write_cascade(tmp_path / "cascade", parts)
    assert CascadeManifest.read(tmp_path / "cascade") == written
    assert [entry.truncated for entry in written.stages] == [False, True]
    assert written.provenance["torch"] == torch.__version__
    for entry in written.stages:
        verify_stage(tmp_path / "cascade" / entry.folder, entry)


def test_a_failure_leaves_nothing(
    tmp_path: Path, random_stage: Callable[..., Stage], base_config: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("disk full")

    stage = random_stage(base_config())
    monkeypatch.setattr("cascaded_diffusion.cascade.save.write_json", fail)
    with pytest.raises(OSError, match="disk full"):
        write_cascade(tmp_path / "cascade", [(stage, stage.config.sampling, False, {})])
    assert list(tmp_path.iterdir()) == []
