"""Docstrings are made into Markdown without loss."""

from __future__ import annotations

from docs_site.docstrings import as_markdown


def test_roles_become_code() -> None:
    assert as_markdown("See :meth:`Cascade.sample`, :class:`~a.Stage`.") == "See `Cascade.sample`, `a.Stage`."
    assert as_markdown("Or ``x``.") == "Or ``x``."


TOGETHER = """\
Do.

Args:
    a: first.
    b, *c: second,
        over two lines.
    d: last.

Note:
    So, it ends: here.
"""
APART = """\
Do.

Args:
    a: first.
    b: second,
        over two lines.
    *c: second,
        over two lines.
    d: last.

Note:
    So, it ends: here.
"""


def test_arguments_described_together_are_described_each() -> None:
    assert as_markdown(TOGETHER) == APART.rstrip()


def test_an_entry_at_the_end_is_kept() -> None:
    assert as_markdown("Args:\n    a, b: both.") == "Args:\n    a: both.\n    b: both."
