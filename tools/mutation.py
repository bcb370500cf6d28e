"""Change one thing at a time in the mathematics, and see whether a test notices.

    python tools/mutation.py                     # diffusion/ and conditioning/, about half an hour on one core
    python tools/mutation.py --module schedule   # one module
    python tools/mutation.py --sample 200        # so many mutants, drawn with --seed

A mutant is killed if a test of its own module fails, or else one of the two rooms' other tests. One that survives is
either a gap in the tests or means the same as the original; those are in mutation_equivalent.txt beside this file, each
with the reason. The status is 1 if a survivor is not listed there, or something is listed that does not survive.

Each mutant is a fork of this process, which has imported torch already, so that most take about a second.
"""

from __future__ import annotations

import argparse
import importlib.abc
import importlib.machinery
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import CodeType, ModuleType

from mutation_operators import Mutant, mutants

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "cascaded_diffusion"
ROOMS = ("diffusion", "conditioning")
LIST = Path(__file__).with_name("mutation_equivalent.txt")
LEAST_TIMEOUT_S = 60.0


class _Mutated(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from a changed syntax tree."""

    def __init__(self, name: str, path: Path, code: CodeType) -> None:
        self._name, self._path, self._code = name, path, code

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._name:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, origin=str(self._path))

    def exec_module(self, module: ModuleType) -> None:
        exec(self._code, module.__dict__)


def _warm_up() -> None:
    """Import what the tests use, but nothing of the package."""
    import numpy
    import pydantic
    import pytest
    import safetensors.torch
    import torch

    assert all((numpy, pydantic, pytest, safetensors))
    torch.set_num_threads(1)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    torch.testing.assert_close(torch.zeros(1), torch.zeros(1))  # imports a good part of torch at its first call
    torch.where(torch.ones(1) > 0, torch.randn(1, 1, 1, 1), torch.nn.functional.pad(torch.ones(1, 1, 1, 1), (1, 1)))
    assert not any(name.startswith("cascaded_diffusion") for name in sys.modules)


def _tests(path: Path) -> list[list[str]]:
    """Tests of a module, and then all others of the rooms."""
    own = ROOT / "tests" / path.parent.name / f"test_{path.stem}.py"
    others = sorted(test for room in ROOMS for test in (ROOT / "tests" / room).glob("test_*.py") if test != own)
    return [[str(own)], [str(test) for test in others]] if own.exists() else [[str(test) for test in others]]


def _child(path: Path, mutant: Mutant | None, tests: list[str]) -> None:
    """Run tests on a mutant; the exit status is pytest's."""
    import pytest

    status = 99
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        if mutant is not None:
            name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
            sys.meta_path.insert(0, _Mutated(name, path, compile(mutant.tree, str(path), "exec")))
        # The shared fixtures import the whole package, which these tests do not need.
        options = ["-x", "-q", "--noconftest", "-p", "no:cacheprovider", "--rootdir", str(ROOT), "-c"]
        status = int(pytest.main([*options, str(ROOT / "pyproject.toml"), *tests]))
    finally:
        os._exit(status)


def _run(path: Path, mutant: Mutant | None, tests: list[str], timeout: float) -> int | None:
    """pytest's exit status, or ``None`` after the time limit."""
    pid = os.fork()
    if pid == 0:
        _child(path, mutant, tests)
    deadline = time.monotonic() + timeout
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None
        time.sleep(0.005)


def _fate(path: Path, mutant: Mutant, timeouts: list[float]) -> str:
    """``own``, ``others`` (which tests killed it), ``timeout`` or ``survived``."""
    groups = _tests(path)
    for name, tests, timeout in zip(("own", "others")[-len(groups) :], groups, timeouts, strict=True):
        status = _run(path, mutant, tests, timeout)
        if status is None:
            return "timeout"
        if status != 0:
            return name
    return "survived"


def _listed() -> dict[str, str]:
    """Mutants that mean the same as the original, and why."""
    lines = [line for line in LIST.read_text().splitlines() if line and not line.startswith(("#", "    "))]
    reasons = [line.strip() for line in LIST.read_text().splitlines() if line.startswith("    ")]
    if len(lines) != len(reasons):
        raise SystemExit(f"{LIST}: {len(lines)} mutants and {len(reasons)} reasons; each needs one")
    return dict(zip(lines, reasons, strict=True))


def _timeouts(path: Path) -> list[float]:
    found = []
    for tests in _tests(path):
        started = time.monotonic()
        if _run(path, None, tests, 3600) != 0:
            raise SystemExit(f"{path.name}: its tests fail without a mutation")
        found.append(LEAST_TIMEOUT_S + 10 * (time.monotonic() - started))
    return found


def _chosen(asked: argparse.Namespace) -> list[tuple[Path, Mutant]]:
    paths = [path for room in ROOMS for path in sorted((PACKAGE / room).glob("[a-z]*.py"))]
    paths = [path for path in paths if not asked.module or path.stem in asked.module]
    every = [(path, mutant) for path in paths for mutant in mutants(path.read_text())]
    if asked.key:
        every = [(path, mutant) for path, mutant in every if any(key in mutant.key for key in asked.key)]
    if asked.sample is not None and asked.sample < len(every):
        picked = set(random.Random(asked.seed).sample(range(len(every)), asked.sample))
        every = [pair for i, pair in enumerate(every) if i in picked]
    return every


def main() -> int:
    """Try the mutants; 1 if there is news."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--module", action="append", metavar="NAME", help="only this module; may be repeated")
    parser.add_argument("--key", action="append", metavar="TEXT", help="only mutants whose key has this in it")
    parser.add_argument("--sample", type=int, metavar="N", help="only so many, drawn at random")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the draw (0)")
    asked = parser.parse_args()
    _warm_up()
    chosen, listed = _chosen(asked), _listed()
    fates: Counter[str] = Counter()
    news, timeouts = [], dict[Path, list[float]]()
    for path, mutant in chosen:
        if path not in timeouts:
            timeouts[path] = _timeouts(path)
        fate = _fate(path, mutant, timeouts[path])
        name = f"{path.parent.name}/{path.name} {mutant.key}"
        if fate == "survived" and name in listed:
            fate = "equivalent"
        elif fate == "survived":
            news.append(f"survived, line {mutant.line}: {name}")
        elif name in listed:
            news.append(f"listed as equivalent, but killed: {name}")
        if news and name in news[-1]:
            sys.stdout.write(news[-1] + "\n")
            sys.stdout.flush()
        fates[fate] += 1
    if not (asked.module or asked.key or asked.sample):
        known = {f"{path.parent.name}/{path.name} {mutant.key}" for path, mutant in chosen}
        news += [f"listed, but there is no such mutant: {name}" for name in listed if name not in known]
    counts = ", ".join(f"{fates[name]} {word}" for name, word in (
        ("own", "killed by their module's tests"), ("others", "by others of the rooms"), ("timeout", "by not ending"),
        ("equivalent", "equivalent"), ("survived", "survived"),
    ))  # fmt: skip
    sys.stdout.write("\n".join([*news, f"{len(chosen)} mutants: {counts}"]) + "\n")
    return 1 if news else 0


if __name__ == "__main__":
    sys.exit(main())
