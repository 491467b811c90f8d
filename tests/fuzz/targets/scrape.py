"""What a client asks of the port of metrics and health: an answer of HTTP or none, and no error in the log."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from prometheus_client import CollectorRegistry, Counter

from multifd.service.scrape import _Handler

COVERS = ("multifd.service.scrape",)
LONGEST = 400
_REGISTRY = CollectorRegistry()
Counter("migrations", "Of the relay.", registry=_REGISTRY).inc()
_SERVER = SimpleNamespace(registry=_REGISTRY, health=lambda: (True, {"routes": 1}))
_ANSWER = re.compile(rb"HTTP/1\.[01] (200|400|404|405|414|431|501|505) |<!DOCTYPE HTML>|# HELP |\{|/metrics", re.DOTALL)


class _Client:
    """A socket that has said all it will say."""

    def __init__(self, said: bytes) -> None:
        self.said, self.heard = said, b""

    def makefile(self, *_: Any) -> io.BytesIO:
        """What it said."""
        return io.BytesIO(self.said)

    def sendall(self, data: bytes) -> None:
        """Take an answer."""
        self.heard += bytes(data)


def seeds() -> Iterator[bytes]:
    """As Prometheus asks, and as others do."""
    accept = b"application/openmetrics-text;version=1.0.0;q=0.5,*/*;q=0.1"
    yield b"GET /metrics HTTP/1.1\r\nHost: a\r\nAccept: " + accept + b"\r\n\r\n"
    yield b"GET /health?x HTTP/1.0\r\n\r\n"
    yield b"GET /\r\n"
    yield b"POST /metrics HTTP/1.1\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\nabc"
    yield b"GET //x HTTP/2.0\r\n\r\n"


def run(data: bytes) -> str:
    """Answer it."""
    client: Any = _Client(data)
    _Handler(client, "client", _SERVER)  # type: ignore[arg-type]
    answer = _ANSWER.match(client.heard)
    assert answer or not client.heard, client.heard
    return (answer[1] or b"0.9").decode() if answer else "nothing"
