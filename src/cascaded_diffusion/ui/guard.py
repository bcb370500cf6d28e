"""What the page's server answers at all: it stands before Gradio and turns away what the page itself never asks.

Gradio can do much that this page has no use for: it fetches files from addresses that a request names, forwards
requests to other servers, records, reloads, and copies a file to its cache if a request says that it was uploaded. So
only the few routes of the page pass, in their own form, from the page's own address.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

__all__ = [
    "KEPT_SECONDS",
    "SWEEP_SECONDS",
    "Entry",
    "Guard",
    "RefusedError",
    "check_call",
    "check_file",
    "check_origin",
    "check_route",
]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_API = "/gradio_api"
_READABLE = ("/assets/", "/static/", f"{_API}/file=", f"{_API}/heartbeat/")
_PAGES = (
    "/",
    "/config",
    "/theme.css",
    "/favicon.ico",
    "/manifest.json",
    "/robots.txt",
    *(f"{_API}/{name}" for name in ("app_id", "info", "queue/data", "startup-events", "theme.css", "upload_progress")),
)
_RUN, _JOIN, _UPLOAD = f"{_API}/run/predict", f"{_API}/queue/join", f"{_API}/upload"
_POSTED = (_RUN, _JOIN, _UPLOAD, f"{_API}/cancel", f"{_API}/reset")
_LARGEST_CALL = 2**20
_LARGEST_STORE = 256 * 2**20
SWEEP_SECONDS, KEPT_SECONDS = 600, 3600
"""How often old uploads and results are deleted, and how old they get."""
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
_HEADERS = (
    # The browser itself keeps the page from asking anybody else.
    (
        b"content-security-policy",
        b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'; base-uri 'self'; "
        b"form-action 'self'; frame-ancestors 'self'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)


class RefusedError(Exception):
    """A request that the page never makes; ``status`` is the answer's."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status


@dataclass(frozen=True)
class Entry:
    """One of the page's functions, as a request may call it.

    Attributes:
        queued: whether it must wait for its turn.
        inputs: for each value that it takes, whether that is an uploaded file.
    """

    queued: bool
    inputs: tuple[bool, ...]


def check_origin(headers: Mapping[str, str], *, loopback: bool) -> None:
    """Refuse requests that another site's page makes, also by way of a name that it has pointed at this machine."""
    host = headers.get("host", "")
    if loopback and _name(host) not in _LOOPBACK:
        raise RefusedError(403, "this page answers to localhost only")
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
        raise RefusedError(403, "this page takes no requests from other sites")


def _name(host: str) -> str:
    return host.rsplit(":", 1)[0].lower() if not host.endswith("]") else host.lower()


def check_route(method: str, path: str) -> None:
    """Refuse what the page does not ask for."""
    plain = path.rstrip("/") or "/"
    if method in ("GET", "HEAD") and (plain in _PAGES or path.startswith(_READABLE)):
        return
    if method == "POST" and plain in _POSTED:
        return
    raise RefusedError(404, "nothing here")


def check_file(name: str, folder: Path) -> None:
    """Refuse every file that does not lie in ``folder``, links followed."""
    if "\0" in name or not Path(name).is_absolute() or not Path(name).resolve().is_relative_to(folder):
        raise RefusedError(403, "no such file")


def check_call(body: bytes, entries: Mapping[int, Entry], *, queued: bool, folder: Path) -> None:
    """Refuse a call that is not of the form in which the page calls its functions.

    Args:
        body: of the request.
        entries: the page's functions by number.
        queued: whether the call goes through the queue.
        folder: where uploaded files lie; a file elsewhere, or at an address, is refused.
    """
    try:
        call = json.loads(body)
    except (ValueError, RecursionError):
        raise RefusedError(400, "not valid JSON") from None
    number = call.get("fn_index") if isinstance(call, dict) else None
    entry = entries.get(number) if isinstance(number, int) and not isinstance(number, bool) else None
    if entry is None or entry.queued != queued:
        raise RefusedError(404, "no such function")
    session, values = call.get("session_hash"), call.get("data")
    if not isinstance(session, str) or not (0 < len(session) <= 64 and session.isascii() and session.isalnum()):
        raise RefusedError(400, "session_hash: allowed are 1 to 64 letters and digits")
    if not isinstance(values, list) or len(values) != len(entry.inputs):
        raise RefusedError(400, f"data: allowed is a list of {len(entry.inputs)} values")
    for value, is_file in zip(values, entry.inputs, strict=True):
        if is_file and value is not None:
            _check_sent_file(value, folder)
        elif not _is_plain(value):
            raise RefusedError(400, "data: numbers, words and lists of them are allowed")


