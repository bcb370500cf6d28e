from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cascaded_diffusion.errors import UserError
from cascaded_diffusion.recipes.recipe import Recipe, load_recipe, parse_overrides, recipe_text, stage_config

TEXT = """
name: mine
channels: from-data
classes: from-data
stages:
  - name: base8
    resolution: 8
    network: {channels: 32, multipliers: [1]}
    diffusion: {noise_schedule: {timesteps: 100}}
    training: {images: 1000}
  - name: sr16
    resolution: 16
    network: {channels: 32, multipliers: [1, 2]}
    conditioning: {augmentation: gaussian, s_max: 0.5}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A recipe of two stages."""
    path = tmp_path / "mine.yaml"
    path.write_text(TEXT)
    return path


def _load(path: Path, text: str | None = None, **arguments: Any) -> Recipe:
    if text is not None:
        path.write_text(text)
    return load_recipe(str(path), **arguments)


def _refusal(path: Path, text: str | None = None, **arguments: Any) -> str:
    with pytest.raises(UserError) as caught:
        _load(path, text, **arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- files ------------------------------------------------------------------------------------------------------------


def test_a_file(path: Path) -> None:
    recipe = _load(path)
    assert [stage.name for stage in recipe.stages] == ["base8", "sr16"]
    assert recipe.stage("base8").training.images == 1000
    assert recipe.flip


def test_a_packaged_name_wins_over_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "demo").write_text(TEXT)
    monkeypatch.chdir(tmp_path)
    assert load_recipe("demo").name == "demo"
    assert load_recipe("./demo").name == "mine"


def test_no_such_recipe() -> None:
    with pytest.raises(
        UserError, match=r"'fashion-mnist' is neither a file nor a packaged .* did you mean fashion-mni"
    ):
        recipe_text("fashion-mnist")


@pytest.mark.parametrize(
    "content, words",
    [
        (b"a: [", "not valid YAML"),
        (b"when: 2001-99-99", "not valid YAML"),
        (b"name: mine\nstages: 5", "stages: Input should be a valid tuple"),
        (b"&a [*a]", "not valid YAML"),
        (b"- 1", "holds list, not a mapping"),
        (b"", "holds NoneType, not a mapping"),
        (b"!!python/object/apply:os.system ['true']", "not valid YAML"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"#" * (2**17 + 1), "131073 bytes, at most 131072 are read"),
    ],
)
def test_files_that_are_no_recipe(content: bytes, words: str, path: Path) -> None:
    path.write_bytes(content)
    line = _refusal(path)
    assert words in line
    assert "mine.yaml" in line


@pytest.mark.parametrize(
    "old, new, words",
    [
        ("name: mine", "name: mine\ncolour: 3", ["colour"]),
        ("training: {images: 1000}", "training: {imges: 1000}", ["stages.base8.training.imges", "images"]),
        ("{timesteps: 100}", "{timesteps: 100, kindd: x}", ["stages.base8.diffusion.noise_schedule.kindd"]),
        ("s_max: 0.5", "s_max: 1.5", ["stages.sr16.conditioning.s_max", "1.5"]),
        ("resolution: 16", "resolution: 18", ["stages.sr16.name: ", "18"]),
        ("channels: 32, multipliers: [1]", "multipliers: [1, 1, 1, 1, 1]", ["stages.base8.resolution: 8"]),
        ("  - name: base8", "  - name: base9", ["stages.base9.name: ", "base9", "allowed base8, sr8"]),
        ("channels: from-data", "channels: many", ["channels", "many"]),
        ("    network: {channels: 32, multipliers: [1, 2]}\n", "", ["stages.sr16.network: Field required"]),
        ("    conditioning: {augmentation: gaussian, s_max: 0.5}\n", "", ["stages.sr16.conditioning: ", "needs it"]),
    ],
)
def test_what_is_wrong_is_told_by_its_path(old: str, new: str, words: list[str], path: Path) -> None:
    assert TEXT.count(old) == 1
    line = _refusal(path, TEXT.replace(old, new))
    assert all(word in line for word in words), line


def test_the_order_of_stages_is_checked(path: Path) -> None:
    head, base, sr = TEXT.partition("  - name: base8")[0], *TEXT.split("stages:\n")[1].split("  - name: sr16")
    line = _refusal(path, head + "  - name: sr16" + sr + base)
    assert "stages" in line
    assert "the first stage is the base" in line
    twice = TEXT + TEXT[TEXT.index("  - name: sr16") :]
    assert "sr16 must have a higher resolution than sr16" in _refusal(path, twice)


def test_an_unknown_stage_is_told_what_there_is(path: Path) -> None:
    with pytest.raises(UserError, match=r"stage: 'sr32' is not in recipe mine; allowed: base8, sr16"):
        _load(path).stage("sr32")


# -- overrides --------------------------------------------------------------------------------------------------------


def test_overrides_of_the_stage_at_hand(path: Path) -> None:
    recipe = _load(path, overrides=["training.images=50", "training.ema_half_lives=[10, 20]"], stage="sr16")
    assert recipe.stage("sr16").training.images == 50
    assert recipe.stage("sr16").training.ema_half_lives == (10, 20)
    assert recipe.stage("base8").training.images == 1000


def test_overrides_of_all_stages_of_one_and_of_the_recipe(path: Path) -> None:
    overrides = ["training.seed=7", "stages.base8.training.images=60", "flip=false", "classes=null", "channels=1"]
    recipe = _load(path, overrides=overrides)
    assert [stage.training.seed for stage in recipe.stages] == [7, 7]
    assert recipe.stage("base8").training.images == 60
    assert (recipe.flip, recipe.classes, recipe.channels) == (False, None, 1)


