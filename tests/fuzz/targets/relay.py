"""The packets of a channel at a relay: whatever a source sends, the same goes on by the pump and by Python.

An input's first byte chooses how the relay is set up; the rest is as `packet`'s. Relays look at no block and no offset.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from multifd.engine.passing import Passing
from multifd.engine.transcoder import ChannelFigures, Transcoder
from multifd.errors import MethodNotFound, MultifdError, PeerMismatch
from multifd.method import MultifdMethods
from multifd.pages import Geometry
from multifd.registry import load_method
from multifd.transport.connection import Connection
from multifd.transport.idle import IdleTimer
from tests.fuzz.targets import packet
from tests.fuzz.targets.packet import LONGEST as LONGEST
from tests.fuzz.targets.packet import PAGE
from tests.fuzz.targets.packet import fields as fields
from tests.pump.both_paths import PATHS, TIMEOUT_S, by, pair, saying, told

COVERS = ("multifd.engine.splice", "multifd.engine.transcoder", "multifd.engine.passing")

_NONE, _ZSTD, _ZLIB = map(load_method, ("none", "zstd", "zlib"))
SETUPS: tuple[tuple[MultifdMethods, MultifdMethods | None], ...] = (
    (_NONE, _NONE), (_NONE, None), (_ZSTD, _NONE), (_NONE, _ZSTD), (_ZLIB, _ZSTD), (_ZSTD, None),
)  # fmt: skip
"""By what the source sends, and what the destination is sent; None: as it comes."""


def seeds() -> Iterator[bytes]:
    """Sound packets for each relay, and packets that are only the pump's between those that are not."""
    for which, (method, _) in enumerate(SETUPS):
        yield bytes([which]) + packet.sound(method)
    many = (((0, 1), ()), ((2,), ()), ((3,), (4,)), ((5, 6), ()), ((), (1,)))
    yield b"\0" + packet.sound(_NONE, many)


def _pass_on(path: str, wire: bytes, which: int) -> tuple[Any, bytes, ChannelFigures]:
    source, theirs = pair()
    destination, far = pair()
    idle, figures, geometry = IdleTimer(TIMEOUT_S), ChannelFigures(), Geometry.of(PAGE)
    into, out = Connection(source, idle, "the source"), Connection(destination, idle, "the destination")
    method, method_out = SETUPS[which]

    def method_of(code: int) -> MultifdMethods:
        if code == method.wire_code:
            return method
        raise MethodNotFound(f"code {code}", [])

    def check(code: int) -> None:
        if code != method.wire_code:
            raise PeerMismatch(f"code {code}")

    error = None
    with by(path), saying(theirs, wire), contextlib.closing(into), far:
        channel: Passing | Transcoder = Passing(3, geometry, check, figures)
        if method_out is not None:
            channel = Transcoder(3, geometry, method_of, method_out, idle, figures)
        try:
            with contextlib.closing(out):
                channel.run(into, out)
        except MultifdError as e:
            error = told(e)
        passed = b"".join(iter(lambda: far.recv(1 << 18), b""))
    return error, passed, figures


def run(data: bytes) -> str:
    """Relay by both paths."""
    wire, which = packet.expand(data[1:]), (data or b"\0")[0] % len(SETUPS)
    (error, out, figures), other = (_pass_on(path, wire, which) for path in PATHS)
    if error is None:
        assert (error, out, figures) == other
    else:  # what was still in hand is not sent any more
        assert error == other[0]
        assert out.startswith(other[1]) or other[1].startswith(out)
    if SETUPS[which][1] is None:
        assert wire.startswith(out)
    return error[0].__name__ if error else "passed on"
