"""What there is to report on: runs, cascades, search folders and scores files, found by what they hold."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cascaded_diffusion.cascade.find import find_cascade, packaged_cascades
from cascaded_diffusion.cascade.manifest import MANIFEST_FILE
from cascaded_diffusion.cascade.stage import CONFIG_FILE, WEIGHTS_FILE
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.files import read_json
from cascaded_diffusion.interop.hub import may_be_repository
from cascaded_diffusion.training.run import METRICS_FILE

__all__ = ["DEPTH", "Subjects", "find_subjects", "is_run_folder"]

DEPTH = 3
"""How many folders deep a folder is searched."""
SEARCH_FILE = "search.json"
_KNOWN_FILES = frozenset({CONFIG_FILE, MANIFEST_FILE, SEARCH_FILE, "manifest.json"})
_JSON_LIMIT = 16 * 2**20
_MOST_TOLD = 5
_LOG = logging.getLogger(__name__)


@dataclass
class Subjects:
    """What a page covers, each as (name on the page, path)."""

    runs: list[tuple[str, Path]] = field(default_factory=list)
    cascades: list[tuple[str, Path]] = field(default_factory=list)
    searches: list[tuple[str, Path]] = field(default_factory=list)
    scores: list[tuple[str, Path]] = field(default_factory=list)

    def __bool__(self) -> bool:
        """Whether there is anything."""
        return bool(self.runs or self.cascades or self.searches or self.scores)


def is_run_folder(folder: Path) -> bool:
    """Whether a folder is a stage's run, trained already or only begun."""
    if not (folder / CONFIG_FILE).is_file() or (folder / WEIGHTS_FILE).exists():
        return False
    return any((folder / name).exists() for name in ("checkpoints", METRICS_FILE, "previews", ".lock"))


def find_subjects(target: str, *, scores: Sequence[Path] = (), search: Path | None = None) -> Subjects:
    """Find what a page about ``target`` covers.

    JSON files in a folder that cannot be read, and folders in it that cannot be listed, are passed over with a warning.

    Args:
        target: a packaged cascade's name (which wins), a cascade, a run, a search folder, or a folder that is searched
            for them and for scores files, :data:`DEPTH` folders deep.
        scores: further scores files.
        search: a further search folder.

    Raises:
        UserError: nothing there, nothing that a page could be about, or ``target`` itself cannot be listed.
    """
    found = Subjects()
    passed: list[str] = []
    packaged = packaged_cascades()
    if target in packaged:
        found.cascades.append((target, packaged[target]))
    elif may_be_repository(target):
        found.cascades.append((target, find_cascade(target)[0]))
    else:
        folder = Path(target)
        if folder.is_file():
            raise UserError(f"{folder}: a file; give a run, a cascade, or a folder (scores files go with --scores)")
        if not folder.is_dir():
            names = ", ".join(packaged) or "none"
            raise UserError(f"{target!r}: no such folder; give a run, a cascade, a folder, or a packaged one ({names})")
        if os.path.isfile(folder / CONFIG_FILE) and os.path.isfile(folder / WEIGHTS_FILE):
            raise UserError(f"{folder}: a single stage; make a cascade of it with cdm assemble")
        for path in _walk(folder, DEPTH, passed):
            _sort(path, _name(path, folder), found)
    for path in scores:
        if not path.is_file():
            raise UserError(f"--scores: {path}: no such file; make one with cdm evaluate --json")
        _add(found.scores, path.name, path)
    if search is not None:
        if not (search / SEARCH_FILE).is_file():
            raise UserError(f"--search: {search}: not a search folder (no {SEARCH_FILE}); make one with cdm search")
        _add(found.searches, search.resolve().name, search)
    if not found:
        what = "no run, cascade, search folder or scores file"
        raise UserError("; ".join([f"{target}: {what} in it, looked {DEPTH} folders deep", *_told(passed)]))
    for line in _told(passed):
        _LOG.warning("%s", line)
    return found


def _told(passed: Sequence[str]) -> list[str]:
    """What was passed over, in one line, or none."""
    if not passed:
        return []
    more = [f"and {len(passed) - _MOST_TOLD} more"] if len(passed) > _MOST_TOLD else []
    return [f"passed over {'; '.join([*passed[:_MOST_TOLD], *more])}"]


def _name(path: Path, top: Path) -> str:
    """What something is called on the page: its place in the folder, or the folder's own name."""
    return path.resolve().name if path == top else str(path.relative_to(top))


def _add(places: list[tuple[str, Path]], name: str, path: Path) -> None:
    if all(path.resolve() != known.resolve() for _, known in places):
        places.append((name, path))


def _sort(path: Path, name: str, found: Subjects) -> None:
    if path.is_file():
        found.scores.append((name, path))
    elif (path / MANIFEST_FILE).is_file():
        found.cascades.append((name, path))
    elif (path / SEARCH_FILE).is_file():
        found.searches.append((name, path))
    else:
        found.runs.append((name, path))


def _walk(folder: Path, depth: int, passed: list[str]) -> Iterator[Path]:
    """Folders that are something, and scores files, in the order of their names; ``passed`` takes what cannot be read.

    Raises:
        UserError: ``folder`` cannot be listed, and is the one that was asked for.
    """
    try:
        is_cascade, is_search = (folder / MANIFEST_FILE).is_file(), (folder / SEARCH_FILE).is_file()
        is_run = is_run_folder(folder)
        if not (is_cascade or is_search or is_run) and (folder / "manifest.json").is_file():
            return  # prepared data: large, and nothing to report on
        inner = sorted(folder.iterdir(), key=lambda path: path.name)
    except OSError as error:
        line = f"{folder}: cannot be listed ({error.strerror})"
        if depth == DEPTH:
            raise UserError(line) from None
        passed.append(line)
        return
    if is_cascade or is_search or is_run:
        yield folder
    yield from (path for path in inner if _is_scores(path, passed))
    if is_cascade or is_run or depth == 0:
        return
    if is_search:  # its other folders hold the images and scores of single points
        inner = [path for path in inner if path.name == "cascade"]
    for path in inner:
        if os.path.isdir(path) and not path.name.startswith("."):
            yield from _walk(path, depth - 1, passed)


def _is_scores(path: Path, passed: list[str]) -> bool:
    """Whether a file holds scores; one that ends in .json and cannot be read goes to ``passed``."""
    if path.suffix != ".json" or path.name in _KNOWN_FILES or path.name.startswith("."):
        return False
    try:
        if not path.is_file() or path.stat().st_size > _JSON_LIMIT:
            return False  # scores are small; whatever this is, it is another's
        value = read_json(path, limit=_JSON_LIMIT)
    except UserError as error:
        passed.append(str(error))
        return False
    except OSError as error:
        passed.append(f"{path}: cannot be read ({error.strerror})")
        return False
    return isinstance(value, dict) and isinstance(value.get("scores"), dict) and "format_version" in value
