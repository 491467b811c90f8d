"""What a new connection starts with, sans-IO: main, a channel, or what else connects to such a port.

Rules of this file: bytes in, a value out. Four bytes decide, since main and channels have a magic of four; a stranger
is named by them as well as they allow, so that an operator knows what was pointed at the wrong port.

Sources: main's and a channel's magic as in `multifd.wire.stream` and `multifd.wire.packet`; TLS 1.0 to 1.3 records,
RFC 8446 section 5.1 (content type 22, handshake, then version 3.x); HTTP methods, RFC 9110 section 9; HTTP/2's preface,
RFC 9113 section 3.4; SSH's identification, RFC 4253 section 4.2; the PROXY protocol's two signatures (HAProxy,
proxy-protocol.txt, section 2).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from multifd.wire import packet, stream

DECIDING_BYTES = 4
"""As many of a connection's first bytes are looked at."""


class Kind(enum.Enum):
    """What a connection is."""

    UNDECIDED = "has not said enough"
    MAIN = "main"
    CHANNEL = "a channel"
    STRANGER = "not a migration's"


@dataclass(frozen=True)
class Greeting:
    """What the first bytes of a connection say."""

    kind: Kind
    words: str = ""
    """Of a stranger: what it is and what to do about it; empty for others."""


_TLS = "a TLS client: TLS is not spoken here, give this side tls-creds or switch them off at the source"
_KNOWN = {
    b"\x16\x03": _TLS,
    b"GET ": "an HTTP client",
    b"HEAD": "an HTTP client",
    b"POST": "an HTTP client",
    b"PUT ": "an HTTP client",
    b"OPTI": "an HTTP client",
    b"CONN": "an HTTP client that takes this port for a proxy",
    b"PRI ": "an HTTP/2 client",
    b"SSH-": "an SSH client",
    b"PROX": "a load balancer that speaks the PROXY protocol: switch that off",
    b"\r\n\r\n": "a load balancer that speaks the PROXY protocol: switch that off",
    b"QEMU": "a QEMU that speaks another protocol, not a migration",
    b'{"ex': "a QMP client",
}


def classify(first: bytes | bytearray) -> Greeting:
    """What a connection is, by its first bytes.

    Args:
        first: what came so far, at least one byte; more than `DECIDING_BYTES` are not looked at.

    Returns:
        `Kind.UNDECIDED` as long as another byte can tell more; four always decide.
    """
    start = bytes(first[:DECIDING_BYTES])
    for magic, kind in ((stream.MAGIC_BYTES, Kind.MAIN), (packet.MAGIC_BYTES, Kind.CHANNEL)):
        if start == magic:
            return Greeting(kind)
        if magic.startswith(start):
            return Greeting(Kind.UNDECIDED)
    for mark, words in _KNOWN.items():
        if mark.startswith(start) and mark != start:
            return Greeting(Kind.UNDECIDED)  # and it will be a stranger
        if start.startswith(mark):
            return Greeting(Kind.STRANGER, words)
    shown = start.decode("ascii") if start.isascii() and start.decode("ascii").isprintable() else f"0x{start.hex()}"
    return Greeting(Kind.STRANGER, f"a client that starts with {shown!r}")


def closed(first: bytes | bytearray) -> Greeting:
    """What a connection was that ended before it had said enough.

    Args:
        first: all that came of it.
    """
    said = f"after {len(first)} bytes" if first else "without a word"
    return Greeting(Kind.STRANGER, f"a client that closed {said}, such as a port scanner")
