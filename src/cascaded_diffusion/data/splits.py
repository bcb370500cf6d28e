"""Which image goes into which split, and in which order images are taken when only some are wanted."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from cascaded_diffusion.data.sources import Facts, Item

__all__ = ["by_content_hash", "class_balanced", "hash_fraction"]


def hash_fraction(digest: bytes) -> float:
    """The first 8 bytes of a SHA-256, big-endian, as a number in [0, 1)."""
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53  # as many bits as a float holds


def by_content_hash(items: Iterable[tuple[Item, Facts]], val: float) -> dict[str, list[Item]]:
    """Give every image whose content's hash fraction is below ``val`` to val, the others to train.

    An image's split depends on nothing but its content: it stays the same when others are added, and copies of one
    image are never on both sides.
    """
    splits: dict[str, list[Item]] = {"train": [], "val": []}
    for item, facts in items:
        if facts.digest is None:
            raise ValueError(f"no digest of {item.key}")
        splits["val" if hash_fraction(facts.digest) < val else "train"].append(item)
    return splits


def class_balanced(items: Iterable[Item]) -> list[Item]:
    """The first item of every class, then the second of every class, and so on, each class in its own order."""
    seen: dict[int, int] = defaultdict(int)
    ranked = []
    for item in items:
        ranked.append((seen[item.label], item.label, item))
        seen[item.label] += 1
    return [item for _, _, item in sorted(ranked, key=lambda entry: entry[:2])]
