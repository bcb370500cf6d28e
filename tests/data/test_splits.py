import hashlib

import numpy as np
import pytest

from cascaded_diffusion.data.sources import Facts, Item
from cascaded_diffusion.data.splits import by_content_hash, class_balanced, hash_fraction


def test_hash_fraction_spans_zero_to_one() -> None:
    assert hash_fraction(bytes(32)) == 0
    assert hash_fraction(b"\x80" + bytes(31)) == 0.5
    assert 0.999 < hash_fraction(b"\xff" * 32) < 1
    fractions = [hash_fraction(hashlib.sha256(bytes([i])).digest()) for i in range(256)]
    assert abs(np.mean(fractions) - 0.5) < 0.06


def test_by_content_hash_keeps_copies_together_whatever_else_there_is() -> None:
    digests = [hashlib.sha256(bytes([i % 50])).digest() for i in range(100)]
    pairs = [(Item(i, 0), Facts(1, 1, True, digest)) for i, digest in enumerate(digests)]
    splits = by_content_hash(pairs, 0.3)
    val = {item.key for item in splits["val"]}
    assert 0 < len(val) < 60
    assert all((i in val) == (i + 50 in val) for i in range(50))
    fewer = by_content_hash(pairs[10:20], 0.3)
    assert {item.key for item in fewer["val"]} == val & set(range(10, 20))
    with pytest.raises(ValueError, match="no digest"):
        by_content_hash([(Item(0, 0), Facts(1, 1, True, None))], 0.3)


def test_class_balanced_goes_round_the_classes() -> None:
    labels = [0, 0, 0, 1, 2, 2]
    order = class_balanced([Item(i, label) for i, label in enumerate(labels)])
    assert [item.key for item in order] == [0, 3, 4, 1, 5, 2]
    assert [item.key for item in class_balanced([Item(i, -1) for i in range(4)])] == [0, 1, 2, 3]
