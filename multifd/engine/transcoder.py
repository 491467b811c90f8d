"""One channel of a relay: its packets in by one method and out by another, in order, one at a time.

Rules of this file: everything belongs to the channel's thread. A header is passed on as it came but
for the method's code and the payload's size, so packet numbers, SYNC flags, blocks, offsets and
their order stay the source's; block and offsets are the destination's to check.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field

from multifd.engine.session import RecvSession, SendSession, verbatim_bytes, wire_code
from multifd.engine.splice import Splice
from multifd.errors import CodecError, RemoteWireError
from multifd.method import MultifdMethods
from multifd.pages import Geometry
from multifd.pump.library import Stop
from multifd.pump.splicing import SplicePump
from multifd.ram.block import private_map
from multifd.transport.connection import Connection
from multifd.transport.idle import IdleTimer
from multifd.wire.packet import (
    DEVICE_STATE_BYTES,
    FLAG_DEVICE_STATE,
    FLAG_SYNC,
    PREFIX_BYTES,
    Counts,
    decode_counts,
    device_state_bytes,
    header_bytes,
    packet_flags,
    recode_header,
)

_AHEAD_BYTES = 1 << 20
"""Read at once where it has arrived: two packets. Between two QEMUs half of it was slower, twice as much no faster."""


@dataclass(slots=True)
class ChannelFigures:
    """What one channel has passed on; written by its thread, read by any."""

    packets: int = 0
    """All of them: data, SYNC, empty, device state."""
    syncs: int = 0
    normal_pages: int = 0
    zero_pages: int = 0
    in_counters: dict[str, int] = field(default_factory=dict)
    out_counters: dict[str, int] = field(default_factory=dict)
    """The methods' own."""


class Transcoder:
    """The packets of one channel, from its source to its destination; use once.

    Args:
        channel: its id.
        geometry: the migration's.
        method_of: gives the source's method by a packet's code, or raises.
        out: the method towards the destination.
        idle: the migration's.
        figures: where to count.
    """

    def __init__(
        self,
        channel: int,
        geometry: Geometry,
        method_of: Callable[[int], MultifdMethods],
        out: MultifdMethods,
        idle: IdleTimer,
        figures: ChannelFigures,
    ) -> None:
        self._channel, self._geometry, self._out, self._figures = channel, geometry, out, figures
        self._abort = idle.abort.flag
        self._in = RecvSession(method_of, channel, geometry, idle, figures.in_counters)
        self._send = SendSession(out, channel, geometry, idle, figures.out_counters)
        self._sessions = contextlib.ExitStack()
        self._is_set_up = False
        self._pump: SplicePump | None = None
        self._ahead = private_map(_AHEAD_BYTES)

    def run(self, source: Connection, destination: Connection) -> None:
        """Pass packets on until the source closes the channel.

        Raises:
            RemoteWireError, PeerMismatch, MethodNotFound: a packet that cannot be, or of another method.
            CodecError: a payload that does not decode.
            ChannelError: a connection broke.
        """
        splice = Splice(source, destination, self._ahead)
        self._send.follow(destination.link_use)
        try:
            with self._sessions:
                while prefix := self._peek(splice):
                    if packet_flags(prefix) & FLAG_DEVICE_STATE:
                        # QEMU 10.0, a vfio device: as it is, whatever its size.
                        payload = device_state_bytes(splice.peek(DEVICE_STATE_BYTES))
                        splice.pass_on(DEVICE_STATE_BYTES + payload)
                    else:
                        self._pass_ram(splice)
                    self._figures.packets += 1
                splice.send()
        except (RemoteWireError, CodecError) as e:
            e.channel, e.packet = self._channel, self._figures.packets
            raise

    def _peek(self, splice: Splice) -> memoryview:
        """The next packet's first bytes; those that are the pump's have gone on."""
        while self._pump is not None:
            stop, figures = splice.run(self._pump), self._pump.figures
            self._figures.packets += figures.packets
            self._figures.normal_pages += figures.normal_pages
            self._figures.zero_pages += figures.zero_pages
            if stop in (Stop.HEADER, Stop.END):
                break
        return splice.peek(PREFIX_BYTES)

    def _pass_ram(self, splice: Splice) -> None:
        header = splice.peek(header_bytes(self._geometry))
        counts = decode_counts(header, self._geometry)
        is_sync = bool(packet_flags(header) & FLAG_SYNC)
        if counts.normal_pages:
            self._pass_pages(header, counts, splice)
        else:
            if counts.zero_pages:
                # No payload, but a destination of 9.0 or later insists on its method's code.
                recode_header(header, wire_code(self._out), 0)
            splice.pass_on(len(header))
        self._figures.syncs += is_sync
        self._figures.normal_pages += counts.normal_pages
        self._figures.zero_pages += counts.zero_pages

    def _pass_pages(self, header: memoryview, counts: Counts, splice: Splice) -> None:
        self._set_up()
        method = self._in.method(counts.code)
        pages = self._in.staging.pages(counts.normal_pages)
        if method.capabilities.verbatim and self._out.capabilities.verbatim:
            payload = verbatim_bytes(pages.nbytes, counts.next_packet_size)
            recode_header(header, wire_code(self._out), payload)
            splice.pass_on(len(header) + payload)
            if self._pump is None:
                self._pump = splice.open_pump(self._geometry, self._abort, counts.code, wire_code(self._out))
            return
        splice.send()  # packets before this one need not wait for its payload
        splice.pass_on(len(header))
        self._in.receive(splice, counts.code, pages, counts.next_packet_size)
        iov, payload = self._send.prepare(pages)
        recode_header(header, wire_code(self._out), payload)
        splice.send(iov)

    def _set_up(self) -> None:
        """Both methods are set up at the first packet with pages."""
        if not self._is_set_up:
            self._is_set_up = True
            self._sessions.enter_context(self._in)
            self._sessions.enter_context(self._send)
