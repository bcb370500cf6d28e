"""The user's cache: one place for all that is kept there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cascaded_diffusion.cache import cache_folder


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert str(cache_folder()) == os.environ["CASCADED_DIFFUSION_CACHE"]
    monkeypatch.delenv("CASCADED_DIFFUSION_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "cascaded-diffusion"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "cascaded-diffusion"
