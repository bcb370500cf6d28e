"""Packaged cascades, folders, and what is neither; the hub is in tests/interop/test_hub.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from cascaded_diffusion.cascade import find
from cascaded_diffusion.cascade.chain import Cascade
from cascaded_diffusion.cascade.find import find_cascade, packaged_cascades
from cascaded_diffusion.errors import UserError


def test_packaged_names_win_over_folders(
    tiny_cascade_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(find, "packaged_cascades", lambda: {"shipped": tiny_cascade_folder})
    (tmp_path / "shipped").mkdir()
    monkeypatch.chdir(tmp_path)
    assert list(Cascade.from_pretrained("shipped").stages) == ["base8", "sr16"]
    with pytest.raises(UserError, match=r"packaged \(shipped\); did you mean shipped\?"):
        Cascade.from_pretrained("shiped")
    assert find_cascade("shipped") == (tiny_cascade_folder, "packaged")


def test_a_misspelt_folder_is_not_looked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match="cascade: 'runs/base16' is no folder; the hub is not asked, for runs is one here"
    ):
        find_cascade("runs/base16")


@pytest.mark.parametrize("name", sorted(packaged_cascades()))
def test_every_packaged_cascade_opens_and_samples(name: str) -> None:
    cascade = Cascade.from_pretrained(name)
    assert len(cascade.sample(1, steps=1)) == 1
