"""A URI: refused with a word, or the same again as it is shown."""

from __future__ import annotations

from collections.abc import Iterator

from multifd.errors import UsageError
from multifd.transport.address import Uri

COVERS = ("multifd.transport.address",)
LONGEST = 130


def seeds() -> Iterator[bytes]:
    """Of each kind."""
    yield from (
        b"tcp:127.0.0.1:4444",
        b"tcp:[::1]:0",
        b"tcp::0",
        b"unix:/run/x",
        b"vsock:2:1024",
        b"fd:3,4,5",
        b"tcp:\xc3\xa9.example:1",
    )


def run(data: bytes) -> str:
    """Read it, and read what it says of itself."""
    try:
        uri = Uri.parse(data.decode("utf-8", "surrogateescape"))
    except UsageError:
        return "refused"
    assert Uri.parse(str(uri)) == uri
    return str(uri).partition(":")[0]
