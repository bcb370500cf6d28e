"""YAML as people mean it: a key given twice is an error, and 1e-4 is a number.

By YAML's rules of 2005, which its Python library follows, the last of two equal keys silently wins, and a number with
an exponent needs a point and a sign to be one.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from cascaded_diffusion.errors import UserError

__all__ = ["read_yaml"]

_MOST_VALUES = 100_000
"""In one text with its aliases written out; a recipe has hundreds."""
_MOST_MERGED = 1000
_MERGE = "tag:yaml.org,2002:merge"
_EXPONENT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9_]*)?)[eE][-+]?[0-9]+\Z")


class _Loader(yaml.SafeLoader):
    """Plain values only, as the safe loader; keys and numbers as above."""

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

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Merge keys in; merges of merges grow by powers, so there is an end."""
        merges = [value for key, value in node.value if key.tag == _MERGE]
        widest = max((len(value.value) for value in merges if isinstance(value, yaml.SequenceNode)), default=0)
        if widest <= _MOST_MERGED:
            super().flatten_mapping(node)
        if widest > _MOST_MERGED or len(node.value) > _MOST_MERGED:
            raise UserError(f"line {node.start_mark.line + 1}: more than {_MOST_MERGED} keys are merged here")


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))


def read_yaml(text: str, what: str) -> Any:
    """The value of a YAML text, no part of which is shared with another: an alias stands for a copy.

    Args:
        text: the YAML.
        what: where it is from, for messages.

    Raises:
        UserError: no valid YAML, a key given twice, or too many values.
    """
    try:
        value = yaml.load(text, Loader=_Loader)
        return _Copier().copy(value)
    except UserError as error:
        raise UserError(f"{what}: {error}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # ValueError: a date that no calendar has
        raise UserError(f"{what} is not valid YAML ({' '.join(str(error).split())[:300]})") from None


class _Copier:
    """Copies with an end: a few lines of aliases of aliases can stand for more values than any memory holds."""

    def __init__(self) -> None:
        self._left = _MOST_VALUES

    def copy(self, value: Any) -> Any:
        self._left -= 1
        if self._left < 0:
            raise UserError(f"more than {_MOST_VALUES:,} values, with aliases written out")
        if isinstance(value, dict):
            return {key: self.copy(inner) for key, inner in value.items()}
        return [self.copy(inner) for inner in value] if isinstance(value, list) else value
