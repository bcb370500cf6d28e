"""What the buttons do, without the page."""

from __future__ import annotations

import re
import shlex
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cascaded_diffusion.ui.studio import Frame, Studio

StudioOf = Callable[[Path], Studio]
Values = Callable[..., list[Any]]
Ended = Callable[[Any], Frame]


def run(command: str, where: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Run a command line of the page in the folder ``where``, and read what it wrote."""
    from cascaded_diffusion.cli.app import main

    monkeypatch.chdir(where)
    words = shlex.split(command.replace("\\\n", " "))
    assert words[0] == "cdm"
    with pytest.raises(SystemExit) as end:
        main(words[1:])
    assert end.value.code == 0
    out = words[words.index("--out") + 1]
    with np.load(out) as array:
        images: np.ndarray = array["arr_0"]
    Path(out).unlink()
    return images


@pytest.fixture
def own_image() -> Callable[[Studio], dict[str, str]]:
    """An image of one's own, as the upload field hands it over."""

    def make(studio: Studio) -> dict[str, str]:
        path = studio.uploads / "mine.png"
        pixels = np.random.default_rng(0).integers(0, 256, (20, 26, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        return {"path": str(path), "orig_name": "my image.png"}

    return make


@pytest.mark.parametrize(
    "changes",
    [
        {"classes": [1, 3, 2], "num": 4, "seed": 11},
        {"sr16.s": 0.35, "sr16.augmentation": "truncated", "base8.guidance": 2.5, "sr16.sampler": "heun"},
        {"sr16.augmentation": "none", "base8.steps": 7},
        {"sr16.start": 0.6, "sr16.guidance": 2.0, "sr16.interval_low": 0.3, "sr16.interval_high": 5},
    ],
)
def test_the_command_line_makes_the_same_images(
    studio_of: StudioOf,
    values_of: Values,
    ended: Ended,
    named: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
) -> None:
    studio = studio_of(named)
    outcome = ended(studio.sample("a", values_of(studio.limits, **changes))).outcome
    assert outcome is not None
    assert outcome.files is not None
    with np.load(outcome.files.array) as array:
        assert np.array_equal(array["arr_0"], run(outcome.command, tmp_path, monkeypatch))
    assert [words for _, words in outcome.gallery][:2] == [
        studio.limits.class_names[i] for i in changes.get("classes", [0, 1])[:2]
    ]


def test_both_commands_of_a_comparison_make_its_halves(
    studio_of: StudioOf,
    values_of: Values,
    ended: Ended,
    plain: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from cascaded_diffusion.ui.outcome import sheet

    studio = studio_of(plain)
    frame = ended(studio.compare("a", values_of(studio.limits), "sr8", 0.0, 0.45))
    assert "both runs done" in frame.status
    assert frame.outcome is not None
    assert frame.outcome.pair is not None
    assert frame.outcome.words == "left: s=0, right: s=0.45; drag the line"
    halves = [sheet(run(command, tmp_path, monkeypatch)) for command in frame.outcome.command.split("\n\n")]
    assert [half.tobytes() for half in halves] == [picture.tobytes() for picture in frame.outcome.pair]
    assert halves[0].tobytes() != halves[1].tobytes()


@pytest.mark.parametrize("s, label", [(0.0, -1), (0.3, 2)])
def test_the_command_enlarges_the_same_image(
    studio_of: StudioOf,
    values_of: Values,
    ended: Ended,
    own_image: Callable[[Studio], dict[str, str]],
    named: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    s: float,
    label: int,
) -> None:
    studio = studio_of(named)
    sent = own_image(studio)
    (tmp_path / "my image.png").write_bytes(Path(sent["path"]).read_bytes())
    outcome = ended(studio.enlarge("a", values_of(studio.limits), sent, "sr16", label, s)).outcome
    assert outcome is not None
    assert outcome.files is not None
    with np.load(outcome.files.array) as array:
        assert np.array_equal(array["arr_0"], run(outcome.command, tmp_path, monkeypatch))
        assert array["arr_1"].tolist() == [label]


def test_every_stage_from_the_chosen_one_on_enlarges(
    studio_of: StudioOf, values_of: Values, ended: Ended, own_image: Callable[[Studio], dict[str, str]], plain: Path
) -> None:
    studio = studio_of(plain)
    for start, stages in (("sr8", ["sr8", "sr16"]), ("sr16", ["sr16"])):
        frame = ended(studio.enlarge("a", values_of(studio.limits), own_image(studio), start, None, 0.1))
        assert frame.panels is not None
        assert re.findall('data-stage="([^"]+)"', frame.panels) == stages


WRONG = [
    (lambda studio, values: studio.sample("a", values[:-1]), "values came from the page"),
    (lambda studio, values: studio.sample("a", [1000, *values[1:]]), "images: 1000"),
    (lambda studio, values: studio.compare("a", values, "sr16", 0, 0.1), "stage: 'sr16' is not allowed; choose sr8"),
    (lambda studio, values: studio.compare("a", values, None, 0, 0.1), "stage: 'None'"),
    (lambda studio, values: studio.compare("a", values, "sr8", 0, 0.6), "s of sr8: 0.6"),
    (lambda studio, values: studio.compare("a", values, "sr8", "0", 0.1), "s of sr8: '0'"),
    (lambda studio, values: studio.enlarge("a", values, None, "sr8", None, 0.1), "image: none given"),
    (lambda studio, values: studio.enlarge("a", values, {}, "base4", None, 0.1), "stage: 'base4'"),
    (lambda studio, values: studio.enlarge("a", values, {"path": "/etc/passwd"}, "sr8", None, 0), "not uploaded here"),
    (lambda studio, values: studio.enlarge("a", values, {"path": "/etc/passwd"}, "sr8", None, 2), "s of sr8: 2"),
]


@pytest.mark.parametrize("act, words", WRONG)
def test_what_is_wrong_is_said_and_nothing_runs(
    studio_of: StudioOf, values_of: Values, plain: Path, act: Any, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    studio = studio_of(plain)
    monkeypatch.setattr(studio.engine, "start", lambda job, **options: pytest.fail("a run began"))
    frames = list(act(studio, values_of(studio.limits)))
    assert len(frames) == 1
    assert frames[0].ended
    assert words in frames[0].status.replace("&#x27;", "'")
    assert 'role="alert"' in frames[0].status


def test_steps_in_words_are_bounded(
    studio_of: StudioOf, values_of: Values, base_config: Any, random_stage: Any, tmp_path: Path
) -> None:
    from cascaded_diffusion.cascade.chain import Cascade

    config = base_config(
        8, diffusion={"noise_schedule": {"kind": "cosine", "timesteps": 4000}}, sampling={"steps": "5,5"}
    )
    Cascade([random_stage(config)]).save_pretrained(tmp_path / "words")
    studio = studio_of(tmp_path / "words")
    (frame,) = studio.sample("a", values_of(studio.limits, **{"base8.steps": "900,900"}))
    assert "steps of base8: 1800 are too many for this page; allowed: at most 1000" in frame.status
    (frame,) = studio.sample("a", values_of(studio.limits, **{"base8.steps": "ddimx"}))
    assert "ddimx" in frame.status


def test_stop_ends_a_run_within_a_step_and_what_is_there_stays(
    studio_of: StudioOf, values_of: Values, plain: Path
) -> None:
    studio = studio_of(plain)
    studio.begin("a")
    frames = []
    for frame in studio.sample("a", values_of(studio.limits, **{"base4.steps": 40, "sr8.steps": 40, "sr16.steps": 40})):
        frames.append(frame)
        if "step" in frame.status:
            studio.stop("a")
    assert "stopped in" in frames[-1].status
    assert frames[-1].ended
    assert frames[-1].outcome is None
    assert frames[-1].panels is not None
    assert "<img" in frames[-1].panels


def test_stop_reaches_a_run_that_waits(studio_of: StudioOf, values_of: Values, ended: Ended, plain: Path) -> None:
    studio = studio_of(plain)
    studio.begin("a")
    studio.stop("a")
    assert "stopped before it began" in ended(studio.sample("a", values_of(studio.limits))).status
    studio.begin("a")
    assert "done in" in ended(studio.sample("a", values_of(studio.limits))).status


def test_stop_of_one_page_leaves_another_alone(
    studio_of: StudioOf, values_of: Values, ended: Ended, plain: Path
) -> None:
    studio = studio_of(plain)
    frames = studio.sample("a", values_of(studio.limits))
    next(frames)
    studio.stop("b")
    assert "done in" in ended(frames).status


def test_a_page_that_is_closed_leaves_nothing(
    studio_of: StudioOf, values_of: Values, ended: Ended, plain: Path
) -> None:
    studio = studio_of(plain)
    outcome = ended(studio.sample("a", values_of(studio.limits))).outcome
    assert outcome is not None
    assert outcome.files is not None
    studio.leave("a")
    assert not outcome.files.array.exists()
    frames = studio.sample("b", values_of(studio.limits, **{"sr16.steps": 40}))
    next(frames)
    runs = studio.session("b").runs
    studio.leave("b")
    runs[0].join(20)
    assert runs[0].snapshot().state == "stopped"


def test_the_oldest_pages_are_forgotten(studio_of: StudioOf, plain: Path) -> None:
    studio = studio_of(plain)
    first = studio.session("0")
    for i in range(70):
        studio.session(str(i + 1))
    assert studio.session("0") is not first


def test_pages_that_others_open_stop_no_run(studio_of: StudioOf, values_of: Values, ended: Ended, plain: Path) -> None:
    studio = studio_of(plain)
    frames = studio.sample("a", values_of(studio.limits))
    next(frames)
    for i in range(70):
        studio.session(str(i))
    assert "done in" in ended(frames).status


def test_a_failure_is_told_in_one_line(
    studio_of: StudioOf, values_of: Values, ended: Ended, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    studio = studio_of(plain)
    threads = threading.active_count()

    def broken(**arguments: Any) -> None:
        raise RuntimeError("out of memory\nwith 2 samples")

    monkeypatch.setattr(studio.engine.cascade, "sample", broken)
    frame = ended(studio.sample("a", values_of(studio.limits)))
    assert "sampling failed: out of memory with 2 samples" in frame.status
    assert threading.active_count() < threads + 20


def test_links(studio_of: StudioOf, values_of: Values, plain: Path) -> None:
    studio = studio_of(plain)
    assert studio.link("") == (None, None)
    frame, values = studio.link("?num=3&seed=5&sr8.s=0.1")
    assert frame is None
    assert values == values_of(studio.limits, num=3, seed=5, **{"sr8.s": 0.1})
    frame, values = studio.link("?num=900")
    assert values is None
    assert frame is not None
    assert "images: 900" in frame.status
