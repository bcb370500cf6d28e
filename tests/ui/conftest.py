"""Cascades to put behind a page, and a page that is served from this process.

Session-scoped folders are shared between tests: read them, copy them, never write to them.
"""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cascaded_diffusion.cascade.chain import Cascade
from cascaded_diffusion.ui.command import Origin
from cascaded_diffusion.ui.limits import PageLimits, page_limits
from cascaded_diffusion.ui.server import address, is_loopback, listen, own_folder, page_server
from cascaded_diffusion.ui.studio import Frame, Studio

Make = Callable[..., Any]
NAMES = ("Red", "Green, dark", "3", "Yellow/gold")


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory, base_config: Make, sr_config: Make, random_stage: Make) -> Path:
    """A cascade folder 4 -> 8 -> 16 without classes: gaussian at 8 (truncated by default), blur at 16."""
    no = {"classes": None, "training": {"class_dropout": 0.0}}
    gaussian = {"sampling": {"augmentation": "truncated", "s": 0.2}}
    blur = {"conditioning": {"augmentation": "blur"}}
    configs = [base_config(4, **no), sr_config(8, low=4, **no, **gaussian), sr_config(16, low=8, **no, **blur)]
    folder = tmp_path_factory.mktemp("plain") / "plain"
    Cascade([random_stage(config, seed) for seed, config in enumerate(configs)]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def later(tmp_path_factory: pytest.TempPathFactory, base_config: Make, sr_config: Make, random_stage: Make) -> Path:
    """A cascade folder 4 -> 8 without classes, in continuous time; the SR stage has all that came later in use."""
    continuous = {"noise_schedule": {"kind": "cosine", "timesteps": None}}
    no = {"classes": None, "training": {"class_dropout": 0.0}, "diffusion": continuous}
    config = sr_config(8, low=4, conditioning={"low_schedule": continuous["noise_schedule"]}, **no)
    high = random_stage(config, 1)
    high.guided_by(random_stage(config, 2))
    cascade = Cascade([random_stage(base_config(4, **no)), high])
    changes = {"start": 0.7, "guide": 2.0, "guidance_interval": (1e-05, 5.0), "grid": "edm", "rho": 5.0}
    cascade.defaults["sr8"] = cascade.defaults["sr8"].model_copy(update=changes)
    folder = tmp_path_factory.mktemp("later") / "later"
    cascade.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def named(tmp_path_factory: pytest.TempPathFactory, base_config: Make, sr_config: Make, random_stage: Make) -> Path:
    """A cascade folder 8 -> 16 of four classes whose names a command line could stumble over."""
    words = {"class_names": NAMES}
    configs = [base_config(8, **words), sr_config(16, low=8, **words)]
    folder = tmp_path_factory.mktemp("named") / "named cascade"
    Cascade([random_stage(config, seed) for seed, config in enumerate(configs)]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def limits_of() -> Callable[[Path | str], PageLimits]:
    """``limits_of(folder)``: what a page about that cascade offers."""
    return lambda folder: page_limits(Cascade.from_pretrained(folder), 64)


def _defaults(limits: PageLimits, **changes: Any) -> list[Any]:
    values: dict[str, Any] = {} if limits.classes is None else {"classes": []}
    values |= {"num": 2, "seed": 0}
    for stage in limits.stages:
        values |= {f"{stage.name}.{control}": stage.default(control) for control in stage.controls}
    assert changes.keys() <= values.keys()
    return list((values | changes).values())


@pytest.fixture(scope="session")
def values_of() -> Callable[..., list[Any]]:
    """``values_of(limits, num=3, **{"sr16.s": 0.2})``: what the controls of a new page would send, with changes."""
    return _defaults


@pytest.fixture
def studio_of(tmp_path: Path) -> Iterator[Callable[[Path], Studio]]:
    """``studio_of(folder)``: a studio about that cascade."""
    made: list[Studio] = []

    def make(folder: Path) -> Studio:
        cascade = Cascade.from_pretrained(folder)
        own = tmp_path / f"page{len(made)}"
        (own / "files").mkdir(parents=True)
        made.append(Studio(cascade, page_limits(cascade, 64), Origin(str(folder), "cpu"), own))
        return made[-1]

    yield make
    for studio in made:
        studio.engine.close()


@pytest.fixture(scope="session")
def ended() -> Callable[[Iterator[Frame]], Frame]:
    """``ended(studio.sample(...))``: the last frame of a run."""

    def last(frames: Iterator[Frame]) -> Frame:
        frame = list(frames)[-1]
        assert frame.ended
        return frame

    return last


@dataclass(frozen=True)
class Served:
    """A page on loopback, and how to speak to it without a browser."""

    url: str
    studio: Studio
    folder: Path

    def ask(
        self, path: str, body: bytes | None = None, method: str | None = None, **headers: str
    ) -> tuple[int, bytes, dict[str, str]]:
        """Status, body and headers of an answer; status 0 if the server hung up instead."""
        names = {key.replace("_", "-"): value for key, value in headers.items()}
        request = urllib.request.Request(self.url + path.lstrip("/"), body, names, method=method)
        try:
            with urllib.request.build_opener().open(request, timeout=20) as answer:
                return answer.status, answer.read(), dict(answer.headers)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read(), dict(error.headers)
        except (urllib.error.URLError, ConnectionError):  # hung up on while it was still sending
            return 0, b"", {}

    def config(self) -> dict[str, Any]:
        """What Gradio tells the browser of the page."""
        config = json.loads(self.ask("config")[1])
        assert isinstance(config, dict)
        return config

    def number(self, name: str) -> int:
        """The number of the function of that name."""
        return next(one["id"] for one in self.config()["dependencies"] if one["api_name"] == name)

    def call(self, name: str, data: Sequence[Any], session: str = "session1") -> tuple[int, bytes]:
        """Join the queue."""
        body = {"fn_index": self.number(name), "data": list(data), "session_hash": session}
        return self.ask("gradio_api/queue/join", json.dumps(body).encode(), content_type="application/json")[:2]

    def messages(self, session: str = "session1") -> list[dict[str, Any]]:
        """What the queue tells a session until all is done."""
        status, body, _ = self.ask(f"gradio_api/queue/data?session_hash={session}")
        assert status == 200
        return [json.loads(line[6:]) for line in body.decode().splitlines() if line.startswith("data: ")]

    def upload(self, name: str, content: bytes) -> tuple[int, bytes]:
        """Send a file as the page's upload field does."""
        edge = "edgeofparts"
        head = f'--{edge}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n'
        body = (
            head.encode() + b"Content-Type: application/octet-stream\r\n\r\n" + content + f"\r\n--{edge}--\r\n".encode()
        )
        return self.ask("gradio_api/upload", body, content_type=f"multipart/form-data; boundary={edge}")[:2]


@pytest.fixture(scope="session")
def page_folder() -> Iterator[Path]:
    """The folder of every page of this process: Gradio reads its name once."""
    with own_folder() as folder:
        yield folder


@pytest.fixture(scope="session")
def serve(page_folder: Path) -> Iterator[Callable[[Path], Served]]:
    """``serve(cascade_folder)``: its page, served until the tests end."""
    running: list[tuple[Any, threading.Thread, Studio]] = []

    def start(cascade_folder: Path) -> Served:
        cascade = Cascade.from_pretrained(cascade_folder)
        studio = Studio(cascade, page_limits(cascade, 64), Origin(str(cascade_folder)), page_folder)
        listening = listen("127.0.0.1", 0)
        server = page_server(studio, "test", page_folder, loopback=is_loopback(listening))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.02)
        running.append((server, thread, studio))
        return Served(address(listening), studio, page_folder)

    yield start
    for server, thread, studio in running:
        studio.engine.close()
        server.should_exit = True
        thread.join(20)


@pytest.fixture(scope="session")
def served(serve: Callable[[Path], Served], named: Path) -> Served:
    """The page about ``named``."""
    return serve(named)
