"""The generated reference is complete: every key of every model, every option of every command, every public name."""

from __future__ import annotations

import html
import inspect
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import typer
import yaml
from pydantic import Field

import cascaded_diffusion
from cascaded_diffusion.cascade.stage import StageConfig, StageRecipe
from cascaded_diffusion.cli.app import app
from cascaded_diffusion.config import StrictModel
from cascaded_diffusion.recipes.recipe import Recipe
from cascaded_diffusion.training.config import TrainingConfig
from docs_site import commands, configuration, interface

SOURCE = Path(cascaded_diffusion.__file__).parent
Rows = dict[str, list[str]]


def _tables(page: str) -> dict[str, Rows]:
    """Section title to its tables' rows, by first cell without markup."""
    found: dict[str, Rows] = {}
    title = ""
    for line in page.splitlines():
        if heading := re.match(r"#+ (.*?)(?: \{.*)?$", line):
            title = heading[1]
            found[title] = {}
        elif line.startswith("| ") and not line.startswith("| ---"):
            inside = line.removeprefix("| ").removesuffix(" |")
            cells = [re.sub(r"</?code>", "", cell).strip() for cell in inside.split(" | ")]
            found[title][cells[0].partition(" ")[0].rstrip(",")] = cells
    return found


@pytest.fixture(scope="module")
def recipes() -> dict[str, Rows]:
    return _tables(configuration.recipe_page().replace("&#95;", "_"))


@pytest.fixture(scope="module")
def files() -> dict[str, Rows]:
    return _tables(configuration.files_page().replace("&#95;", "_"))


def test_no_model_is_forgotten(recipes: dict[str, Rows], files: dict[str, Rows]) -> None:
    text = "\n".join(path.read_text() for path in SOURCE.rglob("*.py"))
    declared = set(re.findall(r"^class (\w+)\((?:StrictModel|StageRecipe|Origin)\)", text, re.M)) | {"Recipe"}
    models = {model.__name__: model for model in configuration.all_models()}
    assert declared <= models.keys()
    for name, model in models.items():
        assert (name in recipes) != (name in files), name
        own = model.model_fields.keys() - (StageRecipe.model_fields.keys() if model is StageConfig else set())
        assert own <= {**recipes, **files}[name].keys(), name


def test_every_key_of_a_packaged_recipe_is_explained(recipes: dict[str, Rows]) -> None:
    models = {model.__name__: model for model in configuration.all_models()}

    def walk(value: Any, model: type[StrictModel]) -> None:
        for key, inner in value.items():
            assert key in recipes[model.__name__]
            named = re.search(r"\[(\w+)\]", recipes[model.__name__][key][1])
            for item in inner if isinstance(inner, list) else [inner]:
                if isinstance(item, dict):
                    assert named is not None
                    walk(item, models[named[1]])

    for path in (SOURCE / "recipes").glob("*.yaml"):
        walk(yaml.safe_load(path.read_text()), Recipe)


def test_a_row_says_all_there_is_to_say(recipes: dict[str, Rows]) -> None:
    field = TrainingConfig.model_fields["class_dropout"]
    row = recipes["TrainingConfig"]["class_dropout"]
    assert row[1:] == ["number, from 0, below 1", "0.0", field.description]
    assert recipes["TrainingConfig"]["grad_clip"][1:3] == ["number, above 0, at most 1000000000.0; or null", "1.0"]
    assert recipes["TrainingConfig"]["decay"][1] == "constant or linear or cosine"
    assert recipes["Recipe"]["stages"][2] == "**required**"
    assert recipes["ScheduleConfig"]["continuous"][1:3] == ["true or false", "false"]


def test_every_key_has_a_meaning(recipes: dict[str, Rows]) -> None:
    empty = [f"{model}.{key}" for model, rows in recipes.items() for key, row in rows.items() if not row[-1]]
    assert empty == []


class _Inner(StrictModel):
    """Something inside."""


@pytest.mark.parametrize(
    "annotation, metadata, words",
    [
        (int, [Field(ge=1, le=9)], "whole number, from 1, at most 9"),
        (float | None, [Field(gt=0)], "number, above 0; or null"),
        (tuple[Annotated[int, Field(ge=1)], ...], [], "list of whole number, from 1"),
        (tuple[float, float], [], "list of 2: number, number"),
        (dict[str, Any] | None, [], "mapping of text to any value or null"),
        (Literal["a", 3], [], "a or 3"),
        (int | str, [], "whole number or text"),
        (_Inner, [], "[_Inner](files.md#_Inner)"),
    ],
)
def test_types_in_words(annotation: Any, metadata: list[Any], words: str) -> None:
    found = configuration.type_words(annotation, metadata)
    assert re.sub(r"</?code>", "", found) == words


def test_every_option_of_every_command() -> None:
    sections = _tables(html.unescape(commands.command_page()))
    found = commands.commands()
    assert {f"cdm {name}" for name in found} <= sections.keys()
    for name, command in found.items():
        rows = sections[f"cdm {name}"]
        for parameter in command.params:
            shown = parameter.opts[0] if parameter.opts[0].startswith("-") else parameter.metavar
            assert shown in rows or f"[{shown}]" in rows, (name, shown)
    assert sections["cdm sample"]["--seed"] == ["--seed N", "0", "Equal seeds give equal images."]
    assert sections["cdm train"]["--stage"][1] == "**required**"
    assert sections["cdm search"]["--augmentation"][1:] == ["both", "truncated, nontruncated."]


def test_a_new_command_and_a_group_of_commands_appear(monkeypatch: pytest.MonkeyPatch) -> None:
    group = typer.Typer(help="Bring things in.")

    @group.command("thing", short_help="Bring a thing | in.")
    def thing(name: str, loud: bool = typer.Option(False, help="With *noise*.")) -> None:
        """Bring a thing in."""

    group.command("other")(lambda: None)
    monkeypatch.setattr(app, "registered_groups", [*app.registered_groups])
    app.add_typer(group, name="bring")
    page = commands.command_page()
    assert "[<code>cdm bring thing</code>](#cdm-bring-thing)" in page
    assert "Bring a thing &#124; in." in page
    assert "With &#42;noise&#42;." in page


def test_every_public_name_has_its_place() -> None:
    named = {name for names in interface.rooms().values() for name in names}
    assert named == set(cascaded_diffusion.__all__) - {"__version__"}
    overview = interface.overview_page()
    for room, names in interface.rooms().items():
        page = interface.room_page(room)
        for name, module in names.items():
            assert f"::: {module}.{name}\n" in page
            assert f"[`{name}`]({room}.md#{module}.{name})" in overview
            assert inspect.getdoc(getattr(cascaded_diffusion, name)), name


def test_of_a_configuration_only_the_methods_are_shown_with_a_link_to_its_fields() -> None:
    page = interface.room_page("diffusion")
    part = page[page.index("schedule.ScheduleConfig") :]
    assert "members: ['betas', 'is_continuous', 'meaning', 'describe']" in part
    assert "(../recipes.md#ScheduleConfig)" in part
