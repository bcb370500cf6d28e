"""Dependencies point one way: which room of the package may import which."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import cascaded_diffusion

ROOT = Path(cascaded_diffusion.__file__).parent
PACKAGE = ROOT.name

BELOW = {
    "reading": "",
    "diffusion": "",
    "networks": "",
    "conditioning": "diffusion",
    "data": "reading",
    "evaluation": "conditioning data reading",
    "cascade": "conditioning data diffusion evaluation networks reading",
    "training": "cascade conditioning data diffusion networks reading",
    "recipes": "cascade diffusion reading",
    "interop": "cascade diffusion evaluation networks reading",
    "report": "cascade data evaluation interop reading training",
    "ui": "cascade conditioning data diffusion report",
    "demo": "cascade data recipes report training",
    "cli": "cascade data demo evaluation interop networks recipes report training ui",
}
"""Every room, the lowest first, and the rooms that it may import. All may import the modules beside the rooms."""

UPWARD = {
    "cascade/stage.py: training.config",  # a stage's configuration holds that of its training
    "cascade/stage.py: training.geometry",  # how many numbers tell the network of an augmentation
    "cascade/guides.py: training.export",  # a guide may be a run's checkpoint
    "cascade/judge.py: training.checkpoint",  # so may what is scored
    "cascade/judge.py: training.export",
    "cascade/chain.py: interop.publish",  # from_pretrained and push_to_hub know the hub
    "cascade/find.py: interop.hub",
    "files.py: reading.json_text",
    "files.py: reading.plain",
}
"""What goes against the table, and why. Nothing is added here."""


def imports(source: str) -> Iterator[str]:
    """Modules of the package that a source imports, anywhere in it, without the package's name."""
    for node in ast.walk(ast.parse(source)):
        found = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            found = [f"{node.module}.{alias.name}" for alias in node.names] if node.module == PACKAGE else [node.module]
        yield from (name.removeprefix(f"{PACKAGE}.") for name in found if name and name.startswith(f"{PACKAGE}."))


def upward(source: str, name: str) -> set[str]:
    """Imports of rooms that a module's own room may not import."""
    rooms = {module: module.partition(".")[0] for module in imports(source)}
    own = name.partition("/")[0] if "/" in name else ""
    allowed = {own, *BELOW[own].split()} if own else set()
    return {f"{name}: {module}" for module, room in rooms.items() if room in BELOW and room not in allowed}


def test_no_room_may_import_one_that_stands_above_it() -> None:
    rooms = list(BELOW)
    assert all(rooms.index(below) < rooms.index(room) for room, rest in BELOW.items() for below in rest.split())
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} == set(rooms)


def test_every_import_goes_down_but_for_those_listed() -> None:
    files = {path.relative_to(ROOT).as_posix(): path.read_text() for path in ROOT.rglob("*.py")}
    modules = {name: source for name, source in files.items() if name not in ("__init__.py", "__main__.py")}
    assert set().union(*(upward(source, name) for name, source in modules.items())) == UPWARD


@pytest.mark.parametrize(
    "source",
    [
        "from cascaded_diffusion.training.loop import train",
        "import cascaded_diffusion.training.loop",
        "from cascaded_diffusion import training",
        "def f():\n    from cascaded_diffusion.training.loop import train",
    ],
)
def test_an_import_that_goes_up_is_found(source: str) -> None:
    assert upward(source, "diffusion/process.py")
    assert not upward(source, "cli/train.py")
