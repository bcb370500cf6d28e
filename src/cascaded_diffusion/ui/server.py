"""Serving the page: a place to listen at, a folder of its own, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cascaded_diffusion.errors import UserError
from cascaded_diffusion.ui.upload import LARGEST_UPLOAD

if TYPE_CHECKING:
    import uvicorn

    from cascaded_diffusion.ui.studio import Studio

__all__ = ["DEFAULT_PORT", "address", "is_loopback", "listen", "own_folder", "page_server"]

DEFAULT_PORT = 7860
_NEXT_PORTS = 20


def listen(host: str, port: int | None) -> socket.socket:
    """A socket that listens at ``host``.

    Args:
        host: a name or an address.
        port: of one's choice; ``None`` takes 7860, or the next of twenty that is free.

    Raises:
        UserError: the host is not one of this machine, or the port is taken.
    """
    ports = [port] if port is not None else list(range(DEFAULT_PORT, DEFAULT_PORT + _NEXT_PORTS))
    for one in ports:
        try:
            family, _, _, _, place = socket.getaddrinfo(host, one, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
            listening = socket.socket(family, socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise UserError(f"--host: {host!r} is not an address of this machine ({_reason(error)})") from None
        try:
            # A port that was in use a minute ago can be taken again, one in use now cannot.
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(place)
            listening.listen(64)
            return listening
        except PermissionError:
            listening.close()
            raise UserError(f"--port: {one} is reserved for the administrator; allowed: 1024 to 65535") from None
        except OSError as error:
            listening.close()
            if error.errno != errno.EADDRINUSE and port is None:
                raise UserError(f"--host: {host!r} is not an address of this machine ({_reason(error)})") from None
            last = error
    if port is None:
        raise UserError(f"--port: {ports[0]} to {ports[-1]} are all in use on {host}; give another one")
    raise UserError(f"--port: {port} cannot be used on {host} ({_reason(last)}); give another one")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def is_loopback(listening: socket.socket) -> bool:
    """Whether only this machine can reach the socket."""
    host: str = listening.getsockname()[0]
    return host == "::1" or host.startswith("127.")


def address(listening: socket.socket) -> str:
    """Where a browser on this machine finds the page."""
    host, port = listening.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


@contextlib.contextmanager
def own_folder() -> Iterator[Path]:
    """A folder of the page's own for uploads and results; it goes with everything in it.

    Gradio reads its folders from the environment when it is imported, so it must not be imported before.
    """
    with tempfile.TemporaryDirectory(prefix="cdm-ui-", ignore_cleanup_errors=True) as name:
        folder = Path(name).resolve()
        (folder / "files").mkdir()
        own = {
            "GRADIO_TEMP_DIR": str(folder / "files"),
            "GRADIO_EXAMPLES_CACHE": str(folder / "examples"),
            "GRADIO_ANALYTICS_ENABLED": "False",
        }
        before = {key: os.environ.get(key) for key in own}
        os.environ.update(own)
        try:
            yield folder
        finally:
            for key, value in before.items():
                if value is None:
                    del os.environ[key]
                else:
                    os.environ[key] = value


def page_server(studio: Studio, title: str, folder: Path, *, loopback: bool) -> uvicorn.Server:
    """A server of the page about a studio's cascade, to be run on a socket of :func:`listen`."""

    async def build() -> uvicorn.Server:
        return _build(studio, title, folder, loopback)

    return asyncio.run(build())  # where no loop runs, Gradio opens several and closes none


def _build(studio: Studio, title: str, folder: Path, loopback: bool) -> uvicorn.Server:
    import gradio as gr
    import uvicorn
    from fastapi import FastAPI

    from cascaded_diffusion.ui.guard import Entry, Guard
    from cascaded_diffusion.ui.page import CSS, build_page, theme

    page = build_page(studio, title)
    app = gr.mount_gradio_app(
        FastAPI(openapi_url=None, docs_url=None, redoc_url=None),
        page,
        path="/",
        theme=theme(),
        css_paths=[CSS],
        footer_links=[],
        run_history=False,
        allowed_paths=[],
        blocked_paths=[],
        show_error=True,
        max_file_size=LARGEST_UPLOAD,
        root_path="",
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
    )
    page.has_launched = True  # only then does Gradio check where the files of a request lie
    entries = {
        number: Entry(bool(function.queue), tuple(isinstance(block, gr.Image) for block in function.inputs))
        for number, function in page.fns.items()
    }
    guard: Any = Guard(
        app,
        entries=entries,
        folder=folder,
        uploads=studio.uploads,
        largest_upload=LARGEST_UPLOAD,
        loopback=loopback,
    )
    return uvicorn.Server(
        uvicorn.Config(guard, log_level="critical", lifespan="on", timeout_graceful_shutdown=1, ws="none")
    )
