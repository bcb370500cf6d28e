"""What the page's server turns away, before Gradio sees it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from cascaded_diffusion.ui.guard import (
    Entry,
    Guard,
    RefusedError,
    check_call,
    check_file,
    check_origin,
    check_route,
)

ENTRIES = {0: Entry(True, (False, True)), 1: Entry(False, ())}


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:7860", "LOCALHOST:80", "[::1]", "[::1]:7860"])
def test_a_page_for_this_machine_answers_to_its_names(host: str) -> None:
    check_origin({"host": host, "origin": f"http://{host}"}, loopback=True)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"host": "evil.example:7860"},
        {"host": "127.0.0.1.evil.example"},
        {"host": "127.0.0.1:7860", "origin": "http://evil.example"},
        {"host": "127.0.0.1:7860", "origin": "http://127.0.0.1:8000"},
        {"host": "127.0.0.1:7860", "origin": "null"},
    ],
)
def test_other_sites_cannot_use_it(headers: dict[str, str]) -> None:
    with pytest.raises(RefusedError):
        check_origin(headers, loopback=True)


def test_a_page_for_others_has_any_name_but_no_other_site() -> None:
    check_origin({"host": "box.example:7860", "origin": "https://box.example:7860"}, loopback=False)
    with pytest.raises(RefusedError):
        check_origin({"host": "box.example:7860", "origin": "http://evil.example"}, loopback=False)


@pytest.mark.parametrize(
    "method, path",
    [
        ("GET", "/gradio_api/proxy=http://127.0.0.1:80/"),
        ("GET", "/gradio_api/file/etc/passwd"),
        ("GET", "/gradio_api/openapi.json"),
        ("GET", "/gradio_api/deep_link"),
        ("GET", "/monitoring"),
        ("GET", "/gradio_api/vibe-code"),
        ("GET", "/pwa_icon"),
        ("GET", "/gradio_api/queue/join"),
        ("POST", "/gradio_api/call/sample"),
        ("POST", "/gradio_api/run/sample"),
        ("POST", "/gradio_api/process_recording"),
        ("POST", "/gradio_api/component_server"),
        ("POST", "/login"),
        ("POST", "/"),
        ("PUT", "/"),
        ("OPTIONS", "/gradio_api/queue/join"),
    ],
)
def test_what_the_page_never_asks_is_not_there(method: str, path: str) -> None:
    with pytest.raises(RefusedError) as caught:
        check_route(method, path)
    assert caught.value.status == 404


def test_files_outside_the_folder_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "a.png").write_text("a")
    (tmp_path / "secret").write_text("b")
    (folder / "link").symlink_to(tmp_path / "secret")
    check_file(str(folder / "a.png"), folder)
    for name in ("/etc/passwd", str(folder / "link"), str(folder / "../secret"), "a.png", "http://x/", "a\0", ""):
        with pytest.raises(RefusedError):
            check_file(name, folder)


def call(**changes: Any) -> bytes:
    good = {"fn_index": 0, "session_hash": "abc1", "data": [["a", 1, 2.5, None], None]}
    return json.dumps(good | changes).encode()


def test_a_call_of_the_page_passes(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("x")
    check_call(call(), ENTRIES, queued=True, folder=tmp_path)
    sent = {"path": str(tmp_path / "a.png"), "orig_name": "a.png", "size": 1, "url": None, "meta": {"_type": "x"}}
    check_call(call(data=[3, sent]), ENTRIES, queued=True, folder=tmp_path)
    check_call(call(fn_index=1, data=[]), ENTRIES, queued=False, folder=tmp_path)


FILE = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b"[]",
        b"[" * 100_000,
        call(fn_index=7),
        call(fn_index=True),
        call(fn_index="0"),
        call(fn_index=1, data=[]),
        call(session_hash=None),
        call(session_hash="../x"),
        call(session_hash="a" * 65),
        call(data=None),
        call(data=[1]),
        call(data=[1, None, 2]),
        call(data=[FILE, None]),
        call(data=[[FILE], None]),
        call(data=[[["nested"]], None]),
        call(data=[1, FILE]),
        call(data=[1, {"path": "https://evil.example/x.png"}]),
        call(data=[1, {"path": ["x"]}]),
        call(data=[1, {"url": "https://evil.example/x.png"}]),
        call(data=[1, "x.png"]),
    ],
)
def test_a_call_of_another_form_is_refused(tmp_path: Path, body: bytes) -> None:
    with pytest.raises(RefusedError):
        check_call(body, ENTRIES, queued=True, folder=tmp_path)


def test_an_uploaded_file_has_words_for_names(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("x")
    for wrong in ({"orig_name": 3}, {"url": {}}, {"size": "big"}, {"mime_type": []}):
        with pytest.raises(RefusedError):
            check_call(
                call(data=[1, {"path": str(tmp_path / "a.png"), **wrong}]), ENTRIES, queued=True, folder=tmp_path
            )


def through(guard: Guard, path: str, method: str, body: bytes, **headers: str) -> tuple[int, bytes]:
    """Send one request through a guard; the application behind it answers 200 and what it read."""
    named = {"host": "localhost", "content-length": str(len(body))} | {
        k.replace("_", "-"): v for k, v in headers.items()
    }
    scope = {"type": "http", "method": method, "path": path}
    scope["headers"] = [(name.encode(), value.encode()) for name, value in named.items() if value]  # type: ignore[assignment]
    parts = [{"type": "http.request", "body": body, "more_body": False}]
    sent: list[Any] = []

    async def receive() -> Any:
        return parts.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(guard(scope, receive, send))
    assert any(name == b"content-security-policy" for name, _ in sent[0]["headers"])
    return sent[0]["status"], sent[1]["body"]


async def echo(scope: Any, receive: Any, send: Any) -> None:
    message = await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": message["body"]})


def guard(folder: Path, largest: int = 1000) -> Guard:
    return Guard(echo, entries=ENTRIES, folder=folder, uploads=folder, largest_upload=largest, loopback=True)


def test_a_checked_call_arrives_whole(tmp_path: Path) -> None:
    assert through(guard(tmp_path), "/gradio_api/queue/join", "POST", call()) == (200, call())


def test_sizes_are_bounded(tmp_path: Path) -> None:
    before = guard(tmp_path)
    upload = "/gradio_api/upload"
    assert through(before, upload, "POST", b"x" * 1000)[0] == 200
    assert through(before, upload, "POST", b"x" * 70_000)[0] == 413
    assert through(before, upload, "POST", b"x", content_length="")[0] == 411
    assert through(before, upload, "POST", b"x", content_length="-1")[0] == 411
    assert through(before, "/gradio_api/queue/join", "POST", b"x" * (2**20 + 1))[0] == 413
    assert through(before, "/gradio_api/queue/join", "POST", b"x" * (2**20 + 1), content_length="5")[0] == 413


def test_uploads_cannot_fill_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cascaded_diffusion.ui.guard._LARGEST_STORE", 2000)
    now = 1000.0
    monkeypatch.setattr("cascaded_diffusion.ui.guard.time.monotonic", lambda: now)
    (tmp_path / "result.png").write_bytes(b"x" * 1500)  # results are no uploads
    before = guard(tmp_path)

    def uploads(size: int) -> int:
        status: int = through(before, "/gradio_api/upload", "POST", b"x" * size)[0]
        return status

    # Nothing is stored here: what an upload announces counts from its beginning, so that many at once are too many.
    assert [uploads(size) for size in (1500, 400, 600, 100)] == [200, 200, 507, 200]
    now += 3600
    assert uploads(600) == 507  # old files are looked for every ten minutes
    now += 601
    assert uploads(2000) == 200


def test_a_file_from_outside_does_not_reach_the_application(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("x")
    assert through(guard(tmp_path), f"/gradio_api/file={tmp_path}/a.png", "GET", b"")[0] == 200
    for name in ("/etc/passwd", "https://example.com/x.png", f"{tmp_path}/../secret"):
        assert through(guard(tmp_path), f"/gradio_api/file={name}", "GET", b"")[0] == 403
