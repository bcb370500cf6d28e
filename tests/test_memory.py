"""Main memory: what is kept of it."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from cascaded_diffusion import memory

HELD = """
import sys, torch
from cascaded_diffusion.memory import keep_freed

def held():
    words = open("/proc/self/statm").read().split()
    return int(words[1]) * 4096

if sys.argv[1] == "keep":
    assert keep_freed()
before = held()
large = torch.ones(64 * 2**20)
assert held() - before > 200 * 2**20
del large
print(held() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's own account")
@pytest.mark.parametrize("how, kept", [("usual", False), ("keep", True)])
def test_freed_memory_is_kept_only_if_told_so(how: str, kept: bool) -> None:
    done = subprocess.run([sys.executable, "-c", HELD, how], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (int(done.stdout) > 200 * 2**20) == kept


def test_elsewhere_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail("called the C library"))
    assert not memory.keep_freed()


def test_a_c_library_without_the_call_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert not memory.keep_freed()
