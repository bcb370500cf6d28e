"""Write requirements.lock: the pins of constraints.txt with the hash of each archive, for everything but torch.

    python tools/make_lock.py

pip is asked which archive it would install of every pin, and nothing is installed. The hashes are of the archives for
the Python and platform that this runs on; the file says which. constraints.txt stays without hashes: pip would refuse
the editable install and the CPU's build of torch in its hash mode. To install from the lock:

    pip install --no-deps --require-hashes -r requirements.lock
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PINS, LOCK = ROOT / "constraints.txt", ROOT / "requirements.lock"
WITHOUT_HASH = frozenset({"torch"})  # built for the CPU or for one of several versions of CUDA

_PIN = re.compile(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.!+_-]+)")
_LOCKED = re.compile(_PIN.pattern + r"((?: --hash=sha256:[0-9a-f]{64})+)")


def canonical(name: str) -> str:
    """A project's name as all its spellings are compared."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _entries(text: str) -> list[str]:
    joined = text.replace("\\\n", " ")
    return [" ".join(line.split()) for line in joined.splitlines() if line.strip() and not line.startswith("#")]


def read_pins(text: str) -> dict[str, str]:
    """Name to version of a file of exact pins; ``ValueError`` names a line that is none."""
    pins = {}
    for line in _entries(text):
        match = _PIN.fullmatch(line)
        if match is None or canonical(match[1]) in pins:
            raise ValueError(f"not an exact pin, or one of a project that has one: {line}")
        pins[canonical(match[1])] = match[2]
    return pins


def read_lock(text: str) -> dict[str, tuple[str, frozenset[str]]]:
    """Name to version and hashes of a lock; ``ValueError`` names a line that is not a pin with hashes."""
    locked = {}
    for line in _entries(text):
        match = _LOCKED.fullmatch(line)
        if match is None or canonical(match[1]) in locked:
            raise ValueError(f"not a pin with SHA-256 hashes, or one of a project that has one: {line}")
        locked[canonical(match[1])] = (match[2], frozenset(re.findall(r"[0-9a-f]{64}", match[3])))
    return locked


def disagreements(pins: dict[str, str], locked: dict[str, tuple[str, frozenset[str]]]) -> list[str]:
    """What is in one file and not in the other, a line each."""
    wanted = {name: version for name, version in pins.items() if name not in WITHOUT_HASH}
    found = {name: version for name, (version, _) in locked.items()}
    return [
        f"{name}: {wanted.get(name, 'nothing')} in {PINS.name}, {found.get(name, 'nothing')} in {LOCK.name}"
        for name in sorted(wanted.keys() | found.keys())
        if wanted.get(name) != found.get(name)
    ]


def _ask_pip(pins: dict[str, str]) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        options = ["--dry-run", "--ignore-installed", "--no-deps", "--quiet", "--report", str(report)]
        wanted = [f"{name}=={version}" for name, version in pins.items()]
        subprocess.run([sys.executable, "-m", "pip", "install", *options, *wanted], check=True)
        install: list[dict[str, Any]] = json.loads(report.read_text())["install"]
    return install


def main() -> None:
    """Write the lock."""
    pins = {name: version for name, version in read_pins(PINS.read_text()).items() if name not in WITHOUT_HASH}
    hashes = {
        canonical(each["metadata"]["name"]): each["download_info"]["archive_info"]["hashes"]["sha256"]
        for each in _ask_pip(pins)
    }
    where = f"{platform.python_implementation()} {sys.version_info.major}.{sys.version_info.minor}, {platform.system()}"
    lines = [
        f"# The pins of {PINS.name} but for {', '.join(sorted(WITHOUT_HASH))}, with the hashes of their archives for",
        f"# {where} {platform.machine()}; written by tools/make_lock.py. To install from it:",
        "# pip install --no-deps --require-hashes -r requirements.lock",
        *(f"{name}=={version} \\\n    --hash=sha256:{hashes[name]}" for name, version in pins.items()),
    ]
    LOCK.write_text("\n".join(lines) + "\n")
    sys.stdout.write(f"{LOCK.name}: {len(pins)} archives\n")


if __name__ == "__main__":
    main()
