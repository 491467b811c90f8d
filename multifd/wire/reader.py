"""A push parser for QEMU's main stream, sans-IO: as much as RAM needs; the rest passes through opaque.

Rules of this file: bytes in, events out; no connection, no clock. A reader fed byte by byte gives
the same events as one fed at once. Only `StreamError` leaves. Everything the stream makes us hold
has a bound.
"""

from __future__ import annotations

from multifd.errors import StreamError
from multifd.wire import vmdesc
from multifd.wire.grammar import Grammar, Steps
from multifd.wire.stream import EOF, Block, DeviceState, Event, StreamEnd

_MAX_TAIL = 16 << 20
"""Bytes of the opaque remainder searched for its end; a vmdesc is about 100 KB for an empty pc."""


class OnChannels:
    """The pages come on the channels: a multifd migration."""

    def capability(self, grammar: Grammar, name: str) -> None:
        """See `Place`."""
        raise grammar.error(
            f"the source has capability {name!r} on, with which RAM does not travel on the connections: "
            "switch it off there"
        )

    def block(self, grammar: Grammar, block: Block) -> Steps[None]:
        """See `Place`: nothing."""
        yield from ()

    def check_page(self, grammar: Grammar) -> None:
        """See `Place`."""
        raise grammar.error(
            "pages on the main stream: the source does not use multifd; switch the capability on there", 8
        )


class MainStreamReader:
    """A push parser: `feed` bytes, get events, and call `end` when the connection ends.

    Args:
        page_size: bytes of a target page unless the configuration says otherwise.
    """

    def __init__(self, page_size: int = 4096) -> None:
        self._grammar = Grammar(OnChannels(), page_size)
        self._buffer = bytearray()
        self._position = 0  # behind what has come of the remainder
        self._tail = bytearray()  # the remainder, once ram has ended
        self._ended = False
        self.ram_end: int | None = None
        """Of the stream's bytes the first behind RAM, which is the devices'; None before it has come."""

    @property
    def page_size(self) -> int:
        """Bytes."""
        return self._grammar.page_size

    def feed(self, data: bytes | bytearray | memoryview) -> list[Event]:
        """The events that these bytes complete.

        Raises:
            StreamError: the peer broke the grammar; the reader is of no use any more.
        """
        grammar = self._grammar
        if grammar.is_over:
            return self._remainder(data)
        self._buffer += data
        start = 0
        while not grammar.is_over:
            need = grammar.request
            assert isinstance(need, int)  # only what is in a file is skipped
            if len(self._buffer) - start < need:
                break
            grammar.feed(bytes(self._buffer[start : start + need]))
            start += need
            start += grammar.take_run(self._buffer, start)
        events = grammar.take_events()
        rest = self._buffer[start:]
        del self._buffer[:start]
        if grammar.is_over:
            self._position = self.ram_end = grammar.position
            self._buffer.clear()
            events += self._remainder(rest)
        return events

    def taken(self) -> list[Event]:
        """What the bytes completed of which the last `feed` raised, before the place where they broke the grammar."""
        return self._grammar.take_events()

    @property
    def has_configuration(self) -> bool:
        """Whether a configuration section was read: machine types from 2.4 on begin with one."""
        return self._grammar.has_configuration

    @property
    def has_started(self) -> bool:
        """Whether something was read that only a source of a migration sends: a configuration, or a first item."""
        return self._grammar.has_started

    @property
    def has_seen_end(self) -> bool:
        """Whether the stream said that it is complete; one that does not mark its end is only known by `end`."""
        return self._ended

    def end(self) -> None:
        """The connection ended.

        Raises:
            StreamError: before the stream did.
        """
        if not self._grammar.is_over:
            raise self._grammar.error("the stream ends before all of RAM was announced as sent")
        if not self._ended and not vmdesc.may_end(self._tail, has_footers=bool(self._grammar.has_footers)):
            raise StreamError("the stream ends inside the devices' state", offset=self._position)

    def _remainder(self, data: bytes | bytearray | memoryview) -> list[Event]:
        """Pass on what ram does not understand, and look for the stream's end in it.

        Without devices the EOF byte comes at once. Else the last thing is the vmdesc.
        """
        if self._ended or not data:
            return []
        if not self._tail and data[0] == EOF:
            data = data[:1]
            self._ended = True
        events: list[Event] = [DeviceState(bytes(data))]
        self._position += len(data)
        self._tail += data
        if self._ended or vmdesc.ends(self._tail):
            self._ended = True
            events.append(StreamEnd())
        elif len(self._tail) > _MAX_TAIL:
            del self._tail[: len(self._tail) - _MAX_TAIL // 2]
        return events
