"""The part about a scores file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cascaded_diffusion.errors import UserError
from cascaded_diffusion.evaluation.scores import Provenance, Score, write_scores
from cascaded_diffusion.report.scores import class_table, read_scores_record, scores_part, with_error

NAMES = ["Bag", "Hat", "<Shoe>"]


def _score(value: float, error: float | None = None, extra: dict[str, Any] | None = None, **changes: Any) -> Score:
    about = {
        "source": {"kind": "cascade", "name": "mine", "sha256": "ab" * 32},
        "n": 500,
        "resolution": 16,
        "channels": "grey",
        "data": "pictures",
        "versions": {"cascaded_diffusion": "1", "torch": "2"},
        "device": "cpu",
    }
    return Score(value, Provenance.model_validate(about | changes), error, "", extra or {})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A scores file with results by class and two checkpoints."""
    path = tmp_path / "scores.json"
    classes = {"per_class": [0.9, None, 0.25], "real_per_class": [0.95, None, 0.5], "class_names": NAMES}
    scores = {
        "fd_x": _score(12.345, 0.21, split="train", reference_n=1000, extractor="x", warnings=("too <few>",)),
        "cas": _score(0.6, 0.01, classes, split="val", reference_n=90),
    }
    rows = [{"images": n, "scores": {"fd_x": _score(30.0 - n / 100, 0.5).to_json()}} for n in (2000, 1000)]
    write_scores(path, scores, checkpoints=rows, images=2000)
    return path


def test_every_score_is_shown_with_its_error_and_what_it_depends_on(file: Path) -> None:
    part = scores_part(read_scores_record("s.json", file))
    assert part.title == "Scores: s.json"
    for words in ("12.35 ± 0.21", "1,000 train", "0.600 ± 0.010", "90 val", "lower is better", "abababababab…"):
        assert words in part.body, words
    assert "Warning: too &lt;few&gt;" in part.body
    assert '<th scope="col">extractor</th>' in part.body  # the one that differs from score to score
    assert "<dt>device</dt><dd>cpu</dd>" in part.body  # one that does not


def test_checkpoints_are_in_order_and_the_best_stands_out(file: Path) -> None:
    record = read_scores_record("s", file)
    assert [images for images, _ in record.checkpoints] == [1000, 2000]
    body = scores_part(record).body
    assert body.index("20.00 ± 0.50") < body.index("10.00 ± 0.50")
    assert '<tr class="marked"><td class="number">2,000</td>' in body
    assert body.count("<svg") == 1


def test_classes_are_sorted_worst_first_and_one_without_images_is_left_out(file: Path) -> None:
    body = scores_part(read_scores_record("s", file)).body
    ranked = body[body.index("Worst and best classes") :]
    assert 0 < ranked.index("&lt;Shoe&gt;") < ranked.index("Bag")
    assert "Hat" not in ranked[: ranked.index("</table>")]
    assert "50.0%" in ranked


def test_of_many_classes_the_worst_and_the_best_are_shown_first() -> None:
    made = class_table(_score(0.5, extra={"per_class": [i / 100 for i in range(100)]}))
    shown = made[: made.index("<details>")]
    assert "80 classes between" in shown
    assert '<td class="number">9</td>' in shown
    assert '<td class="number">10</td>' not in shown
    assert '<td class="number">90</td>' in shown


def test_a_value_is_told_to_two_digits_of_its_error() -> None:
    assert with_error(12.3456, 0.0213) == "12.346 ± 0.021"
    assert with_error(1234.5, 56.0) == "1234 ± 56"
    assert with_error(0.123456, None) == "0.1235"


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw["scores"]["fd_x"].pop("value"),
        lambda raw: raw["scores"]["cas"].update(per_class=[2.0, 0.1, 0.1]),
        lambda raw: raw["scores"]["cas"].update(per_class=[0.1]),
        lambda raw: raw["checkpoints"][0].pop("images"),
        lambda raw: raw.update(checkpoints=[3]),
    ],
)
def test_a_damaged_file_is_named(file: Path, damage: Any) -> None:
    raw = json.loads(file.read_text())
    damage(raw)
    file.write_text(json.dumps(raw))
    with pytest.raises(UserError, match=r"scores\.json: ") as error:
        read_scores_record("s", file)
    assert "\n" not in str(error.value)
