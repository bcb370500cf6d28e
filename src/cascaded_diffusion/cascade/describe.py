"""What a cascade is, as text for a terminal and as a table for a notebook."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

from cascaded_diffusion.cascade.sampling import SamplingConfig
from cascaded_diffusion.cascade.stage import Stage

if TYPE_CHECKING:
    from cascaded_diffusion.cascade.chain import Cascade

__all__ = ["describe_html", "describe_text"]

_MOST_NAMES = 12


def _megabytes(stage: Stage) -> str:
    size = sum(parameter.numel() * parameter.element_size() for parameter in stage.network.parameters())
    return f"{size / 1e6:,.1f} MB"


def _network(stage: Stage) -> str:
    """Widths and blocks by level, such as ``48, 96 channels; 2 blocks; attention at 8``."""
    network = stage.config.network
    blocks = network.block_counts()
    count = str(blocks[0]) if len(set(blocks)) == 1 else ", ".join(map(str, blocks))
    words = [f"{', '.join(map(str, network.widths))} channels", f"{count} block{'s' if count != '1' else ''}"]
    if network.patch > 1:
        words.append(f"patches of {network.patch}x{network.patch}")
    if network.attention:
        words.append(f"attention at {', '.join(map(str, network.attention))}")
    return "; ".join(words)


def _low_res(stage: Stage, sampling: SamplingConfig) -> str:
    """What the stage starts from, and at which s."""
    conditioning = stage.config.conditioning
    if conditioning is None:
        return "noise"
    words = f"{conditioning.low_resolution}x{conditioning.low_resolution}"
    if conditioning.augmentation != "gaussian":
        return f"{words}, no s" if conditioning.augmentation == "none" else f"{words}, trained with blur"
    at = "s = 0" if sampling.augmentation == "none" else f"{sampling.augmentation} s = {sampling.s:g}"
    return f"{words}, {at} of at most {conditioning.s_max:g}"


def _rows(cascade: Cascade) -> list[dict[str, str]]:
    rows = []
    for name, stage in cascade.stages.items():
        config, sampling = stage.config, cascade.defaults[name]
        count = sum(parameter.numel() for parameter in stage.network.parameters())
        schedule = config.diffusion.noise_schedule.describe()
        rows.append(
            {
                "stage": name,
                "makes": f"{config.resolution}x{config.resolution}x{config.channels}",
                "from": _low_res(stage, sampling),
                "parameters": f"{count / 1e6:,.2f} M",
                "size": _megabytes(stage),
                "network": _network(stage),
                "diffusion": f"{schedule}, predicts {config.diffusion.prediction}",
                "sampler": f"{sampling.sampler}, {sampling.steps} steps",
                "guidance": "none" if sampling.guidance == 1 else f"{sampling.guidance:g}",
                **_optional(stage, sampling),
            }
        )
    return rows


def _optional(stage: Stage, sampling: SamplingConfig) -> dict[str, str]:
    """Rows for what most stages do without."""
    words = [word for word in sampling.words() if word != f"guidance {sampling.guidance:g}"]
    guide = {"guide": _megabytes(stage.guide)} if stage.guide is not None else {}
    return guide | ({"sampled with": ", ".join(words)} if words else {})


def _headline(cascade: Cascade) -> str:
    sides = " -> ".join(str(stage.config.resolution) for stage in cascade.stages.values())
    names = [" ".join(name.split()) for name in cascade.class_names or ()]
    classes = "no classes" if cascade.classes is None else f"{cascade.classes} classes"
    if names:
        more = ", ..." if len(names) > _MOST_NAMES else ""
        classes += f" ({', '.join(names[:_MOST_NAMES])}{more})"
    return f"Cascade {sides} pixels, {classes}, on {cascade.device}"


def describe_text(cascade: Cascade) -> str:
    """A headline and a block of lines for each stage."""
    lines = [_headline(cascade)]
    for row in _rows(cascade):
        lines.append(f"  {row.pop('stage')}")
        lines += [f"    {key + ':':12}{value}" for key, value in row.items()]
    return "\n".join(lines)


def describe_html(cascade: Cascade) -> str:
    """A headline and a table with a row for each stage. Class names may hold anything, and are escaped."""
    rows = _rows(cascade)
    keys = dict.fromkeys(key for row in rows for key in row)
    head = "".join(f"<th>{html.escape(key)}</th>" for key in keys)
    left = ' style="text-align: left"'
    body = "".join(
        "<tr>" + "".join(f"<td{left}>{html.escape(row.get(key, ''))}</td>" for key in keys) + "</tr>" for row in rows
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f"<div><strong>{html.escape(_headline(cascade))}</strong>{table}</div>"
