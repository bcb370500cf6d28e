"""Finding what a page is about."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cascaded_diffusion.errors import UserError
from cascaded_diffusion.report.collect import find_subjects


def _write(path: Path, content: object = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({} if content is None else content))
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with one of everything that is found, and much that is not."""
    _write(tmp_path / "runs/base8/config.json")
    (tmp_path / "runs/base8/checkpoints").mkdir()
    _write(tmp_path / "runs/base8/scores.json", {"format_version": 1, "scores": {}})
    _write(tmp_path / "cascade/cascade.json")
    _write(tmp_path / "cascade/base8/config.json")
    _write(tmp_path / "cascade/base8/model.safetensors")
    _write(tmp_path / "search/search.json")
    _write(tmp_path / "search/points/a.json", {"format_version": 1, "scores": {}})
    _write(tmp_path / "search/cascade/cascade.json")
    _write(tmp_path / "data/manifest.json")
    _write(tmp_path / "data/train/other.json", {"format_version": 1, "scores": {}})
    _write(tmp_path / ".hidden/cascade.json")
    _write(tmp_path / "notes.json", {"scores": [1, 2]})
    _write(tmp_path / "a/b/c/cascade.json")
    _write(tmp_path / "a/b/c/d/cascade.json")
    return tmp_path


def test_a_folder_is_searched_three_folders_deep(tree: Path) -> None:
    found = find_subjects(str(tree))
    assert [name for name, _ in found.runs] == ["runs/base8"]
    assert [name for name, _ in found.cascades] == ["a/b/c", "cascade", "search/cascade"]
    assert [name for name, _ in found.searches] == ["search"]
    assert [name for name, _ in found.scores] == ["runs/base8/scores.json"]


def test_a_run_alone_is_called_by_its_folder(tree: Path) -> None:
    found = find_subjects(str(tree / "runs/base8"))
    assert found.runs == [("base8", tree / "runs/base8")]
    assert not found.cascades


def test_scores_and_a_search_from_elsewhere_are_added_once(tree: Path) -> None:
    scores = tree / "runs/base8/scores.json"
    found = find_subjects(str(tree / "cascade"), scores=[scores, scores], search=tree / "search")
    assert [path for _, path in found.scores] == [scores]
    assert [path for _, path in found.searches] == [tree / "search"]
    assert len(find_subjects(str(tree), scores=[scores], search=tree / "search").searches) == 1


def test_the_packaged_cascade_wins_over_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    (cascade,) = find_subjects("demo").cascades
    assert cascade[1].resolve() != (tmp_path / "demo").resolve()


def test_what_cannot_be_reported_on_is_named(tree: Path) -> None:
    for target, words in (
        (tree / "nowhere", "no such folder"),
        (tree / "notes.json", "a file"),
        (tree / "data", "no run, cascade, search folder or scores file"),
        (tree / "cascade/base8", "cdm assemble"),
    ):
        with pytest.raises(UserError, match=words) as error:
            find_subjects(str(target))
        assert target.name in str(error.value)
    with pytest.raises(UserError, match=r"--scores.*no\.json"):
        find_subjects("demo", scores=[tree / "no.json"])
    with pytest.raises(UserError, match=r"--search.*search\.json"):
        find_subjects("demo", search=tree / "data")


def test_json_that_is_none_is_passed_over_and_named(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, text in (("cut", '{"scores": {'), ("nan", '{"a": NaN}'), ("words", '{"a": 1} // why')):
        (tree / "runs" / f"{name}.json").write_text(text)
    found = find_subjects(str(tree))
    assert [name for name, _ in found.runs] == ["runs/base8"]
    assert [name for name, _ in found.scores] == ["runs/base8/scores.json"]
    (record,) = caplog.records
    assert record.getMessage().startswith(f"passed over {tree / 'runs/cut.json'}: not valid JSON")
    assert all(f"{name}.json: not valid JSON" in record.getMessage() for name in ("nan", "words"))


def test_of_many_files_that_are_passed_over_a_few_are_named(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    for place in range(9):
        (tree / "runs" / f"{place}.json").write_text("{")
    find_subjects(str(tree))
    (record,) = caplog.records
    assert record.getMessage().count("not valid JSON") == 5
    assert record.getMessage().endswith("; and 4 more")


def _lock_up(locked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep a folder from being listed, which its permissions do not where the tests run as root."""
    honest = Path.iterdir

    def iterdir(path: Path) -> Iterator[Path]:
        if path == locked:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return honest(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)


def test_a_folder_that_cannot_be_listed_is_passed_over_and_named(
    tree: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _lock_up(tree / "a", monkeypatch)
    found = find_subjects(str(tree))
    assert [name for name, _ in found.cascades] == ["cascade", "search/cascade"]
    assert [record.getMessage() for record in caplog.records] == [
        f"passed over {tree / 'a'}: cannot be listed (Permission denied)"
    ]


def test_what_was_asked_for_must_be_there_to_read(
    tree: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tree / "only").mkdir()
    (tree / "only/cut.json").write_text("{")
    with pytest.raises(UserError, match=r"3 folders deep; passed over .*cut\.json: not valid JSON"):
        find_subjects(str(tree / "only"))
    _lock_up(tree, monkeypatch)
    with pytest.raises(UserError, match=rf"^{tree}: cannot be listed \(Permission denied\)$"):
        find_subjects(str(tree))
    assert not caplog.records
