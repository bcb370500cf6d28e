from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from cascaded_diffusion.cascade.chain import Cascade
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.evaluation.scores import Provenance, Score
from cascaded_diffusion.interop.card import CardNotes, check_scores, model_card, sample_picture


@pytest.fixture
def score() -> Score:
    return Score(
        12.345,
        Provenance(
            source={"kind": "cascade", "name": "tiny", "sha256": "a" * 64},
            seed=7,
            n=500,
            resolution=16,
            channels="3",
            data="colours",
            split="val",
            reference_n=16,
            extractor="eye",
            extractor_hash="e" * 64,
            sampler={"base8": "ddim", "sr16": "ddim"},
            steps={"base8": 4, "sr16": 4},
            augmentation={"base8": "none", "sr16": "nontruncated"},
            s={"base8": 0.0, "sr16": 0.1},
            versions={},
            device="cpu",
            warnings=("few samples",),
        ),
        0.5,
    )


def metadata(card: str) -> dict[str, Any]:
    assert card.startswith("---\n")
    found = yaml.safe_load(card.split("---\n")[1])
    assert isinstance(found, dict)
    return found


def test_everything_that_is_known(tiny_cascade: Cascade, score: Score) -> None:
    tiny_cascade.provenance["sr16"]["search"] = {
        "chosen": "nontruncated s=0.1", "of": 7, "score": "fd_eye", "value": 3.5, "standard_error": 0.25, "n": 100,
        "seed": 1, "split": "train", "features": "eye",
    }  # fmt: skip
    notes = CardNotes("Plain colours.", "user/colours", "cc-by-4.0", {"fd_eye": score})
    card = model_card(tiny_cascade, "user/tiny", notes, picture="samples.png")
    assert metadata(card) == {
        "license": "cc-by-4.0",
        "library_name": "cascaded-diffusion",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["diffusion", "cascaded-diffusion", "super-resolution", "class-conditional"],
        "datasets": ["user/colours"],
    }
    headings = re.findall(r"^## (.*)$", card, re.MULTILINE)
    assert headings == ["Stages", "Recipe", "Data", "Scores", "How to load it", "Licence"]
    parameters = sum(each.numel() for each in tiny_cascade.stages["sr16"].network.parameters())
    assert f"| sr16 | 8 -> 16 | {parameters:,} | U-Net of widths 32" in card
    assert "| 64 | ddim, 4 steps | 0.1 (nontruncated) |" in card
    row = "| fd_eye | 12.345 | 0.5 | 500 | 16 of colours (val) | eye eeeeeeee | base8 ddim 4 steps; sr16 ddim 4 steps"
    assert f"{row}, nontruncated s=0.1 | 7 |" in card
    assert "- Doubtful: few samples" in card
    assert "settings of sr16 (nontruncated s=0.1) are the best of 7 that were searched: fd_eye 3.5 ± 0.25" in card
    assert "![Samples, not chosen by hand](samples.png)" in card
    assert 'Cascade.from_pretrained("user/tiny")' in card
    recipe = yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])
    assert [stage["name"] for stage in recipe["stages"]] == ["base8", "sr16"]
    assert recipe["stages"][0]["training"]["batch_size"] == 8


def test_what_is_not_known_is_said(tiny_cascade: Cascade) -> None:
    card = model_card(tiny_cascade, "user/tiny", CardNotes())
    assert metadata(card)["license"] == "unknown"
    assert "datasets" not in metadata(card)
    for words in (
        "None were measured.",
        "has said nothing about the training data",
        "has not said under which licence",
    ):
        assert words in card
    assert "![" not in card


@pytest.mark.parametrize("licence", ["Apache 2.0", "", "mit\n- x", "a: b"])
def test_licences_that_are_none(licence: str) -> None:
    with pytest.raises(UserError, match=r"licence: .* is not known; give its abbreviation on the hub"):
        CardNotes(licence=licence)


def test_scores_of_another_cascade(score: Score) -> None:
    check_scores({"fd_eye": score}, {"sha256": "a" * 64}, Path("scores.json"))
    with pytest.raises(UserError, match=r"scores.json: fd_eye was measured on another cascade \(tiny, other weights\)"):
        check_scores({"fd_eye": score}, {"sha256": "b" * 64}, Path("scores.json"))


@pytest.mark.parametrize("kind", ["run", "stage", "samples"])
def test_scores_of_what_is_no_cascade(kind: str, score: Score) -> None:
    source = {"kind": kind, "name": "x", "sha256": "a" * 64}
    told = replace(score, provenance=score.provenance.model_copy(update={"source": source}))
    with pytest.raises(UserError, match=rf"scores.json: fd_eye was measured on a {kind} \(x\), which may be anything"):
        check_scores({"fd_eye": told}, {"sha256": "a" * 64}, Path("scores.json"))


def test_the_picture_is_sampled(tiny_cascade: Cascade) -> None:
    first, second = sample_picture(tiny_cascade), sample_picture(tiny_cascade)
    np.testing.assert_array_equal(np.asarray(first), np.asarray(second))
    assert np.asarray(sample_picture(tiny_cascade, seed=1)).tobytes() != np.asarray(first).tobytes()
