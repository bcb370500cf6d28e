"""Settings to give to somebody else: the ``cdm sample`` that makes the same images, and a link to the page."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlencode

from cascaded_diffusion.errors import UserError
from cascaded_diffusion.ui.limits import PageLimits
from cascaded_diffusion.ui.settings import Settings, choices, read_settings

__all__ = ["Origin", "enlarge_command", "link_query", "read_link", "sample_command"]

_LONGEST_LINK = 8000
_EMPTY = "none"


@dataclass(frozen=True)
class Origin:
    """The cascade as it was named on the command line, and the device if one was."""

    cascade: str
    device: str | None = None


def sample_command(origin: Origin, limits: PageLimits, settings: Settings) -> str:
    """The ``cdm sample`` that makes the images of ``settings``, one option a line."""
    asked = _options(limits, settings.stages, choices(limits, settings))
    return _command(
        origin, "samples.npz", [*_class_option(limits, settings.classes), ("--num", str(settings.num))], settings, asked
    )


def enlarge_command(
    origin: Origin, limits: PageLimits, settings: Settings, *, start: str, file: str, label: int | None
) -> str:
    """The ``cdm sample`` that enlarges ``file`` from the stage ``start`` on; ``settings`` hold the stages that run."""
    given = [("--from-images", f"./{file}" if file.startswith("-") else file), ("--start-stage", start)]
    given += _class_option(limits, () if label is None else (label,))
    asked = _options(limits, settings.stages, choices(limits, settings))
    return _command(origin, "enlarged.npz", given, settings, asked)


def _command(
    origin: Origin, out: str, given: list[tuple[str, str]], settings: Settings, asked: list[tuple[str, str]]
) -> str:
    options = [("--out", out), *given, ("--seed", str(settings.seed)), *asked]
    if origin.device is not None:
        options.append(("--device", origin.device))
    lines = [f"cdm sample {shlex.quote(origin.cascade)}", *(f"{name} {shlex.quote(text)}" for name, text in options)]
    return " \\\n  ".join(lines)


def _class_option(limits: PageLimits, ids: Sequence[int]) -> list[tuple[str, str]]:
    return [("--classes", ",".join(_class_word(limits, i) for i in ids))] if ids else []


def _class_word(limits: PageLimits, label: int) -> str:
    """What the command line reads as this class: its name, or its number where the name would be torn apart."""
    names, name = limits.class_names, limits.class_names[label]
    if name.strip() == name and name and "," not in name and names.index(name) == label and name != f"class {label}":
        return name
    if str(label) in names:  # a name wins over a number, and this number is another class's name
        raise UserError(f"class: {name!r} cannot be named on a command line")
    return str(label)


def _options(limits: PageLimits, running: Mapping[str, Any], asked: Mapping[str, Any]) -> list[tuple[str, str]]:
    """``--steps base16=12,sr32=6``, or one value where all stages have the same; ``--set`` for what has no option."""
    options = []
    for name, by_stage in asked.items():
        if name == "more":
            continue
        words = {stage: _text(value) for stage, value in by_stage.items()}
        able = [stage.name for stage in limits.stages if stage.name in running and name in stage.controls]
        same = len(set(words.values())) == 1 and list(words) == able and "=" not in next(iter(words.values()))
        text = next(iter(words.values())) if same else ",".join(f"{stage}={word}" for stage, word in words.items())
        options.append((f"--{name}", text))
    more = asked.get("more", {})
    return options + [
        ("--set", f"{stage}.{key}={_yaml(value)}") for stage, keys in more.items() for key, value in keys.items()
    ]


def _yaml(value: Any) -> str:
    if value is None:
        return "null"
    return f"[{','.join(map(_text, value))}]" if isinstance(value, tuple) else _text(value)


def _text(value: Any) -> str:
    if value is None:
        return _EMPTY
    return str(int(value)) if isinstance(value, float) and value == int(value) else str(value)


def link_query(limits: PageLimits, settings: Settings) -> str:
    """The settings as a query string with its ``?``; what is as on a new page is left out, but for count and seed."""
    words: list[tuple[str, str]] = []
    if settings.classes:
        words.append(("classes", ",".join(map(str, settings.classes))))
    words += [("num", str(settings.num)), ("seed", str(settings.seed))]
    for stage in limits.stages:
        for control in stage.controls:
            value = getattr(settings.stages[stage.name], control)
            if value != stage.default(control):
                words.append((f"{stage.name}.{control}", _text(value)))
    return "?" + urlencode(words)


def read_link(limits: PageLimits, query: Any) -> list[Any] | None:
    """The values of the page's controls that a link names, in their order; ``None`` for a link that names none.

    Words that are not the page's own (a browser's, a proxy's) are passed over.

    Raises:
        UserError: a value that the page would not let a person choose.
    """
    if not isinstance(query, str) or len(query) > _LONGEST_LINK:
        raise UserError(f"link: its settings are not a text of at most {_LONGEST_LINK} letters")
    try:
        words = dict(parse_qsl(query.lstrip("?"), max_num_fields=200))
    except ValueError:
        raise UserError("link: more than 200 settings") from None
    keys = ["classes"] if limits.classes is not None else []
    keys += ["num", "seed", *(f"{stage.name}.{control}" for stage in limits.stages for control in stage.controls)]
    if not words.keys() & set(keys):
        return None
    values: list[Any] = [_parsed(key, words[key]) if key in words else _default(limits, key) for key in keys]
    read_settings(limits, values)
    return values


def _default(limits: PageLimits, key: str) -> Any:
    if key == "classes":
        return []
    if key in ("num", "seed"):
        return limits.count if key == "num" else 0
    name, _, control = key.partition(".")
    return getattr(limits.stage(name), control)


def _parsed(key: str, text: str) -> Any:
    """A word of a link as the page's control would send it; what cannot be read stays text and is refused later."""
    if key == "classes":
        return [_number(word) for word in text.split(",")]
    if key.endswith((".start", ".interval_low", ".interval_high")) and text == _EMPTY:
        return None
    return text if key.endswith((".sampler", ".augmentation", ".grid")) else _number(text)


def _number(text: str) -> int | float | str:
    try:
        number = float(text)
    except ValueError:
        return text
    return int(number) if number.is_integer() and abs(number) < 2**53 else number
