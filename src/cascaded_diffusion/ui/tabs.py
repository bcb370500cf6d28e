"""The page's tabs: three ways to use the cascade, each with its buttons and the place where its run is shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr

from cascaded_diffusion.ui import view
from cascaded_diffusion.ui.controls import QUIET, S_INFO
from cascaded_diffusion.ui.limits import PageLimits, StageLimits
from cascaded_diffusion.ui.studio import Frame

__all__ = ["Tab", "Tabs", "build_tabs"]

_NO_CLASS = -1


@dataclass
class Tab:
    """One way to use the cascade: its buttons, and where its run is shown."""

    start: gr.Button
    stop: gr.Button
    status: gr.HTML
    panels: gr.HTML
    shown: list[Any]
    show: Callable[[Frame], dict[Any, Any]]


@dataclass
class Tabs:
    """The tabs that the cascade has a use for, and the extra inputs of each."""

    sample: Tab
    compare: tuple[Tab, list[Any]] | None
    enlarge: tuple[Tab, list[Any]] | None


def build_tabs(limits: PageLimits) -> Tabs:
    """The tabs that the cascade has a use for."""
    with gr.Tab("Sample", id="sample"):
        sample = _sample_tab(limits)
    compare = enlarge = None
    if limits.comparable:
        with gr.Tab("Compare two s", id="compare"):
            compare = _compare_tab(limits)
    if limits.enlarging:
        with gr.Tab("Enlarge your image", id="enlarge"):
            enlarge = _enlarge_tab(limits)
    return Tabs(sample, compare, enlarge)


def _run_row(name: str, where: str, stages: list[StageLimits]) -> tuple[gr.Button, gr.Button, gr.HTML, gr.HTML]:
    with gr.Row(elem_classes="cdm-run"):
        start = gr.Button(name, variant="primary", elem_id=f"cdm-{where}")
        stop = gr.Button("Stop", variant="stop", interactive=False, elem_id=f"cdm-{where}-stop")
    status = gr.HTML("", elem_id=f"cdm-{where}-status", padding=False, elem_classes="cdm-status-box")
    panels = gr.HTML(view.idle_panels(stages), elem_id=f"cdm-{where}-panels", padding=False)
    return start, stop, status, panels


def _share(where: str) -> gr.Code:
    return gr.Code(
        language="shell",
        label="The same images from the command line",
        interactive=False,
        wrap_lines=True,
        visible=False,
        elem_id=f"cdm-{where}-command",
    )


def _downloads(where: str) -> tuple[gr.DownloadButton, gr.DownloadButton]:
    with gr.Row(elem_classes="cdm-downloads"):
        archive = gr.DownloadButton("Download PNG (.zip)", visible=False, size="sm", elem_id=f"cdm-{where}-zip")
        array = gr.DownloadButton("Download array (.npz)", visible=False, size="sm", elem_id=f"cdm-{where}-npz")
    return archive, array


def _sample_tab(limits: PageLimits) -> Tab:
    start, stop, status, panels = _run_row("Sample", "sample", list(limits.stages))
    gallery = gr.Gallery(
        label="Images",
        show_label=False,
        columns=6,
        height="auto",
        object_fit="contain",
        format="png",
        visible=False,
        interactive=False,
        buttons=["download", "fullscreen"],
        elem_id="cdm-sample-gallery",
    )
    archive, array = _downloads("sample")
    command = _share("sample")
    link = gr.HTML("", visible=False, elem_id="cdm-sample-link", padding=False)

    def show(frame: Frame) -> dict[Any, Any]:
        outcome = frame.outcome
        if outcome is None or outcome.files is None:
            return {}
        return {
            gallery: gr.update(value=[(str(path), words or None) for path, words in outcome.gallery], visible=True),
            archive: gr.update(value=str(outcome.files.archive), visible=True),
            array: gr.update(value=str(outcome.files.array), visible=True),
            command: gr.update(value=outcome.command, visible=True),
            link: gr.update(value=view.link(outcome.link), visible=True),
        }

    return Tab(start, stop, status, panels, [gallery, archive, array, command, link], show)


def _before_after(where: str) -> gr.ImageSlider:
    return gr.ImageSlider(
        format="png",
        type="pil",
        interactive=False,
        visible=False,
        max_height=560,
        buttons=["fullscreen"],
        elem_id=f"cdm-{where}-slider",
    )


def _compare_tab(limits: PageLimits) -> tuple[Tab, list[Any]]:
    stages = limits.comparable
    first = stages[0]
    assert first.s_max is not None  # of those that can be compared
    gr.Markdown("Same noise, same classes, two strengths of the conditioning augmentation. Everything else is as set.")
    with gr.Row():
        names = [stage.name for stage in stages]
        stage = gr.Dropdown(names, value=first.name, label="Stage", visible=len(names) > 1, elem_id="cdm-compare-stage")
        sides = [
            gr.Slider(0, first.s_max, value, step=0.01, label=label, elem_id=f"cdm-compare-{side}")
            for side, label, value in (("left", "s left", 0.0), ("right", "s right", first.s_max / 2))
        ]
    start, stop, status, panels = _run_row("Compare", "compare", list(limits.stages))
    slider = _before_after("compare")
    command = _share("compare")
    stage.change(
        lambda name: [gr.update(maximum=_s_max(stages, name))] * 2,
        stage,
        sides,
        queue=False,
        show_progress="hidden",
        **QUIET,
    )

    def show(frame: Frame) -> dict[Any, Any]:
        if frame.outcome is None:
            return {}
        return {
            slider: gr.update(value=frame.outcome.pair, label=frame.outcome.words, visible=True),
            command: gr.update(value=frame.outcome.command, visible=True),
        }

    return Tab(start, stop, status, panels, [slider, command], show), [stage, *sides]


def _s_max(stages: tuple[StageLimits, ...], name: Any) -> float:
    return next((stage.s_max for stage in stages if stage.name == name and stage.s_max is not None), 1.0)


def _enlarge_tab(limits: PageLimits) -> tuple[Tab, list[Any]]:
    first = limits.enlarging[0]
    side = first.low_resolution
    gr.Markdown(
        f"Your image is cut to its centre square and averaged to the small size ({side}×{side} for {first.name}); "
        "the stages from there on enlarge it."
    )
    with gr.Row():
        image = gr.Image(
            label="Your image (PNG, JPEG, ...; at most 10 MB)",
            type="filepath",
            sources=["upload", "clipboard"],
            height=210,
            buttons=[],
            elem_id="cdm-enlarge-image",
        )
        with gr.Column():
            names = [stage.name for stage in limits.enlarging]
            start_at = gr.Dropdown(
                names, value=first.name, label="Start with", visible=len(names) > 1, elem_id="cdm-enlarge-start"
            )
            options = _class_options(limits, first.name)
            label = gr.Dropdown(
                options,
                value=options[0][1] if options else None,
                label="Its class",
                visible=limits.classes is not None,
                elem_id="cdm-enlarge-class",
            )
            strength = gr.Slider(
                0,
                first.s_max or 1,
                first.s,
                step=0.01,
                label="s",
                info=S_INFO,
                visible=first.s_max is not None,
                elem_id="cdm-enlarge-s",
            )
    start, stop, status, panels = _run_row("Enlarge", "enlarge", list(limits.enlarging))
    slider = _before_after("enlarge")
    archive, array = _downloads("enlarge")
    command = _share("enlarge")
    start_at.change(
        lambda name, chosen: (_strength_of(limits.enlarging, name), _class_of(limits, name, chosen)),
        [start_at, label],
        [strength, label],
        queue=False,
        show_progress="hidden",
        **QUIET,
    )

    def show(frame: Frame) -> dict[Any, Any]:
        outcome = frame.outcome
        if outcome is None or outcome.files is None:
            return {}
        return {
            slider: gr.update(value=outcome.pair, label=outcome.words, visible=True),
            archive: gr.update(value=str(outcome.files.archive), visible=True),
            array: gr.update(value=str(outcome.files.array), visible=True),
            command: gr.update(value=outcome.command, visible=True),
        }

    tab = Tab(start, stop, status, panels, [slider, archive, array, command], show)
    return tab, [image, start_at, label, strength]


def _class_options(limits: PageLimits, stage: str) -> list[tuple[str, int]]:
    unknown = [("not known", _NO_CLASS)] if limits.knows_no_class(stage) else []
    return unknown + [(name, i) for i, name in enumerate(limits.class_names)]


def _class_of(limits: PageLimits, name: Any, chosen: Any) -> Any:
    """The classes to choose from where the stages from ``name`` on enlarge; what was chosen stays if it can."""
    if name not in [stage.name for stage in limits.enlarging]:
        return gr.update()
    options = _class_options(limits, name)
    values = [value for _, value in options]
    return gr.update(choices=options, value=chosen if chosen in values else next(iter(values), None))


def _strength_of(stages: tuple[StageLimits, ...], name: Any) -> Any:
    stage = next((stage for stage in stages if stage.name == name), None)
    if stage is None or stage.s_max is None:
        return gr.update(visible=False)
    return gr.update(maximum=stage.s_max, value=stage.s, visible=True)
