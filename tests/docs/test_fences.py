"""Blocks and commands are found in pages, and wrong commands are told from right ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from docs_site.fences import blocks, cdm_calls, complaint, inline_calls, option_complaint

PAGE = """\
# Title

```bash
cdm plan demo
```

1. In a list:

   ```console
   $ cdm plan demo
   a table
   ```

~~~~text
```
not a block of its own
```
~~~~

Say `cdm sample demo
--num 3`, or `cdm`, or `x`.
"""


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "page.md"
    path.write_text(PAGE)
    return path


def test_blocks_know_their_place_and_kind(page: Path) -> None:
    found = [(block.place, block.language, block.text) for block in blocks(page)]
    assert found == [
        ("page.md:4", "bash", "cdm plan demo\n"),
        ("page.md:10", "console", "$ cdm plan demo\na table\n"),
        ("page.md:15", "text", "```\nnot a block of its own\n```\n"),
    ]


def test_calls_in_sentences(page: Path) -> None:
    assert inline_calls(page) == [["sample", "demo", "--num", "3"]]


@pytest.mark.parametrize(
    "text, calls",
    [
        ("cdm plan demo  # a comment\nls", [["plan", "demo"]]),
        ("git clone <this> && cd x && cdm plan demo | less", [["plan", "demo"]]),
        ("cdm recipe a > b.yaml; cdm plan b.yaml &", [["recipe", "a"], ["plan", "b.yaml"]]),
        ("cdm train r \\\n  --stage base8", [["train", "r", "--stage", "base8"]]),
        ("CUDA_VISIBLE_DEVICES=0 env/bin/cdm demo", [["demo"]]),
        ("python -m cascaded_diffusion demo --out 'a b'", [["demo", "--out", "a b"]]),
        ("torchrun --nproc-per-node 8 -m -- cascaded_diffusion search c", [["search", "c"]]),
        ("$ cdm demo\ncdm: it's output", [["demo"]]),
        ("pip install cascaded_diffusion\nls cdm", []),
    ],
)
def test_calls_in_shell_text(text: str, calls: list[list[str]]) -> None:
    assert cdm_calls(text) == calls


@pytest.mark.parametrize(
    "call, problem",
    [
        ("plan demo --gpus 8", None),
        ("--traceback plan demo", None),
        ("plan --help", None),
        ("--version", None),
        ("plan demo --gpuz 8", "--gpuz"),
        ("plan demo --gpus many", "many"),
        ("plan", "RECIPE"),
        ("plan demo more", "more"),
        ("train demo --stage base8 --data data", "--out"),
        ("plann demo", "no command 'plann'"),
        ("--loud plan demo", "no option --loud"),
    ],
)
def test_a_call_is_checked_whole(call: str, problem: str | None) -> None:
    found = complaint(call.split())
    assert found == problem if problem is None else problem in str(found)


@pytest.mark.parametrize(
    "call, problem",
    [
        ("evaluate RUN|CASCADE --data DATA [--num N] [--json FILE]", None),
        ("COMMAND --help", None),
        ("plan", None),
        ("plan RECIPE --gpus N", None),
        ("evaluate RUN [--numb N]", "--numb"),
        ("plann", "no command 'plann'"),
    ],
)
def test_a_call_with_placeholders_is_checked_by_name(call: str, problem: str | None) -> None:
    found = option_complaint(call.split())
    assert found == problem if problem is None else problem in str(found)
