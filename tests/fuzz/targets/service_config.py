"""A relay's routes: refused with a word, or routes that have what a route needs."""

from __future__ import annotations

from collections.abc import Iterator

from multifd.errors import UsageError
from multifd.service import config
from tests.fuzz.memfd import file_of

COVERS = ("multifd.service.config",)
LONGEST = 700
_ROUTE = b"""[routes.a]
listen = "tcp:127.0.0.1:0"
to = "unix:/run/b"
in = "zstd"
out = "none"
channels = 2
connect-timeout = 1.5
allow = ["127.0.0.0/8"]
"""


def seeds() -> Iterator[bytes]:
    """A route with much said of it, two with little, and files that are none."""
    yield _ROUTE + b"max-bandwidth = 1_000\ntimeout = 3\n"
    yield (
        b'[routes.a]\nlisten = "unix:/run/a"\nto = "tcp:h:1"\nallow-uid = [0]\nsocket-mode = "0660"\n'
        b'[routes.b]\nlisten="systemd:b"\nto="vsock:2:1"\n'
    )
    yield b'[routes.a]\nlisten = "tcp::1"\nto = "tcp:h:1"\n[routes.a.in-tls]\ncreds = "/none"\nauthz = ["CN=x"]\n'
    yield b"routes = 1"
    yield b'[routes."\\u0000"]\nx = [[[1979-05-27T07:32:00Z]]]'


def run(data: bytes) -> str:
    """Read it."""
    with file_of((0, data)) as path:
        try:
            routes = config.read(path)
        except UsageError:
            return "refused"
    assert routes
    assert len({route.name for route in routes}) == len(routes)
    assert all(route.listen and route.relay.to for route in routes)
    return "routes"
