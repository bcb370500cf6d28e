"""HTML that cannot be broken by what is put into it."""

from __future__ import annotations

import pytest
from PIL import Image

from cascaded_diffusion.report.markup import Html, as_html, facts, image_tag, table, tag

EVIL = "</td><script>alert(\"1\")</script>&amp; 'x'"


@pytest.mark.parametrize(
    "made",
    [
        as_html(EVIL),
        tag("p", EVIL),
        tag("img", alt=EVIL),
        facts({EVIL: EVIL}),
        table([EVIL], [[EVIL]]),
        image_tag(Image.new("L", (2, 2)), EVIL),
    ],
)
def test_text_is_escaped_wherever_it_goes(made: Html) -> None:
    assert "<script" not in made
    assert '"1"' not in made
    assert "&lt;script&gt;alert(&quot;1&quot;)" in made
    assert "&amp;amp;" in made


def test_what_is_html_already_stays_and_what_is_made_of_it_is_text_again() -> None:
    assert tag("p", tag("b", "x"), " & y") == "<p><b>x</b> &amp; y</p>"
    assert tag("p", tag("b", "x") + "<i>") == "<p>&lt;b&gt;x&lt;/b&gt;&lt;i&gt;</p>"


def test_attributes_that_are_none_are_left_out_and_class_is_a_class() -> None:
    assert tag("td", 3, class_="number", width=None, aria_label="n") == '<td class="number" aria-label="n">3</td>'


def test_a_row_can_stand_out_and_numbers_are_set_as_such() -> None:
    made = table(["a", "b"], [["x", 1], ["y", "-2.5 ± 0.1"]], marked=1)
    assert '<tr><td>x</td><td class="number">1</td></tr>' in made
    assert '<tr class="marked"><td>y</td><td class="number">-2.5 ± 0.1</td></tr>' in made
