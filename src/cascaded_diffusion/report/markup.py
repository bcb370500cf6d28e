"""Pieces of HTML that cannot be broken by what is put into them.

Text becomes HTML in one place, :func:`as_html`; everything else here builds on :func:`tag`, whose children go through
it. A plain string is therefore always escaped, and only what is an :class:`Html` already is not.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping, Sequence

from PIL import Image

from cascaded_diffusion.pictures import encode_png

__all__ = ["Html", "as_html", "facts", "folded", "image_tag", "joined", "paragraph", "png_tag", "table", "tag"]

_VOID = frozenset({"br", "img"})
_LONG = 24
"""Longer text keeps a readable width where a table is wider than the screen."""


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def as_html(value: object) -> Html:
    """``value`` as HTML: an :class:`Html` as it is, anything else as escaped text."""
    return value if isinstance(value, Html) else Html(html.escape(str(value), quote=True))


def joined(parts: Iterable[object], separator: str = "\n") -> Html:
    """Parts one after the other."""
    return Html(separator.join(as_html(part) for part in parts))


def tag(name: str, *children: object, **attributes: object) -> Html:
    """An element. An attribute ``class_`` is ``class``; one that is ``None`` is left out."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value), quote=True)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Html(f"<{name}{given}>")
    return Html(f"<{name}{given}>{joined(children, '')}</{name}>")


def paragraph(*children: object, class_: str | None = None) -> Html:
    """A paragraph."""
    return tag("p", *children, class_=class_)


def facts(values: Mapping[str, object]) -> Html:
    """Names and values, as many beside each other as there is room for."""
    pairs = [tag("div", tag("dt", name), tag("dd", value)) for name, value in values.items()]
    return tag("dl", *pairs) if pairs else Html("")


def table(header: Sequence[object], rows: Iterable[Sequence[object]], *, marked: int | None = None) -> Html:
    """A table that scrolls by itself where the screen is narrow; row ``marked`` stands out. Numbers go to the right."""
    head = tag("tr", *(tag("th", cell, scope="col") for cell in header))
    body = [
        tag("tr", *map(_cell, row), class_="marked" if position == marked else None)
        for position, row in enumerate(rows)
    ]
    # Focusable, so that a keyboard can scroll it too.
    return tag("div", tag("table", tag("thead", head), tag("tbody", *body)), class_="wide", tabindex=0)


def _cell(value: object) -> Html:
    text = str(value)
    number = not isinstance(value, Html) and text[:1] in "+-−0123456789" and any(c.isdigit() for c in text)
    words = not isinstance(value, Html) and len(text) > _LONG
    return tag("td", value, class_="number" if number else "words" if words else None)


def folded(title: object, *children: object) -> Html:
    """What is shown when its title is opened; needs no JavaScript."""
    return tag("details", tag("summary", title), *children)


def png_tag(data: bytes, description: str, *, width: int | None = None, class_: str | None = None) -> Html:
    """A PNG file's bytes inside the page, with words for those who cannot see it; ``width`` in CSS pixels."""
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    return tag("img", alt=description, src=source, width=width, class_=class_)


def image_tag(picture: Image.Image, description: str) -> Html:
    """The picture inside the page, with words for those who cannot see it."""
    return png_tag(encode_png(picture), description)
