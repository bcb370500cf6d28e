"""Pieces of the page that change while a run goes on, as HTML."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from cascaded_diffusion.pictures import encode_png, to_picture
from cascaded_diffusion.report.markup import Html, joined, tag
from cascaded_diffusion.ui.limits import PageLimits, StageLimits
from cascaded_diffusion.ui.outcome import across, caption
from cascaded_diffusion.ui.worker import Snapshot, StageProgress

__all__ = ["complaint", "finished", "headline", "idle_panels", "link", "panels", "status", "wait"]

_MOST_LIVE = 36
"""Images that are shown of a stage while it runs, and afterwards."""
_LIVE_SIDE = 160
_SMALL = 64
"""Up to this many pixels a side an image is sent as it is, without loss."""


def headline(name: str, limits: PageLimits, channels: int) -> Html:
    """What the page is about."""
    chain = joined((tag("span", stage.name, class_="cdm-stage") for stage in limits.stages), " → ")
    kind = {1: "grey", 3: "colour"}.get(channels, f"{channels}-channel")
    classes = f"{limits.classes} classes" if limits.classes else "no classes"
    side = limits.stages[-1].resolution
    facts = f"{side}×{side} pixels, {kind}, {classes}"
    return tag("header", tag("h1", name), tag("p", chain, tag("span", facts, class_="cdm-facts")), class_="cdm-head")


def _seconds(value: float) -> str:
    if value < 9.95:
        return f"{value:.1f} s"
    if value < 90:
        return f"{value:.0f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _line(text: str, share: float, kind: str) -> Html:
    bar = tag("div", tag("span", style=f"width:{100 * min(max(share, 0), 1):.1f}%"), class_="cdm-bar")
    return tag("div", tag("p", text), bar, class_=f"cdm-status cdm-{kind}", role="status")


def complaint(text: str) -> Html:
    """What is wrong, in one line."""
    return tag("div", tag("p", text), class_="cdm-status cdm-failed", role="alert")


def wait(text: str) -> Html:
    """A line about something that has not begun."""
    return _line(text, 0, "waiting")


def status(snapshot: Snapshot, what: str = "") -> Html:
    """What runs now, how far it is, how long it will take, or how long it took."""
    steps = sum(stage.total for stage in snapshot.stages)
    share = sum(stage.done for stage in snapshot.stages) / max(steps, 1)
    prefix = f"{what}: " if what else ""
    if snapshot.state == "waiting":
        return wait(f"{prefix}waiting for the run before it")
    if snapshot.state == "running":
        return _line(f"{prefix}{_progress(snapshot)}", share, "running")
    if snapshot.state == "done":
        parts = ", ".join(f"{stage.name} {_seconds(stage.seconds)}" for stage in snapshot.stages)
        return _line(f"{prefix}done in {_seconds(snapshot.seconds)} ({parts})", 1, "done")
    at = next((stage for stage in snapshot.stages if stage.name == snapshot.running), None)
    where = f" in {at.name}, after step {at.done} of {at.total}" if at is not None else " before it began"
    return _line(f"{prefix}stopped{where}, after {_seconds(snapshot.seconds)}", share, "stopped")


def finished(text: str, seconds: float) -> Html:
    """Something made of several runs is done."""
    return _line(f"{text} done in {_seconds(seconds)}", 1, "done")


def _progress(snapshot: Snapshot) -> str:
    now = next((stage for stage in snapshot.stages if stage.name == snapshot.running), None)
    if now is None:
        return "starting"
    text = f"{now.name}, step {now.done} of {now.total}"
    if now.name in snapshot.unmeasured:
        return text
    later = [name for name in snapshot.unmeasured if name != now.name]
    then = f", and then {', '.join(later)}" if later else ""
    return f"{text}; about {_seconds(snapshot.left)} left{then}"


def idle_panels(stages: Sequence[StageLimits]) -> Html:
    """The stages before there is anything to see."""
    words = "Press the button and watch it denoise here."
    cards = [
        _card(stage.name, stage.resolution, "", tag("p", words if i == 0 else "Refines what comes before it."), "idle")
        for i, stage in enumerate(stages)
    ]
    return tag("div", *cards, class_="cdm-panels")


def panels(snapshot: Snapshot, limits: PageLimits, labels: Sequence[int]) -> Html:
    """Every stage with its images as they stand."""
    cards = []
    for progress in snapshot.stages:
        stage = limits.stage(progress.name)
        running = snapshot.state == "running" and snapshot.running == progress.name
        kind = "running" if running else "done" if progress.done >= progress.total else "idle"
        cards.append(_card(stage.name, stage.resolution, _chip(progress), _images(progress, limits, labels), kind))
    return tag("div", *cards, class_="cdm-panels")


def _chip(progress: StageProgress) -> str:
    if progress.done >= progress.total:
        return _seconds(progress.seconds) if progress.total else "no steps"
    return f"step {progress.done} of {progress.total}" if progress.done else "waiting"


def _card(name: str, resolution: int, chip: str, content: Html, kind: str) -> Html:
    title = tag("h3", name, tag("span", f"{resolution}×{resolution}", class_="cdm-facts"))
    head = tag("div", title, tag("span", chip, class_="cdm-chip") if chip else "", class_="cdm-card-head")
    return tag("section", head, content, class_=f"cdm-card cdm-card-{kind}", data_stage=name)


def _images(progress: StageProgress, limits: PageLimits, labels: Sequence[int]) -> Html:
    count = min(len(labels), _MOST_LIVE)
    figures = [_figure(progress, i, caption(labels[i], limits.class_names)) for i in range(count)]
    rest = tag("p", f"and {len(labels) - count} more", class_="cdm-facts") if len(labels) > count else ""
    return tag("div", tag("div", *figures, class_="cdm-images", style=f"--across:{across(count)}"), rest)


def _figure(progress: StageProgress, i: int, words: str) -> Html:
    below = tag("figcaption", words, title=words) if words else ""
    if progress.images is None or i >= progress.seen:
        return tag("figure", tag("div", class_="cdm-blank"), below)
    return tag("figure", _img(progress.images[i], words or f"image {i}"), below)


def _img(image: np.ndarray, words: str) -> Html:
    picture = to_picture(image)
    if picture.width <= _SMALL:
        kind, data = "png", encode_png(picture)
    else:
        picture.thumbnail((_LIVE_SIDE, _LIVE_SIDE), Image.Resampling.BOX)
        buffer = io.BytesIO()
        picture.convert("RGB").save(buffer, "JPEG", quality=88)
        kind, data = "jpeg", buffer.getvalue()
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return tag("img", src=source, alt=words, class_="cdm-pixels" if kind == "png" else None)


def link(query: str) -> Html:
    """A link that opens the page with the settings of ``query``."""
    return tag("p", tag("a", "Link to this page with these settings", href=query), class_="cdm-link")
