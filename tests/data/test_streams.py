from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from cascaded_diffusion.data.sources import Item
from cascaded_diffusion.data.splits import class_balanced
from cascaded_diffusion.data.streams import Columns, Labels, Quota, Record, local_folder, open_stream
from cascaded_diffusion.errors import UserError


def record(name: str, label: int | str | None) -> Record:
    return Record(name, label, b"")


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 8, 20, 100])
@pytest.mark.parametrize("known", [True, False])
def test_a_quota_lets_through_what_a_class_balanced_order_begins_with(limit: int, known: bool) -> None:
    generator = np.random.default_rng(limit)
    for classes, shuffled in itertools.product((1, 2, 5), (False, True)):
        labels = np.sort(generator.integers(0, classes, 40))
        if shuffled:
            generator.shuffle(labels)
        quota = Quota(limit, classes if known else None)
        taken = []
        for row, label in enumerate(labels.tolist()):
            if quota.full:
                assert known
                break
            if quota.wants(label):
                quota.take(label)
                taken.append(Item(row, label))
        best = class_balanced(Item(row, label) for row, label in enumerate(labels.tolist()))[:limit]
        assert class_balanced(taken)[:limit] == best
        assert quota.count == min(limit, len(labels))


def test_a_quota_stops_the_reading_as_soon_as_it_can() -> None:
    quota = Quota(6, 3)
    labels = [0, 1, 0, 0, 1, 2, 1, 2, 0]
    taken = []
    for label in labels:
        if quota.full:
            break
        if quota.wants(label):
            quota.take(label)
            taken.append(label)
    assert taken == labels[:-1]  # a class that comes late costs some images that are left out in the end
    assert quota.full


def test_without_classes_the_first_images_are_enough() -> None:
    quota = Quota(2, None)
    for _ in range(2):
        assert not quota.full
        assert quota.wants(None)
        quota.take(None)
    assert quota.full
    assert not quota.wants(None)


def test_without_a_limit_everything_is_wanted() -> None:
    quota = Quota(None, 2)
    for i in range(100):
        assert quota.wants(i % 2)
        quota.take(i % 2)
    assert (quota.count, quota.full) == (100, False)


@pytest.mark.parametrize(
    "given, names, expected, numbers",
    [
        (None, ["cat", "ant", "cat"], ["ant", "cat"], {"ant": 0, "cat": 1}),
        (None, [2, 0], ["0", "1", "2"], {0: 0, 2: 2}),
        (["x", "y"], [1, 1], ["x", "y"], {1: 1}),
        (None, [None, None], None, {}),
        (["x", "y"], [None], None, {}),
    ],
)
def test_classes_are_found_out(given: list[str] | None, names: list, expected: object, numbers: dict) -> None:
    labels = Labels(given)
    for i, name in enumerate(names):
        labels.admit(record(str(i), name))
    assert labels.names() == expected
    assert labels.numbers() == {None: -1} | numbers


@pytest.mark.parametrize(
    "given, labels, message",
    [
        (None, [3, "cat"], "b: the class name 'cat', where a has the class number 3"),
        (None, ["cat", None], "b: no class, where a has the class name 'cat'"),
        (None, [None, 0], "b: the class number 0, where a has no class"),
        (["x", "y"], [0, 2], "b: class 2; allowed: 0 to 1"),
        (None, [0, -5], "b: class -5; allowed: 0 to 999999"),
        (None, ["a", "a caption " * 150], "b: a class name of 1,500 characters; at most 1,000 are allowed"),
    ],
)
def test_classes_that_do_not_go_together(given: list[str] | None, labels: list, message: str) -> None:
    checked = Labels(given)
    checked.admit(record("a", labels[0]))
    with pytest.raises(UserError) as error:
        checked.admit(record("b", labels[1]))
    assert message in str(error.value)


def test_names_without_end_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cascaded_diffusion.data.streams.MAX_CLASSES", 3)
    checked = Labels(None)
    for name in ("x", "y", "z", "x"):
        checked.admit(record("a", name))
    with pytest.raises(UserError, match="b: one class name more than the 3 that are allowed"):
        checked.admit(record("b", "w"))


def test_a_missing_package_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for source, package, extra in [("hf:mnist", "datasets", "datasets"), ("wds:a.tar", "webdataset", "webdataset")]:
        monkeypatch.setitem(__import__("sys").modules, package, None)
        monkeypatch.setitem(__import__("sys").modules, f"{package}.tariterators", None)
        with pytest.raises(UserError) as error:
            open_stream(source, Columns(), tmp_path, print)
        assert f"{source}: reading it needs the package {package}" in str(error.value)
        assert str(error.value).endswith(f"pip install 'cascaded-diffusion[{extra}]'")


def test_the_folder_that_a_stream_is_read_from(tmp_path: Path) -> None:
    assert local_folder(f"hf:{tmp_path}") == tmp_path
    assert local_folder("hf:user/name") is None
    assert local_folder(f"wds:{tmp_path}") is None