@pytest.mark.parametrize("value, read", [("1e-4", 1e-4), ("0.5", 0.5), ("1.0e-3", 1e-3)])
def test_numbers_in_every_form(value: str, read: float, path: Path) -> None:
    assert _load(path, overrides=[f"training.learning_rate={value}"]).stages[0].training.learning_rate == read


@pytest.mark.parametrize(
    "override, words",
    [
        ("training.images", ["'training.images'", "key.path=value"]),
        ("=3", ["'=3'", "key.path=value"]),
        ("training..images=3", ["key.path=value"]),
        ("trainng.images=3", ["trainng.images", "did you mean training?", "allowed first words"]),
        ("images=3", ["images", "allowed first words"]),
        ("name=x", ["name"]),
        ("stages.sr32.training.seed=1", ["'sr32'", "base8, sr16"]),
        ("stages=3", ["stages"]),
        ("stages.base8=3", ["stages.base8"]),
        ("training.images.more=3", ["training.images.more", "images is a value"]),
        ("training.imags=3", ["training.imags"]),
        ("training.images=[", ["not valid YAML"]),
        ("training.images=2001-99-99", ["not valid YAML"]),
        ("training.images=many", ["training.images", "many"]),
        ("training.learning_rate=.nan", ["training.learning_rate"]),
    ],
)
def test_overrides_that_are_refused(override: str, words: list[str], path: Path) -> None:
    line = _refusal(path, overrides=[override], stage="base8")
    assert all(word in line for word in words), line


def test_overrides_parsed() -> None:
    assert parse_overrides(["a.b=1", "c=x=y", "d=", "e=[1, 2]"]) == [
        (["a", "b"], 1),
        (["c"], "x=y"),
        (["d"], None),
        (["e"], [1, 2]),
    ]


def test_an_override_does_not_leak_through_a_yaml_alias(path: Path) -> None:
    text = TEXT.replace("training: {images: 1000}", "training: &shared {images: 1000, betas: [0.9, 0.99]}")
    text += "    training: *shared\n"
    recipe = _load(path, text, overrides=["training.images=50"], stage="sr16")
    assert [stage.training.images for stage in recipe.stages] == [1000, 50]
    recipe = _load(path, text, overrides=["stages.base8.training.images=70"])
    assert [stage.training.images for stage in recipe.stages] == [70, 1000]


@pytest.mark.parametrize(
    "text",
    ["stages: 5", "stages: [1, 2]", "stages: {a: 1}", "stages: [{name: [1]}, {name: {a: b}}]", "stages: null", "x: 1"],
)
def test_overrides_of_a_recipe_that_is_none(text: str, path: Path) -> None:
    assert "recipe" in _refusal(path, f"name: mine\n{text}", overrides=["training.images=50"], stage="base8")


# -- with data --------------------------------------------------------------------------------------------------------


def test_a_stages_configuration_on_data(path: Path) -> None:
    recipe = _load(path)
    base = stage_config(recipe, "base8", channels=1, classes=2, class_names=["a", "b"])
    assert (base.channels, base.classes, base.class_names, base.flip) == (1, 2, ("a", "b"), True)
    high = stage_config(recipe, "sr16", channels=3, classes=None, class_names=None)
    assert (high.channels, high.classes, high.class_names) == (3, None, None)
    assert high.conditioning is not None
    assert high.conditioning.low_resolution == 8
    assert high.conditioning.low_schedule == recipe.stage("base8").diffusion.noise_schedule


def test_blur_has_no_schedule_of_the_stage_below(path: Path) -> None:
    recipe = _load(path, TEXT.replace("augmentation: gaussian, s_max: 0.5", "augmentation: blur"))
    conditioning = stage_config(recipe, "sr16", channels=3, classes=None, class_names=None).conditioning
    assert conditioning is not None
    assert conditioning.low_schedule is None
    assert conditioning.low_resolution == 8


@pytest.mark.parametrize(
    "override, found, words",
    [
        ("channels=3", {"channels": 1}, "channels: the recipe says 3, the data has 1"),
        ("classes=10", {"classes": 4}, "classes: the recipe says 10, the data has 4"),
        ("classes=10", {"classes": None}, "classes: the recipe says 10, the data has None"),
    ],
)
def test_data_that_is_not_what_the_recipe_says(override: str, found: dict[str, Any], words: str, path: Path) -> None:
    data = {"channels": 3, "classes": 4, "class_names": None} | found
    with pytest.raises(UserError, match=words):
        stage_config(_load(path, overrides=[override]), "base8", **data)


def test_classes_can_be_left_aside(path: Path) -> None:
    config = stage_config(
        _load(path, overrides=["classes=null"]), "base8", channels=3, classes=2, class_names=["a", "b"]
    )
    assert (config.classes, config.class_names) == (None, None)


def test_what_is_said_of_the_stage_below_must_be_true(path: Path) -> None:
    line = _refusal(path, overrides=["conditioning.low_resolution=4"], stage="sr16")
    assert "stages.sr16.conditioning.low_resolution: 4, but base8 before it has 8; leave it out" in line
    line = _refusal(path, overrides=["conditioning.low_schedule={timesteps: 200}"], stage="sr16")
    assert "stages.sr16.conditioning.low_schedule: cosine T=200, but base8 before it has cosine T=100" in line
    agreeing = ["conditioning.low_resolution=8", "conditioning.low_schedule={timesteps: 100}"]
    assert _load(path, overrides=agreeing, stage="sr16").stage("sr16").conditioning is not None
