"""What docs/importing-and-exporting.md says of recipes and exports is so."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_type_hints

import diffusers
import torch

from cascaded_diffusion.cascade.stage import StageConfig, build_network
from cascaded_diffusion.interop.diffusers_scheduler import export_scheduler, scheduler_faults, scheduler_notes
from cascaded_diffusion.interop.diffusers_unet import export_config, export_faults, export_weights, no_class_row
from cascaded_diffusion.interop.guided_stage import _stage_config
from cascaded_diffusion.interop.script_flags import read_flags
from cascaded_diffusion.recipes.recipe import load_recipe

PAGE = (Path(__file__).parents[2] / "docs" / "importing-and-exporting.md").read_text(encoding="utf-8")


def test_the_recipe_can_be_exported(tmp_path: Path) -> None:
    """Both its stages in full size, as diffusers builds them."""
    match = re.search(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)
    assert match is not None
    (tmp_path / "recipe.yaml").write_text(match[1])
    for stage in load_recipe(str(tmp_path / "recipe.yaml")).stages:
        raw = stage.model_dump() | {"channels": 3, "classes": 10}
        if stage.conditioning is not None:
            raw["conditioning"]["low_resolution"] = 16
        config = StageConfig.model_validate(raw)
        assert not [*export_faults(config), *scheduler_faults(config), *scheduler_notes(config, config.sampling)]
        with torch.device("meta"):
            model = diffusers.UNet2DModel(**export_config(config).model_dump())
            network = build_network(config)
        weights = export_weights(network, no_class=no_class_row(config) is not None)
        assert {name: value.shape for name, value in weights.items()} == {
            name: value.shape for name, value in model.state_dict().items()
        }
        assert export_scheduler(config, config.sampling)["_class_name"] == "DDIMScheduler"


def test_which_published_models_can_go_on_to_diffusers(published: tuple[str, str, bool, str]) -> None:
    name, family, upsampler, flags = published
    if family != "guided-diffusion":
        return
    read = read_flags(flags, family)
    arguments = read.constructor_arguments(upsampler=upsampler, classes=1000)
    config = _stage_config(read, arguments, upsampler=upsampler)
    faults = [*export_faults(config), *scheduler_faults(config)]
    assert bool(faults) is (name in ("512x512_diffusion", "128x128_diffusion", "64_256_upsampler")), faults


def test_settings_in_the_table_are_settings() -> None:
    table = PAGE[PAGE.index("| setting | why") : PAGE.index("So the packaged recipes")]
    for path in re.findall(r"`((?:network|diffusion|conditioning)\.\w+)", table):
        part, key = path.split(".")
        kind = get_type_hints(StageConfig)[part]
        fields = getattr(kind, "model_fields", None) or next(k for k in kind.__args__ if k).model_fields
        assert key in fields, path


def test_the_commands_for_imagenet_mean_what_the_table_says() -> None:
    for file in ("64x64_diffusion", "64_256_upsampler"):
        row = re.search(rf"^\| `{file}\.pt` \| `([^`]*)`", PAGE, flags=re.MULTILINE)
        command = re.search(rf'cdm import guided-diffusion {file}\.pt \w+ --flags "(.*?)"', PAGE, flags=re.DOTALL)
        assert row is not None
        assert command is not None
        short, whole = (read_flags(text, "guided-diffusion").values for text in (row[1], command[1]))
        assert whole == short.model_copy(update={"timestep_respacing": "250"})
