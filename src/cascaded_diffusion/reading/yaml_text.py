"""YAML as people mean it, also from strangers: plain values only, bounded in size, depth, and what aliases make of it.

By YAML's rules of 2005, which its Python library follows, the last of two equal keys silently wins, and a number with
an exponent needs a point and a sign to be one. Here a key given twice is an error, and 1e-4 is a number.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from cascaded_diffusion.errors import UserError
from cascaded_diffusion.reading.json_text import check_values

__all__ = ["MOST_BYTES", "parse_yaml"]

MOST_BYTES = 128 * 2**10
_DEPTH = 32
_MOST_NODES = 20_000
_EXPONENT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9_]*)?)[eE][-+]?[0-9]+\Z")


class _PlainLoader(yaml.SafeLoader):
    """PyYAML's safe loader, which counts nodes as it meets them and knows no tags but the plain ones.

    Its constructors for other tags fail in many ways on values that do not fit, and ``<<`` can double a mapping at
    every level; both are stopped before anything is constructed.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """The next node; ``YAMLError`` at a tag, or if there are too many nodes or they are nested too deep."""
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        self._depth += 1
        self._nodes += 1
        if self._depth > _DEPTH:
            raise yaml.YAMLError(f"nested deeper than {_DEPTH}")
        if self._nodes > _MOST_NODES:
            raise yaml.YAMLError(f"more than {_MOST_NODES} values")
        tag: str | None = getattr(event, "tag", None)
        if tag is not None:
            raise yaml.YAMLError(f"the tag {tag[:100]!r} is not allowed; give plain values")
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Refuse a key that stands twice, here, where merged keys (<<) are not among a group's own yet."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                line = key.start_mark.line + 1
                if key.value in seen:
                    raise UserError(
                        f"line {line}: {key.value[:60]!r} is given a second time (first in line {seen[key.value]}); "
                        "each key once"
                    )
                seen[key.value] = line
        return node


_PlainLoader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))


def parse_yaml(text: str, what: str) -> Any:
    """The value of a YAML text, no part of which is shared with another: an alias stands for a copy.

    Raises:
        UserError: beginning with ``what``: not YAML, a tag, nested deeper than 32, more than 20,000 values when aliases
            are written out, a key that is not text or is given twice, or a whole number of more than 64 bits.
    """
    try:
        if len(text) > MOST_BYTES:
            raise yaml.YAMLError(f"{len(text)} characters, at most {MOST_BYTES} are read")
        loader = _PlainLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _weigh(node, {})
            value = loader.construct_document(node)
        finally:
            loader.dispose()
        _check_keys(value)
        check_values(value)
    except UserError as error:
        raise UserError(f"{what}: {error}") from None
    # ValueError: a date that no calendar has; OverflowError: a number in base 60 without end.
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError) as error:
        raise UserError(f"{what} is not valid YAML ({' '.join(str(error).split())[:300]})") from None
    return _copied(value)


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(inner) for key, inner in value.items()}
    return [_copied(inner) for inner in value] if isinstance(value, list) else value


def _weigh(node: yaml.Node, known: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
    """Number of nodes and depth of what ``node`` is when every alias is written out."""
    if id(node) in known:
        weight = known[id(node)]
        if weight is None:
            raise yaml.YAMLError("an alias inside what it stands for")
        return weight
    known[id(node)] = None
    parts = node.value if isinstance(node, yaml.CollectionNode) else []
    inner = [part for pair in parts for part in (pair if isinstance(pair, tuple) else (pair,))]
    weights = [_weigh(part, known) for part in inner]
    size, depth = 1 + sum(size for size, _ in weights), 1 + max((depth for _, depth in weights), default=0)
    if size > _MOST_NODES or depth > _DEPTH:
        raise yaml.YAMLError(f"its aliases make more than {_MOST_NODES} values, or {_DEPTH} levels, of it")
    known[id(node)] = (size, depth)
    return size, depth


def _check_keys(value: Any) -> None:
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise yaml.YAMLError(f"the key {key!r} is not text; put it in quotes")
            _check_keys(value[key])
    elif isinstance(value, list):
        for inner in value:
            _check_keys(inner)
