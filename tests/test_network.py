"""That tests cannot reach the network, and can reach themselves."""

from __future__ import annotations

import socket
import urllib.request
from collections.abc import Callable

import pytest

Fails = pytest.fail.Exception

REACHING: dict[str, Callable[[], object]] = {
    "IPv4": lambda: socket.create_connection(("192.0.2.1", 80), timeout=1),
    "IPv6": lambda: socket.create_connection(("2001:db8::1", 80), timeout=1),
    "connect": lambda: socket.socket().connect(("192.0.2.1", 80)),
    "connect_ex": lambda: socket.socket().connect_ex(("192.0.2.1", 80)),
    "a name": lambda: socket.getaddrinfo("example.invalid", 80),
    "a page": lambda: urllib.request.build_opener(urllib.request.ProxyHandler({})).open("http://example.invalid/"),
}


@pytest.mark.parametrize("reach", REACHING.values(), ids=REACHING)
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_other_machines_are_out_of_reach(reach: Callable[[], object]) -> None:
    with pytest.raises(Fails, match="on the network"):
        reach()


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_this_machine_is_in_reach(name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        assert client.getpeername() == server.getsockname()
    assert socket.getaddrinfo(name, 80)
