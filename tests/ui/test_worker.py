"""Sampling in a thread that can be watched and stopped."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cascaded_diffusion.cascade.chain import Cascade
from cascaded_diffusion.ui.worker import Engine, Job


@pytest.fixture
def engine(plain: Path) -> Iterator[Engine]:
    engine = Engine(Cascade.from_pretrained(plain))
    yield engine
    engine.close()


def job(engine: Engine, count: int = 2, **asked: Any) -> Job:
    return Job(engine.cascade.plan(**asked), count, {"num": count, "batch_size": "auto", **asked})


def held(engine: Engine, at: int) -> tuple[threading.Event, threading.Event, list[str]]:
    """Hold the sampler after step number ``at`` of a run until told to go on; also the names of all steps made."""
    arrived, go, steps = threading.Event(), threading.Event(), []
    sample = engine.cascade.sample

    def slow(*args: Any, callback: Callable[[Any], None], **options: Any) -> Any:
        def watch(step: Any) -> None:
            steps.append(step.stage)
            if len(steps) == at:
                arrived.set()
                assert go.wait(20)
            callback(step)

        return sample(*args, callback=watch, **options)

    engine.cascade.sample = slow  # type: ignore[method-assign]
    return arrived, go, steps


def test_a_run_makes_what_the_cascade_samples(engine: Engine) -> None:
    run = engine.start(job(engine, 3))
    last = list(run.watch(0.01))[-1]
    assert last.state == "done"
    expected = engine.cascade.sample(3, batch_size="auto", return_stages=True)
    assert isinstance(expected, dict)
    for stage in last.stages:
        assert np.array_equal(run.results[stage.name], expected[stage.name])
        assert (stage.done, stage.seen) == (stage.total, 3)
    # base4 stops at s = 0.2 of 40, which leaves three of its four steps
    assert [(stage.name, stage.total) for stage in last.stages] == [("base4", 3), ("sr8", 4), ("sr16", 4)]


def test_it_can_be_looked_at_while_it_runs(engine: Engine) -> None:
    arrived, go, _ = held(engine, at=5)
    run = engine.start(job(engine))
    assert arrived.wait(20)
    now = run.snapshot()
    assert (now.state, now.running) == ("running", "sr8")
    base, middle, top = now.stages
    assert (base.done, middle.done, top.done) == (3, 1, 0)
    assert base.images is not None
    assert base.images.shape == (2, 4, 4, 3)
    assert middle.images is not None
    assert top.images is None
    assert top.seen == 0
    go.set()
    run.join(20)


def test_it_ends_after_the_step_in_which_it_is_stopped(engine: Engine) -> None:
    arrived, go, steps = held(engine, at=2)
    run = engine.start(job(engine, steps=40))
    assert arrived.wait(20)
    run.stop()
    go.set()
    last = list(run.watch(0.01))[-1]
    assert last.state == "stopped"
    assert steps == ["base4", "base4"]
    assert last.stages[0].images is not None
    assert not run.results


def test_runs_wait_for_each_other(engine: Engine) -> None:
    arrived, go, _ = held(engine, at=1)
    first = engine.start(job(engine))
    assert arrived.wait(20)
    second = engine.start(job(engine))
    assert second.snapshot().state == "waiting"
    assert second.snapshot().seconds == 0
    second.stop()
    go.set()
    assert list(second.watch(0.01))[-1].state == "stopped"
    first.join(20)
    assert first.snapshot().state == "done"


def test_who_stops_watching_stops_the_run(engine: Engine) -> None:
    arrived, go, steps = held(engine, at=2)
    run = engine.start(job(engine, steps=40))
    frames = run.watch(0.01)
    next(frames)
    assert arrived.wait(20)
    frames.close()
    go.set()
    run.join(20)
    assert run.snapshot().state == "stopped"
    assert len(steps) == 2


def test_the_time_left_is_told_once_a_stage_was_measured(engine: Engine) -> None:
    run = engine.start(job(engine))
    assert run.snapshot().unmeasured == ("base4", "sr8", "sr16")
    run.join(20)
    assert set(engine.pace) == {"base4", "sr8", "sr16"}
    engine.pace = {"base4": 1.0, "sr8": 2.0, "sr16": 4.0}
    arrived, go, _ = held(engine, at=4)
    again = engine.start(job(engine, 2, sampler={"sr16": "heun"}))
    assert arrived.wait(20)
    assert again.snapshot().unmeasured == ()
    # of two images: four steps of sr8, and sr16's four, which cost Heun seven evaluations
    pace = engine.pace["base4"]
    assert again.snapshot().left == pytest.approx(2 * (0 * pace + 4 * 2.0 + 7 * 4.0))
    go.set()
    again.join(20)


def test_guidance_costs_twice(named: Path) -> None:
    engine = Engine(Cascade.from_pretrained(named), pace={"base8": 1.0, "sr16": 1.0})
    with engine.busy:
        run = engine.start(job(engine, 1, guidance={"base8": 2.0}))
        assert run.snapshot().left == pytest.approx(4 * 2 + 4)
        run.stop()
    run.join(20)


def test_what_goes_wrong_is_handed_over(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **options: Any) -> None:
        raise RuntimeError("out of memory with 2 samples at once")

    monkeypatch.setattr(engine.cascade, "sample", broken)
    run = engine.start(job(engine))
    assert list(run.watch(0.01))[-1].state == "failed"
    assert "out of memory" in str(run.error)


def test_a_closed_engine_runs_nothing(engine: Engine) -> None:
    engine.close()
    run = engine.start(job(engine))
    assert list(run.watch(0.01))[-1].state == "stopped"
