from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cascaded_diffusion.errors import UserError
from cascaded_diffusion.evaluation.scores import (
    Origin,
    Provenance,
    Score,
    comparison,
    describe_sampling,
    read_scores,
    table,
    warnings_of,
    write_scores,
)

STAGES: dict[str, Any] = {
    "sampler": {"base8": "heun", "sr16": "ddim"},
    "steps": {"base8": 5, "sr16": "ddim10"},
    "s": {"base8": 0.0, "sr16": 0.25},
    "augmentation": {"base8": "none", "sr16": "truncated"},
    "guidance": {"base8": 1.5, "sr16": 1.0},
    "endpoints": {"base8": None, "sr16": [1e-4, 0.02]},
    "extension": {"base8": True, "sr16": False},
    "seed": 3,
    "precision": "bf16",
}


def about(**changes: Any) -> Provenance:
    facts = {
        "source": {"kind": "run", "name": "sr16", "images": 12000, "ema": "500", "sha256": "5a" * 32},
        "n": 10000,
        "resolution": 16,
        "channels": "samples and real images are grey",
        "data": "fashion-mnist",
        "split": "train",
        "reference_n": 60000,
        "reference_hash": "1234567890" * 6 + "abcd",
        "extractor": "eye",
        "extractor_hash": "fedcba9876" * 6 + "abcd",
        "resize": "32x32",
        "dtype": "fp32",
        "versions": {"cascaded_diffusion": "0", "torch": "1"},
        "device": "cpu",
    }
    return Provenance.model_validate(facts | STAGES | changes)


def test_json_is_flat_and_read_back(tmp_path: Path) -> None:
    scores = {
        "fd_eye": Score(1.5, about(), 0.25, "hm", {"per_class": [1, None]}),
        "cas": Score(0.5, about(n=7, split=None, warnings=("few",))),
    }
    write_scores(tmp_path / "s.json", scores, images=12)
    content = json.loads((tmp_path / "s.json").read_text())
    assert content["images"] == 12
    first = content["scores"]["fd_eye"]
    assert (first["value"], first["standard_error"], first["per_class"], first["n"]) == (1.5, 0.25, [1, None], 10000)
    assert first["s"] == {"base8": 0.0, "sr16": 0.25}
    assert read_scores(tmp_path / "s.json") == scores


@pytest.mark.parametrize(
    "content, message",
    [
        ("[]", "not a scores file"),
        ('{"scores": {"fd": 3}}', "not a scores file"),
        ('{"scores": {"fd": {"n": 3}}}', "not a score: "),
        ('{"scores": {"fd": {"value": 3}}}', "not a score: source: Field required"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "s.json").write_text(content)
    with pytest.raises(UserError, match=message) as error:
        read_scores(tmp_path / "s.json")
    assert str(tmp_path / "s.json") in str(error.value)


def test_what_json_cannot_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="value: nan is not finite"):
        Score(float("nan"), about())
    with pytest.raises(ValueError, match="standard_error: inf"):
        Score(1.0, about(), float("inf"))
    with pytest.raises(ValueError, match=r"standard_error: -0.75 is not allowed; a number from 0 is"):
        Score(1.0, about(), -0.75)
    with pytest.raises(ValueError, match="n, value would hide"):
        Score(1.0, about(), extra={"value": 2, "n": 3, "top5": 4})


def test_sampling_in_words() -> None:
    words = "base8 heun 5 steps, guidance 1.5, extension; "
    words += "sr16 ddim ddim10 steps, truncated s=0.25, endpoints 0.0001 to 0.02"
    assert describe_sampling(about()) == words
    assert describe_sampling(Origin(source={})) == ""


def test_table_shows_what_scores_depend_on() -> None:
    scores = {
        "fd_eye": Score(12.3456, about(), 0.0412),
        "fd_eye_val": Score(4.0, about(split="val", reference_n=9), 0.0),
        "cas": Score(0.5, about(extractor=None, extractor_hash=None, reference_hash=None), note="real 0.9"),
    }
    lines = table(scores).splitlines()
    assert lines[1].split() == ["fd_eye", "12.346", "±", "0.041", "10,000", "train", "60,000", "fedcba98", "12345678"]
    assert lines[2].split() == ["fd_eye_val", "4", "10,000", "val", "9", "fedcba98", "12345678"]
    assert lines[3].split() == ["cas", "0.5", "10,000", "train", "60,000", "-", "-"]
    below = " ".join(" ".join(lines[4:]).split())
    assert "samples sr16 (run, 12,000 images, ema 500, hash 5a5a5a5a), 16x16" in below
    assert describe_sampling(about()) in below
    assert "seed 3, bf16" in below
    assert "features eye, 32x32, fp32, hash fedcba98" in below
    assert "real fashion-mnist; samples and real images are grey" in below
    assert "note cas: real 0.9" in below
    assert below.count("base8 heun") == 1  # what scores share is said once


def test_table_fits_100_columns() -> None:
    long = "a-classifier-with-a-very-long-name-indeed"
    scores = {
        f"precision_{long}_val": Score(123456.789, about(extractor=long, reference_n=1281167, n=50000), 1.234567),
        f"kid_{long}": Score(0.00001234, about(extractor=long, resize="word " * 40), 0.00000567, "note " * 50),
    }
    assert max(map(len, table(scores).splitlines())) <= 100


def test_warnings_once() -> None:
    scores = {"a": Score(1, about(warnings=("x", "y"))), "b": Score(1, about(warnings=("y", "z")))}
    assert warnings_of(scores) == ["x", "y", "z"]


def test_comparison_marks_the_best_and_drops_what_does_not_fit() -> None:
    rows = {
        str(images): {f"fd_{'x' * 20}_{i}": Score(images + i, about(), 0.5) for i in range(9)} for images in (10, 200)
    }
    lines = comparison("images", rows, best="200").splitlines()
    assert [line.split()[0] for line in lines] == ["images", "10", "200"]
    assert [line.endswith("  best") for line in lines] == [False, False, True]
    assert "200.00 ± 0.50" in lines[2]
    assert max(map(len, lines)) <= 100
    assert lines[0].split()[1:] == [f"fd_{'x' * 20}_{i}" for i in range(3)]
    # A score that failed for one of them costs its cell alone.
    rows = {
        "10": {"fd": Score(1.0, about(), None)},
        "20": {"fd": Score(2.0, about(), None), "cas": Score(0.5, about(), None)},
    }
    assert [line.split()[-1] for line in comparison("images", rows, best="-").splitlines()] == ["cas", "none", "0.5"]
