"""requirements.lock says what constraints.txt says, with hashes, and names no host."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
HASH = "0123456789abcdef" * 4


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """tools/make_lock.py."""
    monkeypatch.syspath_prepend(ROOT / "tools")
    return importlib.import_module("make_lock")


def test_every_pin_but_torch_is_locked_at_its_version(tool: ModuleType) -> None:
    pins = tool.read_pins((ROOT / "constraints.txt").read_text())
    locked = tool.read_lock((ROOT / "requirements.lock").read_text())
    assert tool.disagreements(pins, locked) == []
    assert "torch" in pins
    assert "torch" not in locked


def test_no_host_is_named() -> None:
    text = (ROOT / "requirements.lock").read_text()
    assert not re.search(r"://|--(extra-)?index-url|--find-links|--trusted-host|@", text)


def test_disagreements_are_told(tool: ModuleType) -> None:
    pins = tool.read_pins("# a comment\nTorch==2.0\nPyYAML==6.0\nruff==1.0\nnumpy==2.0\n")
    locked = tool.read_lock(
        f"pyyaml==6.0 \\\n    --hash=sha256:{HASH} \\\n    --hash=sha256:{HASH[::-1]}\n"
        f"ruff==1.1 --hash=sha256:{HASH}\nextra==3 --hash=sha256:{HASH}\n"
    )
    assert locked["pyyaml"] == ("6.0", frozenset({HASH, HASH[::-1]}))
    assert tool.disagreements(pins, locked) == [
        "extra: nothing in constraints.txt, 3 in requirements.lock",
        "numpy: 2.0 in constraints.txt, nothing in requirements.lock",
        "ruff: 1.0 in constraints.txt, 1.1 in requirements.lock",
    ]


@pytest.mark.parametrize("text", ["numpy>=2", "numpy", "numpy==2.0\nNumPy==2.1", "numpy==2.0 ; python_version > '3'"])
def test_what_is_no_exact_pin_is_refused(tool: ModuleType, text: str) -> None:
    with pytest.raises(ValueError, match="not an exact pin"):
        tool.read_pins(text)


@pytest.mark.parametrize(
    "text",
    [
        "numpy==2.0",
        f"numpy==2.0 --hash=sha256:{HASH[:-1]}",
        f"numpy==2.0 --hash=md5:{HASH}",
        f"numpy==2.0 --hash=sha256:{HASH}\nNumPy==2.0 --hash=sha256:{HASH}",
    ],
)
def test_what_has_no_hash_is_refused(tool: ModuleType, text: str) -> None:
    with pytest.raises(ValueError, match="not a pin with SHA-256 hashes"):
        tool.read_lock(text)
