"""The command line's reference, from typer's own description of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer.main

from cascaded_diffusion.cli.app import app
from docs_site.markup import code, generated_note, inline, table

__all__ = ["command_page", "commands"]

_INTRODUCTION = """\
What a person can get wrong is told in one line that names what is wrong, the value given and what is allowed, with exit
status 2. Other statuses: 0 for success, 1 for a failure while running, 130 and 143 after an interruption (Ctrl-C and
SIGTERM) with everything saved. `cdm COMMAND --help` prints what stands here."""


def commands() -> dict[str, Any]:
    """Every command by its words after ``cdm``, such as ``train``; of a group of commands, each of them."""
    return dict(_walk(typer.main.get_command(app), ()))


def _walk(command: Any, words: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    inner = getattr(command, "commands", None)
    if inner is None:
        yield " ".join(words), command
        return
    for name, child in inner.items():
        yield from _walk(child, (*words, name))


def command_page() -> str:
    """The page as Markdown."""
    program = typer.main.get_command(app)
    found = commands()
    overview = table(
        ("Command", "What it does"),
        ((f"[{code(f'cdm {name}')}](#{_anchor(name)})", inline(_summary(command))) for name, command in found.items()),
    )
    own = _options(program)
    sections = [_section(name, command) for name, command in found.items()]
    head = f"# Command line\n\n{generated_note('the commands themselves')}\n\n{_INTRODUCTION}\n\n{overview}"
    return "\n\n".join([head, f"Before the command's name:\n\n{own}", *sections]) + "\n"


def _summary(command: Any) -> str:
    return str(command.short_help or (command.help or "").partition("\n\n")[0])


def _anchor(name: str) -> str:
    return "cdm-" + name.replace(" ", "-")


def _section(name: str, command: Any) -> str:
    paragraphs = [inline(paragraph) for paragraph in (command.help or "").split("\n\n") if paragraph.strip()]
    arguments = [p for p in command.params if not _is_option(p)]
    words = ["cdm", name, *(_shown(argument) for argument in arguments), "[options]"]
    parts = [
        f"## cdm {name} {{ #{_anchor(name)} }}",
        *paragraphs[:1],
        f"```text\n{' '.join(words)}\n```",
        *paragraphs[1:],
    ]
    if arguments:
        rows = [(code(_shown(argument)), inline(argument.help or "")) for argument in arguments]
        parts.append(table(("Argument", "Meaning"), rows))
    return "\n\n".join([*parts, _options(command)])


def _is_option(parameter: Any) -> bool:
    return str(parameter.opts[0]).startswith("-")


def _shown(argument: Any) -> str:
    name = str(argument.metavar or argument.name.upper())
    return name if argument.required else f"[{name}]"


def _options(command: Any) -> str:
    rows = []
    for option in command.params:
        if not _is_option(option) or option.hidden:
            continue
        # A pair such as --flag/--no-flag is one option of two names.
        names = ", ".join(code(name) for name in (*option.opts, *option.secondary_opts))
        value = "" if option.is_flag else f" {code(str(option.metavar or option.name.upper()))}"
        meaning, default = _split_default(option)
        rows.append((names + value, default, inline(meaning)))
    rows.append((f"{code('-h')}, {code('--help')}", "", "Show the help and exit."))
    return table(("Option", "Default", "Meaning"), rows)


def _split_default(option: Any) -> tuple[str, str]:
    """The help text, and the default: typer's, or the one that the text ends with, ``[default: ...]``."""
    text, _, told = str(option.help or "").partition("[default: ")
    if option.required:
        return text, "**required**"
    if told:
        return text, code(told.rstrip().removesuffix("]"))
    silent = option.default is None or option.default is False or not option.show_default
    return text, "" if silent else code(str(option.default))
