"""Every reader of outside data, against a few of the inputs of ``make fuzz``."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzz import seeds
from fuzz.explore import explore, try_once
from fuzz.targets import TARGETS, Target

from cascaded_diffusion.errors import UserError

INPUTS = 200


@pytest.fixture(scope="module", autouse=True)
def _seeds() -> None:
    seeds.trained()


@pytest.mark.parametrize("name", TARGETS)
def test_a_reader_takes_its_input_or_refuses_it_in_one_line(name: str) -> None:
    found = explore(name, INPUTS, 0)
    assert found.wrong == []
    assert found.tried == INPUTS
    assert found.taken > 0


def _faulty(content: bytes) -> None:
    if b"t" in content:
        raise UserError("two\nlines" if b"w" in content else "one line")
    if b"k" in content:
        raise KeyError("k")
    if b"h" in content:
        while True:
            pass


@pytest.mark.parametrize(
    "content, outcome",
    [(b"", "taken"), (b"t", "refused"), (b"tw", "refused"), (b"k", "KeyError: 'k'"), (b"h", "took longer than 0.2 s")],
)
def test_outcomes_are_told_apart(content: bytes, outcome: str) -> None:
    import signal

    from fuzz.explore import _late

    before = signal.signal(signal.SIGVTALRM, _late)
    try:
        assert try_once(Target((b"",), lambda rng, valid: valid, _faulty), content, 0.2) == outcome
    finally:
        signal.signal(signal.SIGVTALRM, before)


def test_what_kills_or_fills_the_process_is_found_and_the_rest_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def die(folder: Path) -> Target:
        def read(content: bytes) -> object:
            if content == b"die":
                import os

                os._exit(9)
            return bytearray(2**31) if content == b"fill" else None

        return Target((b"ok",), lambda rng, valid: rng.choice((b"ok", b"fine", b"fill", b"die")), read)

    monkeypatch.setitem(TARGETS, "faulty", die)
    found = explore("faulty", 60, 0)
    assert found.tried >= 50
    assert {outcome.split(":")[0] for outcome, _ in found.wrong} == {"killed its process", "MemoryError"}
    assert {content for _, content in found.wrong} == {b"die", b"fill"}