def _check_sent_file(value: Any, folder: Path) -> None:
    path = value.get("path") if isinstance(value, dict) else None
    plain = isinstance(value, dict) and all(value.get(key) is None or isinstance(value[key], str) for key in _TEXTS)
    if not plain or not isinstance(path, str) or not isinstance(value.get("size"), int | None):
        raise RefusedError(400, "image: not an uploaded file")
    check_file(path, folder)


_TEXTS = ("path", "url", "orig_name", "mime_type")


def _is_plain(value: Any) -> bool:
    """A number, a word, nothing, or a list of such: never a mapping, in which Gradio would look for files."""
    if isinstance(value, list):
        return all(item is None or isinstance(item, str | int | float | bool) for item in value)
    return value is None or isinstance(value, str | int | float | bool)


class Guard:
    """ASGI middleware that applies the checks of this module."""

    def __init__(
        self,
        app: App,
        *,
        entries: Mapping[int, Entry],
        folder: Path,
        uploads: Path,
        largest_upload: int,
        loopback: bool,
    ) -> None:
        """Stand before ``app``.

        Args:
            app: Gradio's.
            entries: the page's functions by number.
            folder: the page's own, from which alone files are served.
            uploads: the part of it where uploads go.
            largest_upload: bytes of one file.
            loopback: whether the page is for this machine alone.
        """
        self._app, self._entries, self._loopback = app, entries, loopback
        self._folder, self._uploads = folder.resolve(), uploads.resolve()
        self._largest_upload = largest_upload
        self._accepted: deque[tuple[float, int]] = deque()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or let it pass."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # the page opens no web sockets
        try:
            receive = await self._checked(scope, receive)
        except RefusedError as error:
            await _answer(send, error)
            return
        await self._app(scope, receive, _with_headers(send))

    async def _checked(self, scope: Scope, receive: Receive) -> Receive:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        path: str = scope["path"]
        check_origin(headers, loopback=self._loopback)
        check_route(scope["method"], path)
        if path.startswith(f"{_API}/file="):
            check_file(path.removeprefix(f"{_API}/file="), self._folder)
        plain = path.rstrip("/")
        if plain in _POSTED:
            limit = self._largest_upload + 2**16 if plain == _UPLOAD else _LARGEST_CALL
            self._check_length(headers, limit, fill=plain == _UPLOAD)
        if plain in (_RUN, _JOIN):
            body = await _whole_body(receive, _LARGEST_CALL)
            check_call(body, self._entries, queued=plain == _JOIN, folder=self._uploads)
            return _replayed(body, receive)
        return receive

    def _check_length(self, headers: Mapping[str, str], limit: int, *, fill: bool) -> None:
        length = headers.get("content-length", "")
        if not (length.isascii() and length.isdigit()):
            raise RefusedError(411, "a request with content must say its length")
        if int(length) > limit:
            raise RefusedError(413, f"too large; allowed: {limit / 2**20:.0f} MB")
        if fill:
            self._make_room(int(length))

    def _make_room(self, length: int) -> None:
        """Count an upload by what it announces, from its beginning: several at once must not slip through together."""
        now = time.monotonic()
        while self._accepted and now - self._accepted[0][0] > KEPT_SECONDS + SWEEP_SECONDS:
            self._accepted.popleft()
        if sum(size for _, size in self._accepted) + length > _LARGEST_STORE:
            raise RefusedError(507, "too many uploads are kept here; they go after an hour")
        self._accepted.append((now, length))


async def _whole_body(receive: Receive, limit: int) -> bytes:
    body: bytes = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > limit:
            raise RefusedError(413, "too large")
        if message["type"] != "http.request" or not message.get("more_body", False):
            return body


def _replayed(body: bytes, receive: Receive) -> Receive:
    """What has been read, for the next reader; then whatever comes after it."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *_HEADERS]
        await send(message)

    return sending


async def _answer(send: Send, error: RefusedError) -> None:
    body = json.dumps({"error": str(error), "detail": str(error)}).encode()
    headers: Collection[tuple[bytes, bytes]] = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
        *_HEADERS,
    ]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
