"""Telling things once, where several processes of one launch would tell the same."""

from __future__ import annotations

import contextlib
import hashlib
import os
from datetime import timedelta

__all__ = ["is_ours_to_tell"]

_PATIENCE = timedelta(seconds=5)


def is_ours_to_tell(words: str, *, after_main: bool = False) -> bool:
    """Whether this process is the first of its launch to tell ``words``; asked once for each thing told.

    The processes ask the store that torchrun's agent holds, which is there before they join and after they part. Where
    there is none, each tells.

    Args:
        words: what is to be told, or what it is about.
        after_main: wait a little for rank 0, which knows more, and tell nothing if it does.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return True
    import torch  # noqa: F401 - first: parts of it alone cannot be imported
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    attempt, rank = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), os.environ.get("RANK")
    key = f"cdm/{attempt}/{hashlib.sha256(words.encode()).hexdigest()}"
    with contextlib.suppress(RuntimeError, OSError, KeyError, ValueError):  # no store, no agreement
        store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), timeout=_PATIENCE)
        if rank == "0":
            store.set(f"{key}/main", "told")
        elif after_main:
            with contextlib.suppress(RuntimeError):  # it has died, or is still saving
                store.wait([f"{key}/main"], _PATIENCE)
                return False
        is_first = int(store.add(key, 1)) == 1
        return is_first or (after_main and rank == "0")
    return True
