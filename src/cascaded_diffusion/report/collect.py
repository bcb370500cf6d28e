"""What there is to report on: runs, cascades, search folders and scores files, found by what they hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cascaded_diffusion.cascade.find import find_cascade, packaged_cascades
from cascaded_diffusion.cascade.manifest import MANIFEST_FILE
from cascaded_diffusion.cascade.stage import CONFIG_FILE, WEIGHTS_FILE
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.files import read_json
from cascaded_diffusion.interop.hub import is_repository
from cascaded_diffusion.training.run import METRICS_FILE

__all__ = ["DEPTH", "Subjects", "find_subjects", "is_run_folder"]

DEPTH = 3
"""How many folders deep a folder is searched."""
SEARCH_FILE = "search.json"
_KNOWN_FILES = frozenset({CONFIG_FILE, MANIFEST_FILE, SEARCH_FILE, "manifest.json"})
_JSON_LIMIT = 16 * 2**20


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

    Args:
        target: a packaged cascade's name (which wins), a cascade, a run, a search folder, or a folder that is searched
            for them and for scores files, :data:`DEPTH` folders deep.
        scores: further scores files.
        search: a further search folder.

    Raises:
        UserError: nothing there, or nothing that a page could be about.
    """
    found = Subjects()
    packaged = packaged_cascades()
    if target in packaged:
        found.cascades.append((target, packaged[target]))
    elif not Path(target).exists() and is_repository(target):
        found.cascades.append((target, find_cascade(target)[0]))
    else:
        folder = Path(target)
        if folder.is_file():
            raise UserError(f"{folder}: a file; give a run, a cascade, or a folder (scores files go with --scores)")
        if not folder.is_dir():
            names = ", ".join(packaged) or "none"
            raise UserError(f"{target!r}: no such folder; give a run, a cascade, a folder, or a packaged one ({names})")
        if (folder / CONFIG_FILE).is_file() and (folder / WEIGHTS_FILE).is_file():
            raise UserError(f"{folder}: a single stage; make a cascade of it with cdm assemble")
        for path in _walk(folder, DEPTH):
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
        raise UserError(f"{target}: {what} in it, looked {DEPTH} folders deep")
    return found


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


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    """Folders that are something, and scores files, in the order of their names."""
    is_cascade, is_search = (folder / MANIFEST_FILE).is_file(), (folder / SEARCH_FILE).is_file()
    is_run = is_run_folder(folder)
    if is_cascade or is_search or is_run:
        yield folder
    elif (folder / "manifest.json").is_file():
        return  # prepared data: large, and nothing to report on
    inner = sorted(folder.iterdir(), key=lambda path: path.name)
    yield from (path for path in inner if _is_scores(path))
    if is_cascade or is_run or depth == 0:
        return
    if is_search:  # its other folders hold the images and scores of single points
        inner = [path for path in inner if path.name == "cascade"]
    for path in inner:
        if path.is_dir() and not path.name.startswith("."):
            yield from _walk(path, depth - 1)


def _is_scores(path: Path) -> bool:
    """Whether a file holds scores; one that ends in .json and is damaged is a ``UserError``."""
    if path.suffix != ".json" or path.name in _KNOWN_FILES or path.name.startswith(".") or not path.is_file():
        return False
    if path.stat().st_size > _JSON_LIMIT:
        return False  # scores are small; whatever this is, it is another's
    value = read_json(path, limit=_JSON_LIMIT)
    return isinstance(value, dict) and isinstance(value.get("scores"), dict) and "format_version" in value
