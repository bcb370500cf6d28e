"""Look the pinned packages up among known vulnerabilities, with pip-audit in an environment of its own.

The status is 0 if none is known, 1 if some are, and 2 if the advisory service could not be asked about every package;
that is then said in one line. Torch is not in the lock, so it is not looked up.
"""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT / ".venv-audit"


def verdict(report: dict[str, Any]) -> tuple[int, list[str]]:
    """Exit status and lines of a pip-audit report in JSON. A package that it skipped was not looked up."""
    packages = report["dependencies"]
    skipped = [each["name"] for each in packages if "skip_reason" in each]
    found = [
        f"{each['name']} {each['version']}: {hole['id']}, mended in {', '.join(hole['fix_versions']) or 'no version'}"
        for each in packages
        for hole in each.get("vulns", [])
    ]
    if found:
        return 1, found
    if skipped or not packages:
        named = ", ".join(skipped[:3]) + (", ..." if len(skipped) > 3 else "")
        return 2, [f"audit: {len(skipped)} of {len(packages)} packages could not be looked up from here ({named})"]
    return 0, [f"audit: no vulnerability known in {len(packages)} packages"]


def _last_line(text: str) -> str:
    return next((line.strip()[:200] for line in reversed(text.splitlines()) if line.strip()), "it said nothing")


def main() -> int:
    """Ask, and say."""
    if not (HOME / "bin" / "pip-audit").exists():
        venv.create(HOME, with_pip=True)
        install = [str(HOME / "bin" / "python"), "-m", "pip", "install", "--quiet", "pip-audit"]
        done = subprocess.run(install, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.stderr.write(f"audit: pip-audit cannot be installed here: {_last_line(done.stderr)}\n")
            return 2
    # The lock holds every package with its version, so nothing has to be resolved or downloaded.
    options = ["--disable-pip", "--no-deps", "--progress-spinner", "off", "--format", "json"]
    command = [str(HOME / "bin" / "pip-audit"), *options, "--requirement", str(ROOT / "requirements.lock")]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        status, lines = verdict(json.loads(asked.stdout))
    except ValueError:
        status, lines = 2, [f"audit: the advisory service cannot be asked from here: {_last_line(asked.stderr)}"]
    (sys.stderr if status else sys.stdout).write("\n".join(lines) + "\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
