"""tools/audit.py: that nothing was found is said only where everything was looked up."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

CLEAN = {"name": "numpy", "version": "2.0", "vulns": []}
SKIPPED = {"name": "zipp", "skip_reason": "Dependency not found on PyPI and could not be audited: zipp (4.1.2)"}
HOLED = {
    "name": "pillow",
    "version": "9.0",
    "vulns": [{"id": "CVE-1", "fix_versions": ["9.1", "10.0"]}, {"id": "CVE-2", "fix_versions": []}],
}


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """tools/audit.py."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "tools")
    return importlib.import_module("audit")


@pytest.mark.parametrize(
    "packages, status, lines",
    [
        ([CLEAN], 0, ["audit: no vulnerability known in 1 packages"]),
        ([CLEAN, SKIPPED], 2, ["audit: 1 of 2 packages could not be looked up from here (zipp)"]),
        ([SKIPPED] * 5, 2, ["audit: 5 of 5 packages could not be looked up from here (zipp, zipp, zipp, ...)"]),
        ([], 2, ["audit: 0 of 0 packages could not be looked up from here ()"]),
        (
            [CLEAN, HOLED, SKIPPED],
            1,
            ["pillow 9.0: CVE-1, mended in 9.1, 10.0", "pillow 9.0: CVE-2, mended in no version"],
        ),
    ],
)
def test_verdicts(tool: ModuleType, packages: list[dict[str, Any]], status: int, lines: list[str]) -> None:
    assert tool.verdict({"dependencies": packages, "fixes": []}) == (status, lines)
