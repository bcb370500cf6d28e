"""The part about a cascade."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from cascaded_diffusion.cascade.chain import Cascade
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.report.cascades import cascade_part, class_rows, draw_samples, read_cascade, sampled_classes


def test_it_shows_stages_provenance_and_samples_of_every_class(tiny_cascade_folder: Path) -> None:
    record = read_cascade("mine", tiny_cascade_folder)
    samples = draw_samples(record.cascade, per_class=2, seed=3, watch=None)
    body = cascade_part(record, samples, None).body
    assert body.count("data:image/png;base64,") == 2 * 4 * 2  # samples of each class, classes, stages
    assert "seed 3" in body
    assert "base8 → sr16" in body
    assert f"{record.manifest.stages[0].sha256['model.safetensors'][:16]}…" in body
    assert "cdm report … --data DIR" in body


def test_samples_are_those_of_the_cascade_with_its_defaults(tiny_cascade: Cascade) -> None:
    samples = draw_samples(tiny_cascade, per_class=2, seed=3, watch=None)
    expected = tiny_cascade.sample(8, seed=3)
    assert np.array_equal(samples.stages["sr16"], expected)
    assert samples.labels.tolist() == [0, 1, 2, 3] * 2


def test_of_many_classes_evenly_spaced_ones_are_shown(tiny_cascade: Cascade, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sampled_classes(tiny_cascade) == [0, 1, 2, 3]
    monkeypatch.setattr(tiny_cascade, "classes", 1000)
    chosen = sampled_classes(tiny_cascade)
    assert chosen is not None
    assert (len(chosen), chosen[0], chosen[-1]) == (20, 0, 999)
    assert chosen == sorted(set(chosen))


def test_class_names_are_escaped(tiny_cascade: Cascade) -> None:
    samples = draw_samples(tiny_cascade, per_class=1, seed=0, watch=None)
    made = class_rows(samples, ["<b>", "c", "d", "e"])
    assert "<b>" not in made
    assert "&lt;b&gt;" in made


def test_a_stage_that_is_stopped_is_said_to_be(tiny_cascade_folder: Path) -> None:
    record = read_cascade("mine", tiny_cascade_folder)
    samples = draw_samples(record.cascade, per_class=1, seed=0, watch=None)
    assert "stops at s" not in cascade_part(record, samples, None).body
    cascade = record.cascade
    stopped = cascade.defaults["sr16"].model_copy(update={"augmentation": "truncated", "s": 0.3})
    truncated = Cascade(list(cascade.stages.values()), defaults={"sr16": stopped})
    samples = draw_samples(truncated, per_class=1, seed=0, watch=None)
    assert "base8 stops at s" in cascade_part(record, samples, None).body


def test_without_samples_the_command_is_told(tiny_cascade_folder: Path) -> None:
    body = cascade_part(read_cascade("mine", tiny_cascade_folder), None, None).body
    assert "--per-class 4" in body
    assert "data:image/png" not in body


def test_a_damaged_cascade_is_named(tiny_cascade_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cascade"
    shutil.copytree(tiny_cascade_folder, folder)
    with (folder / "sr16" / "model.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match=r"sr16/model\.safetensors"):
        read_cascade("mine", folder)
