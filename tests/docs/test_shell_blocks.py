"""What the documentation says to type works: blocks that a CPU can run are run, all others are at least understood."""

from __future__ import annotations

import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from cascaded_diffusion.cascade.stage import build_network
from cascaded_diffusion.recipes.packaged import packaged_names
from cascaded_diffusion.recipes.recipe import load_recipe, stage_config
from docs_site.fences import Block, blocks, cdm_calls, complaint, inline_calls, option_complaint

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
FRONT = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
LANGUAGES = {"bash", "console", "python", "text", "yaml", "json", "html"}
SECONDS = 240
RUN = [page for page in PAGES if any(block.language in ("bash", "python") for block in blocks(page))]


def _fail(block: Block, what: str) -> None:
    pytest.fail(f"{block.place}: {what}\n\n{block.text}", pytrace=False)


def _run_bash(block: Block, folder: Path, environment: dict[str, str]) -> None:
    command = ["bash", "-euo", "pipefail", "-c", block.text]
    run = subprocess.run(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS
    )
    if run.returncode:
        _fail(block, f"exit status {run.returncode}\n{run.stdout[-2000:]}\n{run.stderr[-2000:]}")


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_the_blocks_of_a_page_run_in_order(page: Path, page_folder: Path, page_environment: dict[str, str]) -> None:
    found = blocks(page)
    if any(re.search(r"^cdm prepare \S+ data\b", block.text, re.M) for block in found if block.language == "bash"):
        shutil.rmtree(page_folder / "data")  # the page makes its own
    names: dict[str, Any] = {}
    for block in found:
        if block.language == "bash":
            _run_bash(block, page_folder, page_environment)
        elif block.language == "python":
            exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), names)


@pytest.mark.parametrize("page", [*PAGES, *FRONT], ids=lambda page: page.stem)
def test_every_call_of_cdm_in_a_block_is_one_that_it_takes(page: Path) -> None:
    for block in blocks(page):
        check = option_complaint if block.language == "text" else complaint
        calls = [line.split()[1:] for line in block.text.splitlines() if line.startswith("cdm ")]
        for arguments in calls if block.language == "text" else cdm_calls(block.text):
            problem = check(arguments)
            if problem is not None:
                _fail(block, f"cdm {' '.join(arguments)}: {problem}")


@pytest.mark.parametrize("page", [*PAGES, *FRONT], ids=lambda page: page.stem)
def test_a_packaged_recipe_takes_the_settings_that_a_page_gives_it(page: Path) -> None:
    for block in blocks(page):
        for arguments in cdm_calls(block.text) if block.language in ("bash", "console") else ():
            if arguments[0] != "train" or arguments[1] not in packaged_names():
                continue
            settings = [word for before, word in pairwise(arguments) if before == "--set"]
            stage = arguments[arguments.index("--stage") + 1]
            recipe = load_recipe(arguments[1], overrides=settings, stage=stage)
            channels = recipe.channels if isinstance(recipe.channels, int) else 3
            classes = recipe.classes if isinstance(recipe.classes, int) else 7
            config = stage_config(recipe, stage, channels=channels, classes=classes, class_names=None)
            with torch.device("meta"):
                build_network(config)
            assert (config.training.warmup_images or 0) < config.training.images / 2, block.place


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_call_of_cdm_in_a_sentence_names_what_there_is(page: Path) -> None:
    for arguments in inline_calls(page):
        assert option_complaint(arguments) is None, f"{page.name}: cdm {' '.join(arguments)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_says_what_it_is(page: Path) -> None:
    for block in blocks(page):
        if block.language not in LANGUAGES:
            _fail(block, f"a fence of {block.language!r}; allowed: {', '.join(sorted(LANGUAGES))}")
