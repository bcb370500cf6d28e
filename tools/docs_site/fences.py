"""The blocks of code in Markdown pages, and the ``cdm`` commands in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import typer
import typer.main

from cascaded_diffusion.cli.app import app

__all__ = ["Block", "blocks", "cdm_calls", "complaint", "inline_calls", "option_complaint"]

_FENCE = re.compile(
    r"^(?P<indent> *)(?P<marks>`{3,}|~{3,})(?P<language>[\w-]*).*?\n(?P<text>.*?)^ *(?P=marks) *$", re.M | re.S
)
_CALL = re.compile(r"(?:^|[\s/(;&|])(?:cdm|-m(?: --)? cascaded_diffusion)(?:\s|$)")
_PARSER_ERROR: Any = typer.BadParameter.__mro__[2]
"""The base of every error of the command line's parser, as in ``cascaded_diffusion.cli.app``."""


class Block(NamedTuple):
    """A fenced block: its page's name, the line its text begins at, the word after the fence, and the text."""

    page: str
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        """Page and line, for messages."""
        return f"{self.page}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        indent = len(match["indent"])
        lines = [
            line[indent:] if not line[:indent].strip() else line for line in match["text"].splitlines(keepends=True)
        ]
        found.append(Block(page.name, text.count("\n", 0, match.start("text")) + 1, match["language"], "".join(lines)))
    return found


def cdm_calls(text: str) -> list[list[str]]:
    """The arguments of every call of ``cdm`` in a shell text, however it is started."""
    lines = text.replace("\\\n", " ").splitlines()
    if any(line.startswith("$ ") for line in lines):  # a session: what has no prompt is output
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    calls = []
    for line in lines:
        if _CALL.search(line):
            calls += [found for words in _commands(line) if (found := _arguments(words)) is not None]
    return calls


def _commands(line: str) -> Iterator[list[str]]:
    """The simple commands of one line, without redirections and comments."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    redirected = False
    for word in lexer:
        if set(word) <= set("<>&|;()"):
            redirected = bool(set(word) & set("<>"))
            if not redirected:
                yield words
                words = []
        elif redirected:
            redirected = False
        else:
            words.append(word)
    yield words


def _arguments(words: list[str]) -> list[str] | None:
    while words and re.match(r"^[A-Z_]+=", words[0]):
        words = words[1:]
    if words and Path(words[0]).name == "cdm":
        return words[1:]
    if "cascaded_diffusion" in words and "-m" in words:
        return words[words.index("cascaded_diffusion") + 1 :]
    return None


def complaint(arguments: list[str]) -> str | None:
    """Why the command line would not take these arguments, or ``None``; nothing is run and no file is looked at."""
    command, rest, problem = _find(arguments)
    if problem is not None or command is None or {"-h", "--help"} & set(rest):
        return problem
    try:
        command.make_context(command.name, list(rest))
    except _PARSER_ERROR as error:
        return " ".join(str(error.format_message()).split())
    return None


def option_complaint(arguments: list[str]) -> str | None:
    """As :func:`complaint`, for calls with gaps and placeholders: only whether command and options exist."""
    if arguments and not re.match(r"^(-|[a-z])", arguments[0]):
        return None
    command, rest, problem = _find(arguments)
    if problem is not None or command is None:
        return problem
    known = {"-h", "--help", *(name for option in command.params for name in (*option.opts, *option.secondary_opts))}
    given = re.findall(r"(?<![\w-])--?[a-z][\w-]*", " ".join(rest))
    unknown = [name for name in given if name not in known]
    return f"no option {unknown[0]} of cdm {command.name}" if unknown else None


def _find(arguments: list[str]) -> tuple[Any, list[str], str | None]:
    """The command that arguments lead to, what is left for it, and what is wrong on the way."""
    command: Any = typer.main.get_command(app)
    rest = list(arguments)
    while hasattr(command, "commands"):
        own = {"-h", "--help", *(name for option in command.params for name in option.opts)}
        while rest and rest[0].startswith("-"):
            if rest[0] not in own:
                return None, rest, f"no option {rest[0]} of {command.name}"
            rest.pop(0)
        if not rest:
            return None, rest, None
        if rest[0] not in command.commands:
            return None, rest, f"no command {rest[0]!r} of {command.name}"
        command = command.commands[rest.pop(0)]
    return command, rest, None


def inline_calls(page: Path) -> list[list[str]]:
    """The words after ``cdm`` of every call that stands inside a sentence as code."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    return [" ".join(match.split()).split(" ") for match in re.findall(r"`cdm\s+([^`]+)`", text)]
