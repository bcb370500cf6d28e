"""The served page, spoken to as somebody would who means ill."""

from __future__ import annotations

import ipaddress
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cascaded_diffusion.errors import UserError
from cascaded_diffusion.ui.server import address, is_loopback, listen

Values = Callable[..., list[Any]]


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../../../../../../etc/passwd",
        "/proc/self/environ",
        "http://127.0.0.1:1/x",
        "https://example.com/",
        "file:///etc/passwd",
        "%2Fetc%2Fpasswd",
        "/etc/passwd%00.png",
    ],
)
def test_no_file_from_outside_is_served(served: Any, name: str) -> None:
    for path in (f"gradio_api/file={name}", f"file={name}", f"gradio_api/file/{name}", f"gradio_api/proxy={name}"):
        status, body, _ = served.ask(path)
        assert status in (400, 403, 404), path
        assert b"root:" not in body
        assert b"PATH=" not in body


def test_neither_the_package_nor_the_current_folder_is_served(served: Any) -> None:
    for path in (Path(__file__), Path("pyproject.toml").resolve(), served.studio.origin.cascade + "/cascade.json"):
        assert Path(path).exists()
        assert served.ask(f"gradio_api/file={path}".replace(" ", "%20"))[0] == 403
    for path in ("static/../../../../../../../../etc/passwd", "assets/..%2f..%2f..%2f..%2f..%2fetc%2fpasswd"):
        status, body, _ = served.ask(path)
        assert status in (400, 403, 404)
        assert b"root:" not in body


def test_an_uploaded_file_comes_back_and_only_as_a_download(served: Any) -> None:
    status, body = served.upload("x.html", b"<script>alert(1)</script>")
    assert status == 200
    (path,) = json.loads(body)
    assert Path(path).is_relative_to(served.folder)
    status, body, headers = served.ask(f"gradio_api/file={path}")
    assert status == 200
    assert headers["content-disposition"].startswith("attachment")
    assert headers["content-type"] == "application/octet-stream"
    assert headers["x-content-type-options"] == "nosniff"


def test_a_large_upload_is_refused(served: Any) -> None:
    for size in (10 * 2**20 + 10, 11 * 2**20):
        assert served.upload("x.png", b"\0" * size)[0] in (0, 413)
    assert not [path for path in served.folder.rglob("*") if path.is_file() and path.stat().st_size > 10 * 2**20]


def test_an_upload_keeps_to_its_folder(served: Any) -> None:
    status, body = served.upload("../../../escaped.png", b"x")
    for path in json.loads(body) if status == 200 else ():
        assert Path(path).resolve().is_relative_to(served.folder)
    assert not [path for path in served.folder.parent.glob("**/escaped.png") if not path.is_relative_to(served.folder)]


def last_status(served: Any, session: str) -> str:
    """The last status line of a session's run."""
    messages = served.messages(session)
    done = [message for message in messages if message["msg"] == "process_completed"]
    assert done, messages
    assert done[0]["success"], done
    shown: list[str] = []
    for message in messages:
        for part in (message.get("output") or {}).get("data", ()):
            shown += [str(change[-1]) for change in part] if isinstance(part, list) else [str(part)]
    return next(one for one in reversed(shown) if "cdm-status" in one)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"sr16.s": 0.9}, "s of sr16: 0.9 is not allowed; give a number from 0 to 0.5"),
        ({"num": 10**9}, "images: 1000000000 is not allowed; give a number from 1 to 64"),
        ({"seed": "x"}, "seed: 'x'"),
        ({"classes": [77]}, "class: 77 is not allowed"),
        ({"base8.steps": 10**6}, "steps of base8: 1000000"),
        ({"base8.sampler": None}, "sampler of base8: None"),
    ],
)
def test_a_direct_call_is_checked_as_the_page_is(
    served: Any, values_of: Values, capfd: pytest.CaptureFixture[str], change: dict[str, Any], words: str
) -> None:
    session = f"direct{abs(hash(words))}"
    assert served.call("sample", values_of(served.studio.limits, **change), session)[0] == 200
    assert words in last_status(served, session).replace("&#x27;", "'")
    assert "Traceback" not in capfd.readouterr().err


