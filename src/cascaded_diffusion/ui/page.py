"""The page: its controls, where they stand, and which button does what."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from cascaded_diffusion.ui import view
from cascaded_diffusion.ui.controls import QUIET, stage_controls, what_controls
from cascaded_diffusion.ui.guard import KEPT_SECONDS, SWEEP_SECONDS
from cascaded_diffusion.ui.studio import Frame, Studio
from cascaded_diffusion.ui.tabs import Tab, Tabs, build_tabs

__all__ = ["CSS", "build_page", "theme"]

CSS = Path(__file__).with_name("page.css")

_QUEUE = 8


def theme() -> gr.themes.Base:
    """Plain and calm, with the fonts that the machine has."""
    return gr.themes.Base(
        primary_hue="indigo",
        neutral_hue="slate",
        radius_size="md",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    ).set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        block_border_width="0px",
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_text_color="white",
    )


def build_page(studio: Studio, title: str) -> gr.Blocks:
    """The page about a studio's cascade; it is not served yet."""
    limits = studio.limits
    page = gr.Blocks(title=title, analytics_enabled=False, fill_width=True, delete_cache=(SWEEP_SECONDS, KEPT_SECONDS))
    with page:
        gr.HTML(view.headline(title, limits, studio.channels), padding=False)
        with gr.Column(elem_id="cdm-layout"):
            with gr.Column(elem_id="cdm-what", elem_classes="cdm-box"):
                what = what_controls(limits)
            with gr.Column(elem_id="cdm-main", elem_classes="cdm-box"), gr.Tabs():
                tabs = build_tabs(limits)
            with gr.Column(elem_id="cdm-how"):
                how = [control for stage in limits.stages for control in stage_controls(stage)]
        _connect(page, studio, [*what, *how], tabs)
    page.queue(max_size=_QUEUE, default_concurrency_limit=1, api_open=False)
    return page


def _connect(page: gr.Blocks, studio: Studio, controls: list[Any], tabs: Tabs) -> None:
    """Let the buttons act; every run goes through one queue, one at a time."""

    def sample(request: gr.Request, *values: Any) -> Iterator[dict[Any, Any]]:
        yield from _frames(tabs.sample, studio.sample(_key(request), values))

    _start(studio, tabs.sample, sample, controls)
    if tabs.compare is not None:
        compare_tab, extra = tabs.compare

        def compare(request: gr.Request, *values: Any) -> Iterator[dict[Any, Any]]:
            *given, stage, left, right = values
            yield from _frames(compare_tab, studio.compare(_key(request), given, stage, left, right))

        _start(studio, compare_tab, compare, [*controls, *extra])
    if tabs.enlarge is not None:
        enlarge_tab, extra = tabs.enlarge

        def enlarge(request: gr.Request, *values: Any) -> Iterator[dict[Any, Any]]:
            *given, image, start, label, s = values
            yield from _frames(enlarge_tab, studio.enlarge(_key(request), given, image, start, label, s))

        _start(studio, enlarge_tab, enlarge, [*controls, *extra])
    _open_links(page, studio, controls, tabs.sample)

    def leave(request: gr.Request) -> None:
        studio.leave(_key(request))

    page.unload(leave)


def _start(studio: Studio, tab: Tab, run: Callable[..., Any], inputs: list[Any]) -> None:
    def begin(request: gr.Request) -> dict[Any, Any]:
        frame = studio.begin(_key(request))
        return {
            tab.status: frame.status,
            tab.start: gr.update(interactive=False),
            tab.stop: gr.update(interactive=True),
        }

    def stop(request: gr.Request) -> Any:
        studio.stop(_key(request))
        return gr.update(interactive=False)

    buttons = [tab.status, tab.start, tab.stop]
    tab.start.click(begin, None, buttons, queue=False, show_progress="hidden", **QUIET).then(
        run,
        inputs,
        [*buttons, tab.panels, *tab.shown],
        show_progress="hidden",
        concurrency_limit=1,
        concurrency_id="sampling",
        **QUIET,
    ).failure(
        lambda: {
            tab.status: view.complaint("nothing was done: too many runs wait already; try again in a while"),
            tab.start: gr.update(interactive=True),
            tab.stop: gr.update(interactive=False),
        },
        None,
        buttons,
        queue=False,
        **QUIET,
    )
    tab.stop.click(stop, None, tab.stop, queue=False, show_progress="hidden", **QUIET)


def _frames(tab: Tab, frames: Iterator[Frame]) -> Iterator[dict[Any, Any]]:
    for frame in frames:
        update: dict[Any, Any] = {tab.status: frame.status, **tab.show(frame)}
        if frame.panels is not None:
            update[tab.panels] = frame.panels
        if frame.ended:
            update |= {tab.start: gr.update(interactive=True), tab.stop: gr.update(interactive=False)}
        yield update


def _open_links(page: gr.Blocks, studio: Studio, controls: list[Any], tab: Tab) -> None:
    address = gr.Textbox(visible=False)

    def open_link(query: Any) -> dict[Any, Any]:
        frame, values = studio.link(query)
        if frame is not None:
            return {tab.status: frame.status}
        shown = {tab.status: gr.skip()}  # an empty answer is none to Gradio
        return shown if values is None else shown | dict(zip(controls, values, strict=True))

    page.load(
        open_link,
        address,
        [tab.status, *controls],
        js="() => [window.location.search]",
        queue=False,
        show_progress="hidden",
        **QUIET,
    )


def _key(request: gr.Request) -> str:
    return str(request.session_hash)
