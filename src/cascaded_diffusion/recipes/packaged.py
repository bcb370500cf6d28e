"""The recipes that come with the package, found without importing torch."""

from __future__ import annotations

from functools import cache
from importlib import resources

__all__ = ["packaged_names", "packaged_summary", "read_packaged"]


@cache
def packaged_names() -> tuple[str, ...]:
    """Names of the packaged recipes, sorted."""
    folder = resources.files("cascaded_diffusion.recipes")
    return tuple(sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml")))


def read_packaged(name: str) -> str:
    """The text of a packaged recipe; its leading comment states expected time, memory and score."""
    return (resources.files("cascaded_diffusion.recipes") / f"{name}.yaml").read_text(encoding="utf-8")


def packaged_summary(name: str) -> list[str]:
    """The lines of a packaged recipe's leading comment up to the first empty one."""
    lines = []
    for line in read_packaged(name).splitlines():
        if not line.startswith("#") or not line.strip("# "):
            break
        lines.append(line.removeprefix("#").strip())
    return lines
