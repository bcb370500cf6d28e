"""Cascades on the Hugging Face hub, through ``huggingface_hub``: push a folder, pull one into the hub's cache.

Only a cascade's own files travel: its manifest, each stage's configuration and weights, the card and its picture.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cascaded_diffusion.cascade.manifest import MANIFEST_FILE, CascadeManifest
from cascaded_diffusion.errors import UserError, one_line
from cascaded_diffusion.extras import load_extra, transport_errors

__all__ = ["CARD_FILE", "SAMPLES_FILE", "check_repository", "is_repository", "may_be_repository", "pull", "push"]

CARD_FILE = "README.md"
SAMPLES_FILE = "samples.png"
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_LOGIN = "log in with hf auth login, or set HF_TOKEN"


def is_repository(name: str) -> bool:
    """Whether a name has the form ``user/name``."""
    return re.fullmatch(f"{_NAME}/{_NAME}", name) is not None


def may_be_repository(name: str) -> bool:
    """Whether a name can only be the hub's: it has the form, is no file here, and its ``user`` is no folder here."""
    path = Path(name)
    return is_repository(name) and not path.exists() and not path.parent.is_dir()


def check_repository(name: str) -> None:
    """``UserError`` if a name cannot be a repository's."""
    if not is_repository(name) or len(name) > 96 or ".." in name or "--" in name or name.endswith(".git"):
        allowed = "letters, digits, and - . _ between them, at most 96 characters"
        raise UserError(f"hub: {name!r} is not the name of a repository; give user/name of {allowed}")


def pull(
    repository: str,
    *,
    token: str | bool | None = None,
    revision: str | None = None,
    endpoint: str | None = None,
    cache_dir: str | Path | None = None,
) -> Path:
    """Bring a cascade into ``huggingface_hub``'s cache, if it is not there yet, and return its folder.

    Args:
        repository: ``user/name``.
        token: of an account that may read it; default the one that is logged in.
        revision: branch, tag or commit; default ``main``.
        endpoint: address of the hub; default ``HF_ENDPOINT`` or the public one.
        cache_dir: folder instead of the cache.

    Raises:
        UserError: no such repository or revision, no cascade in it, no right to read it, or the extra is missing.
        RuntimeError: the hub does not answer, and the cache does not have it.
    """
    check_repository(repository)
    hub = load_extra("huggingface_hub", "hub", f"hub: loading {repository}")
    where: dict[str, Any] = {
        "token": token,
        "endpoint": _endpoint(endpoint),
        "cache_dir": None if cache_dir is None else str(cache_dir),
    }
    with _told(repository, revision, _endpoint(endpoint)):
        first = Path(hub.snapshot_download(repository, revision=revision, allow_patterns=[MANIFEST_FILE], **where))
        if not (first / MANIFEST_FILE).is_file():
            raise UserError(f"hub: {repository} holds no cascade (no {MANIFEST_FILE})")
        manifest = CascadeManifest.read(first)
        # The snapshot's folder is called by its commit: what is named here cannot change between the two calls.
        files = [MANIFEST_FILE, CARD_FILE, SAMPLES_FILE, *stage_files(manifest)]
        return Path(hub.snapshot_download(repository, revision=first.name, allow_patterns=files, **where))


def push(
    folder: Path,
    repository: str,
    *,
    token: str | bool | None = None,
    private: bool | None = None,
    revision: str | None = None,
    message: str | None = None,
    endpoint: str | None = None,
) -> str:
    """Upload a cascade's folder, with its card and picture if they are there, as one commit; its address.

    The repository is made if it does not exist; ``private`` counts only then. Stage folders of an earlier cascade that
    this one does not have are removed from it.

    Raises:
        UserError: as :func:`pull`, or no right to write.
        RuntimeError: the hub does not answer.
    """
    check_repository(repository)
    hub = load_extra("huggingface_hub", "hub", f"hub: pushing to {repository}")
    manifest = CascadeManifest.read(folder)
    kept = [MANIFEST_FILE, *stage_files(manifest)]
    kept += [name for name in (CARD_FILE, SAMPLES_FILE) if (folder / name).is_file()]
    with _told(repository, revision, _endpoint(endpoint)):
        api = hub.HfApi(endpoint=_endpoint(endpoint), token=token)
        api.create_repo(repository, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repository, branch=revision, exist_ok=True)
        there = api.list_repo_files(repository, revision=revision)
        stale = [name for name in there if name not in kept and re.fullmatch(r"(base|sr)\d+/(guide/)?[^/]+", name)]
        operations = [hub.CommitOperationAdd(name, str(folder / name)) for name in kept]
        operations += [hub.CommitOperationDelete(name) for name in stale]
        stages = " -> ".join(entry.name for entry in manifest.stages)
        api.create_commit(repository, operations, commit_message=message or f"Cascade {stages}", revision=revision)
    return f"{api.endpoint}/{repository}"


def stage_files(manifest: CascadeManifest) -> list[str]:
    """Paths of the stages' files in a cascade's folder."""
    return [f"{entry.folder}/{name}" for entry in manifest.stages for name in entry.sha256]


def _endpoint(given: str | None) -> str | None:
    """The hub's address; the library itself reads HF_ENDPOINT once, when it is imported."""
    return given or os.environ.get("HF_ENDPOINT") or None


@contextlib.contextmanager
def _told(repository: str, revision: str | None, endpoint: str | None) -> Iterator[None]:
    """Tell the library's errors in one line that names the repository."""
    errors = load_extra("huggingface_hub.errors", "hub", f"hub: {repository}")
    place = endpoint or "the hub"
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # what it would warn of is told below
    try:
        yield
    except errors.HFValidationError as error:
        raise UserError(f"hub: {repository!r} is not the name of a repository ({one_line(error, 200)})") from None
    except errors.RevisionNotFoundError:
        raise UserError(f"hub: {repository} has no revision {revision!r} on {place}") from None
    except errors.LocalEntryNotFoundError as error:
        raise _unreachable(repository, place, error.__cause__ or error) from None
    except errors.HfHubHTTPError as error:
        raise _refused(errors, repository, place, error) from None
    except transport_errors() as error:
        raise _unreachable(repository, place, error) from None
    except RuntimeError as error:  # what the library makes of any failure of one file's upload
        cause = f" ({one_line(error.__cause__, 200)})" if error.__cause__ is not None else ""
        raise RuntimeError(f"hub: {repository}: {one_line(error, 200)}{cause}") from None
    finally:
        logger.setLevel(level)


def _refused(errors: Any, repository: str, place: str, error: Any) -> Exception:
    """What the hub's answer means."""
    status = getattr(error.response, "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        return UserError(f"hub: {repository} is gated: ask for access at {place}/{repository}, then {_LOGIN}")
    if isinstance(error, errors.RepositoryNotFoundError):
        return UserError(f"hub: {repository}: no such repository on {place}, or a private one ({_LOGIN})")
    if status == 401:
        return UserError(f"hub: {repository}: {place} does not know you; {_LOGIN}")
    if status == 403:
        return UserError(f"hub: {repository}: {place} does not allow it with this token; {_LOGIN} for one that may")
    return RuntimeError(f"hub: {repository}: {place} answered {status} ({one_line(error, 200)})")


def _unreachable(repository: str, place: str, error: BaseException) -> Exception:
    if getattr(error, "response", None) is not None:
        errors = load_extra("huggingface_hub.errors", "hub", f"hub: {repository}")
        return _refused(errors, repository, place, error)
    return RuntimeError(
        f"hub: {repository}: {place} does not answer, and it is not in the cache ({one_line(error, 200)})"
    )
