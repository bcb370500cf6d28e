"""Where a cascade is: among the packaged ones, in a folder, or on the hub."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from cascaded_diffusion.cascade.manifest import MANIFEST_FILE
from cascaded_diffusion.errors import UserError, did_you_mean

__all__ = ["find_cascade", "packaged_cascades"]


def packaged_cascades() -> dict[str, Path]:
    """The cascades that come with the package, by name."""
    folder = Path(str(resources.files("cascaded_diffusion"))) / "pretrained"
    return {path.parent.name: path.parent for path in sorted(folder.glob(f"*/{MANIFEST_FILE}"))}


def find_cascade(
    name: str | Path,
    *,
    token: str | bool | None = None,
    revision: str | None = None,
    endpoint: str | None = None,
    cache_dir: str | Path | None = None,
) -> tuple[Path, str]:
    """The folder of a cascade, and where that is: ``packaged``, ``here``, or in the cache of the ``hub``.

    Packaged names win, then folders, then the Hugging Face hub for a name of the form ``user/name`` unless ``user``
    is a folder here. The other arguments are the hub's; see :func:`cascaded_diffusion.interop.hub.pull`.

    Raises:
        UserError: none of them.
        RuntimeError: the hub does not answer.
    """
    packaged = packaged_cascades()
    if str(name) in packaged:
        return packaged[str(name)], "packaged"
    if Path(name).is_dir():
        return Path(name), "here"
    from cascaded_diffusion.interop.hub import is_repository, may_be_repository, pull

    if may_be_repository(str(name)):
        try:
            found = pull(str(name), token=token, revision=revision, endpoint=endpoint, cache_dir=cache_dir)
        except UserError as error:
            raise UserError(f"cascade: {str(name)!r} is not a folder here; {error}") from None
        except RuntimeError as error:
            raise RuntimeError(f"cascade: {str(name)!r} is not a folder here; {error}") from None
        return found, "hub"
    if is_repository(str(name)) and Path(name).parent.is_dir():
        raise UserError(
            f"cascade: {str(name)!r} is no folder; the hub is not asked, for {Path(name).parent} is one here"
        )
    hint = did_you_mean(str(name), list(packaged))
    raise UserError(
        f"cascade: {str(name)!r} is neither a folder nor packaged ({', '.join(packaged) or 'none'}){hint}; "
        "on the hub, names have the form user/name"
    )