def test_a_direct_call_samples(served: Any, values_of: Values) -> None:
    assert served.call("sample", values_of(served.studio.limits), "works")[0] == 200
    assert "done in" in last_status(served, "works")


def test_a_direct_call_cannot_name_a_file_of_the_machine(
    served: Any, values_of: Values, capfd: pytest.CaptureFixture[str]
) -> None:
    values = values_of(served.studio.limits)
    for path in ("/etc/passwd", "https://example.com/x.png", str(served.folder / "files" / "no.png")):
        sent = {"path": path, "meta": {"_type": "gradio.FileData"}, "orig_name": "x.png"}
        status, _ = served.call("enlarge", [*values, sent, "sr16", -1, 0.1], "thief")
        if status == 200:
            assert "was not uploaded here" in last_status(served, "thief")
        else:
            assert status == 403
        assert served.call("sample", [sent, *values[1:]], "thief")[0] == 400
    assert "Traceback" not in capfd.readouterr().err
    copied = [path for path in served.folder.rglob("*") if path.is_file() and b"root:" in path.read_bytes()]
    assert copied == []


def test_the_queue_is_limited(served: Any, values_of: Values) -> None:
    with served.studio.engine.busy:  # nothing gets on
        answers = [served.call("sample", values_of(served.studio.limits), f"queue{i}") for i in range(14)]
        assert answers[0][0] == 200
        assert answers[-1][0] == 503
        assert b"ueue is full" in answers[-1][1]
        assert sum(status == 200 for status, _ in answers) <= 10
    for i, (status, _) in enumerate(answers):
        if status == 200:
            assert "done in" in last_status(served, f"queue{i}")


def test_the_queue_cannot_be_passed_by(served: Any, values_of: Values) -> None:
    body = {"fn_index": served.number("sample"), "data": values_of(served.studio.limits), "session_hash": "jumps"}
    content = json.dumps(body).encode()
    assert served.ask("gradio_api/run/predict", content, content_type="application/json")[0] == 404
    assert served.ask("gradio_api/call/sample", content, content_type="application/json")[0] == 404


def test_other_sites_are_turned_away(served: Any) -> None:
    assert served.ask("config", Origin="http://evil.example")[0] == 403
    assert served.ask("config", Host="evil.example")[0] == 403
    assert served.ask("")[0] == 200


def test_the_page_asks_nobody_else(served: Any) -> None:
    _, body, headers = served.ask("")
    assert "default-src 'self'" in headers["content-security-policy"]
    config = served.config()
    assert config["analytics_enabled"] is False
    assert b"fonts.googleapis" not in body
    assert b"fonts.googleapis" not in served.ask("theme.css")[1]


def test_a_port_in_use_is_refused() -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"--port: {port} cannot be used on 127\.0\.0\.1"):
            listen("127.0.0.1", port)


def test_the_next_free_port_is_taken_where_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr("cascaded_diffusion.ui.server.DEFAULT_PORT", port)
        with listen("127.0.0.1", None) as other:
            assert port < other.getsockname()[1] < port + 20
        monkeypatch.setattr("cascaded_diffusion.ui.server._NEXT_PORTS", 1)
        with pytest.raises(UserError, match="are all in use"):
            listen("127.0.0.1", None)


def without_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """No server is asked for a name: addresses are taken for what they are, and no name is known."""

    def look_up(host: str, port: int, **options: Any) -> list[Any]:
        try:
            ipaddress.ip_address(host)
        except ValueError:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known") from None
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


@pytest.mark.parametrize("host", ["203.0.113.1", "300.1.1.1", "a" * 300])
def test_a_host_of_another_machine_is_refused(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    without_names(monkeypatch)
    for port in (None, 0):
        with pytest.raises(UserError, match=r"--(host|port): "):
            listen(host, port)


def test_addresses() -> None:
    with listen("127.0.0.1", 0) as near, listen("0.0.0.0", 0) as wide:
        assert is_loopback(near)
        assert not is_loopback(wide)
        assert address(wide) == f"http://127.0.0.1:{wide.getsockname()[1]}/"
    if socket.has_ipv6:
        with listen("::1", 0) as near:
            assert is_loopback(near)
            assert address(near).startswith("http://[::1]:")
