"""The page's controls: what to sample, and how each stage does it."""

from __future__ import annotations

from typing import Any

import gradio as gr

from cascaded_diffusion.cascade.sampling import LARGEST_SIGMA
from cascaded_diffusion.ui.limits import LARGEST_SEED, SAMPLERS, PageLimits, StageLimits

__all__ = ["QUIET", "S_INFO", "stage_controls", "what_controls"]

QUIET: dict[str, Any] = {"api_visibility": "private", "preprocess": False}
"""Of every event: values arrive as the browser sent them, and ui/settings.py checks each, with a message that fits."""

S_INFO = "Noise on the small image: low keeps it, high repairs it"
_FEW_CLASSES = 24
"""Up to this many are shown as boxes to tick."""


def what_controls(limits: PageLimits) -> list[Any]:
    """Classes, count and seed."""
    controls: list[Any] = []
    if limits.classes is not None:
        named = [(name, i) for i, name in enumerate(limits.class_names)]
        if limits.classes <= _FEW_CLASSES:
            box: Any = gr.CheckboxGroup(named, label="Classes", info="None ticked: all", elem_id="cdm-classes")
        else:
            box = gr.Dropdown(
                named, value=[], multiselect=True, label="Classes", info="None chosen: all", elem_id="cdm-classes"
            )
        controls.append(box)
    count = gr.Slider(1, limits.most_images, limits.count, step=1, label="Images", elem_id="cdm-num")
    with gr.Row(elem_classes="cdm-seed"):
        seed = gr.Number(
            0, label="Seed", precision=0, minimum=0, maximum=LARGEST_SEED, elem_id="cdm-seed", min_width=90
        )
        dice = gr.Button("New seed", size="sm", min_width=90, elem_id="cdm-dice")
    dice.click(None, None, seed, js="() => Math.floor(Math.random() * 1e6)")
    return [*controls, count, seed]


def stage_controls(stage: StageLimits) -> list[Any]:
    """The controls of one stage, in the order of ``stage.controls``."""
    low = "" if stage.low_resolution is None else f"{stage.low_resolution} → "
    made: dict[str, Any] = {}
    with gr.Accordion(f"{stage.name}  ·  {low}{stage.resolution} pixels", elem_classes="cdm-box cdm-stage-box"):
        where = f"cdm-{stage.name}"
        if isinstance(stage.steps, int):
            made["steps"] = gr.Slider(
                1, stage.most_steps, stage.steps, step=1, label="Steps", elem_id=f"{where}-steps", buttons=["reset"]
            )
        else:
            made["steps"] = gr.Textbox(stage.steps, label="Steps", max_length=60, elem_id=f"{where}-steps")
        made["sampler"] = gr.Dropdown(list(SAMPLERS), value=stage.sampler, label="Sampler", elem_id=f"{where}-sampler")
        if stage.s_max is not None:
            made["augmentation"] = gr.Radio(
                list(stage.augmentations), value=stage.augmentation, label="Augmentation", elem_id=f"{where}-mode"
            )
            made["s"] = gr.Slider(
                0, stage.s_max, stage.s, step=0.01, label="s", elem_id=f"{where}-s", info=S_INFO, buttons=["reset"]
            )
        if stage.guidance is not None:
            made["guidance"] = gr.Slider(
                0,
                stage.most_guidance,
                stage.guidance,
                step=0.1,
                label="Guidance",
                info="1 is none",
                elem_id=f"{where}-guidance",
                buttons=["reset"],
            )
        if stage.guide is not None:
            made["guide"] = gr.Slider(
                0,
                stage.most_guide,
                stage.guide,
                step=0.1,
                label="Guide",
                info="Away from a weaker copy of the stage; 1 is none",
                elem_id=f"{where}-guide",
                buttons=["reset"],
            )
        if {"start", "interval_low", "grid"} & set(stage.controls):
            with gr.Accordion("More", open=False, elem_id=f"{where}-more"):
                made |= _more_controls(stage, where)
        if stage.s_max is not None:
            made["augmentation"].change(
                _what_acts,
                made["augmentation"],
                [made["s"], made["start"]],
                queue=False,
                show_progress="hidden",
                **QUIET,
            )
    return [made[name] for name in stage.controls]


def _more_controls(stage: StageLimits, where: str) -> dict[str, Any]:
    """What few need: the fields that may be empty, which is off, and the grid."""
    made: dict[str, Any] = {}
    if "start" in stage.controls:
        made["start"] = gr.Number(
            stage.start,
            label="Start time",
            info="0 to 1: from the enlarged small image, noised; empty: from noise alone. Not if truncated",
            minimum=stage.least_start,
            maximum=1,
            step=0.05,
            interactive=stage.augmentation != "truncated",
            elem_id=f"{where}-start",
        )
    if "interval_low" in stage.controls:
        sides = {
            "interval_low": (stage.interval_low, "Guidance above sigma", "Sigma: noise over image"),
            "interval_high": (stage.interval_high, "Guidance up to sigma", "Both empty: everywhere"),
        }
        for name, (value, label, info) in sides.items():
            made[name] = gr.Number(
                value,
                label=label,
                info=info,
                minimum=0,
                maximum=LARGEST_SIGMA,
                step=0.1,
                elem_id=f"{where}-{name.replace('_', '-')}",
            )
    if "grid" in stage.controls:
        made["grid"] = gr.Dropdown(
            list(stage.grids),
            value=stage.grid,
            label="Noise levels",
            info="What the steps are even in: time, EDM's power of sigma, or log SNR",
            elem_id=f"{where}-grid",
        )
    return made


def _what_acts(mode: Any) -> tuple[Any, Any]:
    """Whether s and the start are in use."""
    return gr.update(interactive=mode != "none"), gr.update(interactive=mode != "truncated")
