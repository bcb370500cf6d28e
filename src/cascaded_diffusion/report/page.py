"""The page itself: titled parts, a table of contents, and a style that suits light, dark and narrow screens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import resources
from string import Template
from typing import NamedTuple

from cascaded_diffusion.report.markup import Html, as_html, joined, paragraph, tag

__all__ = ["Part", "missing", "render", "subtitle"]


class Part(NamedTuple):
    """One part of the page."""

    title: str
    body: Html


def subtitle(title: str) -> Html:
    """A heading inside a part."""
    return tag("h3", title)


def missing(what: str, command: str) -> Html:
    """Say what is not on the page, and which command would make it."""
    return paragraph(what, " ", tag("code", command), class_="missing")


def _anchor(position: int, title: str) -> str:
    words = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    return f"{position}-{words}"


def render(title: str, lead: Html, parts: Sequence[Part]) -> str:
    """The whole page, one file that fetches nothing."""
    template = (resources.files("cascaded_diffusion.report") / "page.html").read_text(encoding="utf-8")
    anchors = [_anchor(position, part.title) for position, part in enumerate(parts, 1)]
    links = [tag("a", part.title, href=f"#{anchor}") for part, anchor in zip(parts, anchors, strict=True)]
    contents = tag("nav", *links, aria_label="Contents") if len(parts) > 1 else Html("")
    sections = [
        tag("section", tag("h2", part.title), part.body, id=anchor) for part, anchor in zip(parts, anchors, strict=True)
    ]
    return Template(template).substitute(title=as_html(title), lead=lead, contents=contents, parts=joined(sections))
