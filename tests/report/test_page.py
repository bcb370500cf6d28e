"""The page around its parts."""

from __future__ import annotations

import re

from cascaded_diffusion.report.markup import Html, paragraph
from cascaded_diffusion.report.page import Part, missing, render


def test_every_part_is_there_once_and_the_contents_lead_to_it() -> None:
    parts = [Part("Run a/b", paragraph("one")), Part("Run a/b", paragraph("two <3"))]
    page = render("A & B", Html("<p>lead</p>"), parts)
    targets = re.findall(r'href="#([^"]+)"', page)
    assert targets == re.findall(r'<section id="([^"]+)"', page)
    assert len(set(targets)) == 2
    assert "<h1>A &amp; B</h1>" in page
    assert "two &lt;3" in page


def test_it_fetches_nothing_and_runs_nothing() -> None:
    page = render("t", Html(""), [Part("p", Html(""))])
    assert not re.search(r"https?:|<script|<link|@import|url\(", page)
    assert "$" not in page
    assert "<nav" not in page  # one part needs no contents
    assert "prefers-color-scheme: dark" in page
    assert "width=device-width" in page


def test_what_is_missing_comes_with_the_command_that_makes_it() -> None:
    assert "<code>cdm search</code>" in missing("No curve;", "cdm search")
