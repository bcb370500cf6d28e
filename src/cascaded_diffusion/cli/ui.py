"""``cdm ui``: a page in the browser about a cascade."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cascaded_diffusion.cli.options import CascadeName, Device
from cascaded_diffusion.cli.places import tell_which
from cascaded_diffusion.cli.values import whole_from
from cascaded_diffusion.errors import UserError

if TYPE_CHECKING:
    import socket

__all__ = ["ui_command"]

_MOST_IMAGES = 64
_LARGEST_PORT = 65535


def _port(value: Any) -> int:
    port = whole_from(1)(value)
    if port > _LARGEST_PORT:
        raise typer.BadParameter(f"{port}; allowed: 1 to {_LARGEST_PORT}")
    return port


def ui_command(
    cascade: CascadeName,
    port: Annotated[
        int | None,
        typer.Option(
            "--port",
            parser=_port,
            metavar="N",
            help="Where to listen; default 7860, or the next that is free.",
        ),
    ] = None,
    host: Annotated[
        str,
        typer.Option("--host", metavar="ADDRESS", help="Which addresses to answer; 0.0.0.0 lets other machines in."),
    ] = "127.0.0.1",
    device: Device = None,
    max_num: Annotated[
        int, typer.Option("--max-num", parser=whole_from(1), metavar="N", help="Images that one run may make at most.")
    ] = _MOST_IMAGES,
) -> None:
    """Open a page to sample a cascade, watch it work, compare values of s and enlarge images; Ctrl-C ends it."""
    if find_spec("gradio") is None:
        raise UserError("ui: the page needs Gradio, which is not installed; pip install 'cascaded-diffusion[ui]'")

    from cascaded_diffusion.ui.server import listen

    with listen(host, port) as listening:
        _serve(listening, cascade, port, device, max_num)


def _serve(listening: socket.socket, name: str, port: int | None, device: str | None, max_num: int) -> None:
    from cascaded_diffusion.cascade.chain import Cascade
    from cascaded_diffusion.cascade.find import packaged_cascades
    from cascaded_diffusion.precision import pick_device
    from cascaded_diffusion.ui.server import DEFAULT_PORT, address, is_loopback, own_folder, page_server

    tell_which("cascade", name, packaged_cascades())
    cascade = Cascade.from_pretrained(name).to(pick_device(device))
    with own_folder() as folder:
        from cascaded_diffusion.ui.command import Origin
        from cascaded_diffusion.ui.limits import page_limits
        from cascaded_diffusion.ui.studio import Studio

        studio = Studio(cascade, page_limits(cascade, max_num), Origin(name, device), folder)
        loopback = is_loopback(listening)
        server = page_server(studio, Path(name).resolve().name, folder, loopback=loopback)
        if port is None and listening.getsockname()[1] != DEFAULT_PORT:
            typer.echo(f"port {DEFAULT_PORT} is in use, another is taken", err=True)
        if not loopback:
            where = listening.getsockname()[0]
            typer.echo(f"{where}: whoever reaches this machine can use the page; it asks for no password", err=True)
        typer.echo(f"{address(listening)}  (Ctrl-C ends it)")
        try:
            server.run(sockets=[listening])
        finally:
            studio.engine.close()
