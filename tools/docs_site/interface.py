"""The Python reference: a page a room of the package, in which mkdocstrings sets the public names' docstrings."""

from __future__ import annotations

import inspect
from collections import defaultdict

import cascaded_diffusion
from cascaded_diffusion.config import StrictModel
from docs_site.configuration import home
from docs_site.docstrings import as_markdown
from docs_site.markup import generated_note, inline, table

__all__ = ["overview_page", "room_page", "rooms"]

_ORDER = ("cascade", "training", "data", "recipes", "diffusion", "conditioning", "networks", "evaluation", "interop")


def rooms() -> dict[str, dict[str, str]]:
    """Room to its public names, each with the module that holds it; the rooms in order of use."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for name in cascaded_diffusion.__all__:
        if name.startswith("__"):
            continue
        module = str(getattr(cascaded_diffusion, name).__module__)
        room = module.removeprefix("cascaded_diffusion.").partition(".")[0]
        found[room][name] = module
    order = {room: place for place, room in enumerate(_ORDER)}
    return {room: found[room] for room in sorted(found, key=lambda room: (order.get(room, len(order)), room))}


def overview_page() -> str:
    """All public names in one table, room by room."""
    parts = [f"# Python\n\n{generated_note('the docstrings')}\n\n{_INTRODUCTION}"]
    for room, names in rooms().items():
        rows = [(f"[`{name}`]({room}.md#{module}.{name})", _first_line(name)) for name, module in names.items()]
        parts.append(f"## {room}\n\n{table(('Name', 'What it is'), rows)}")
    return "\n\n".join(parts) + "\n"


_INTRODUCTION = """\
Everything here is imported from `cascaded_diffusion` itself: `from cascaded_diffusion import Cascade`. The import is
quick, for a name is loaded when it is first used. Images are uint8 of shape (N, H, W, C) outside the networks, and
float in [-1, 1] of shape (N, C, H, W) inside."""


def _first_line(name: str) -> str:
    text = inspect.getdoc(getattr(cascaded_diffusion, name)) or ""
    return inline(as_markdown(text.partition("\n\n")[0]))


def room_page(room: str) -> str:
    """The page of one room."""
    parts = [f"# {room}\n\n{generated_note('the docstrings')}"]
    for name, module in rooms()[room].items():
        parts.append(f"::: {module}.{name}{_options(name)}")
        thing = getattr(cascaded_diffusion, name)
        if inspect.isclass(thing) and issubclass(thing, StrictModel):
            page = home(thing)
            parts.append(f"Its fields: [{name}](../{page}#{name}) in the reference of {page.removesuffix('.md')}.")
    return "\n\n".join(parts) + "\n"


def _options(name: str) -> str:
    """Of a configuration only its methods: its fields have a table of their own."""
    thing = getattr(cascaded_diffusion, name)
    if not (inspect.isclass(thing) and issubclass(thing, StrictModel)):
        return ""
    members = [
        key
        for key, value in vars(thing).items()
        if not key.startswith("_") and key not in thing.model_fields and isinstance(value, _METHODS)
    ]
    return f"\n    options:\n      members: {members}\n      show_signature: false\n      heading_level: 2"


_METHODS = (classmethod, staticmethod, property, type(_first_line))
