"""One channel of a relay: its packets in by one method and out by another, in order, one at a time.

Rules of this file: everything belongs to the channel's thread. A header is passed on as it came but
for the method's code and the payload's size, so packet numbers, SYNC flags, blocks, offsets and
their order stay the source's; block and offsets are the destination's to check.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass, field

from multifd.engine.negotiation import Negotiation
from multifd.engine.payload import prepare_payload, receive_payload, verbatim_bytes
from multifd.engine.splice import Splice
from multifd.errors import CodecError, RemoteWireError
from multifd.method import MultifdMethods, RecvParams, SendParams, run_hook
from multifd.pages import Geometry
from multifd.ram.block import Staging
from multifd.transport.connection import Connection
from multifd.wire.packet import (
    DEVICE_STATE_BYTES,
    FLAG_DEVICE_STATE,
    PREFIX_BYTES,
    PRIVATE_CODE,
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
        agreement: which method the source uses.
        out: the method towards the destination.
        abort: the migration's abort flag, for the hooks.
        figures: where to count.
    """

    def __init__(
        self,
        channel: int,
        geometry: Geometry,
        agreement: Negotiation,
        out: MultifdMethods,
        abort: bytearray,
        figures: ChannelFigures,
    ) -> None:
        self._geometry, self._agreement, self._out, self._figures = geometry, agreement, out, figures
        self._out_code = PRIVATE_CODE if out.wire_code is None else out.wire_code
        self._staging = Staging(geometry)
        pages = self._staging.pages(0)
        self._recv = RecvParams(channel, geometry, abort, pages, counters=figures.in_counters)
        self._send = SendParams(channel, geometry, abort, pages, counters=figures.out_counters)
        self._in: MultifdMethods | None = None  # known from the first packet with normal pages
        self._in_code = -1
        self._ahead = memoryview(mmap.mmap(-1, _AHEAD_BYTES))
        self._payload = memoryview(b"")

    def run(self, source: Connection, destination: Connection) -> None:
        """Pass packets on until the source closes the channel.

        Raises:
            RemoteWireError, PeerMismatch, MethodNotFound: a packet that cannot be, or of another method.
            CodecError: a payload that does not decode.
            ChannelError: a connection broke.
        """
        passage = Splice(source, destination, self._ahead)
        try:
            while prefix := passage.peek(PREFIX_BYTES):
                if packet_flags(prefix) & FLAG_DEVICE_STATE:
                    # QEMU 10.0, a vfio device: as it is, whatever its size.
                    payload = device_state_bytes(passage.peek(DEVICE_STATE_BYTES))
                    passage.pass_on(DEVICE_STATE_BYTES + payload)
                else:
                    self._pass_ram(passage)
                self._figures.packets += 1
            passage.send()
        except (RemoteWireError, CodecError) as e:
            e.channel, e.packet = self._recv.channel, self._figures.packets
            raise
        finally:
            self._clean_up()

    def _pass_ram(self, passage: Splice) -> None:
        header = passage.peek(header_bytes(self._geometry))
        counts = decode_counts(header, self._geometry)
        if counts.normal_pages:
            self._pass_pages(header, counts, passage)
        else:
            if counts.zero_pages:
                # No payload, but a destination of 9.0 or later insists on its method's code.
                recode_header(header, self._out_code, 0)
            passage.pass_on(len(header))
        self._figures.normal_pages += counts.normal_pages
        self._figures.zero_pages += counts.zero_pages

    def _pass_pages(self, header: memoryview, counts: Counts, passage: Splice) -> None:
        method = self._agree(counts.code)
        pages = self._staging.pages(counts.normal_pages)
        if method.capabilities.verbatim and self._out.capabilities.verbatim:
            payload = verbatim_bytes(pages, counts.next_packet_size)
            recode_header(header, self._out_code, payload)
            passage.pass_on(len(header) + payload)
            return
        passage.send()  # packets before this one need not wait for its payload
        passage.pass_on(len(header))
        receive_payload(passage, method, self._recv, pages, counts.next_packet_size, self._payload)
        self._send.iov.clear()
        recode_header(header, self._out_code, prepare_payload(self._out, self._send, pages))
        passage.send(self._send.iov)

    def _agree(self, code: int) -> MultifdMethods:
        """The source's method; sets both methods up at the first packet with pages."""
        if self._in is None:
            method = self._agreement.method_of(code)
            self._in, self._in_code = method, code
            self._payload = memoryview(mmap.mmap(-1, method.capabilities.max_payload))
            run_hook(method, "recv_setup", self._recv)
            run_hook(self._out, "send_setup", self._send)
        if code != self._in_code:
            self._agreement.method_of(code)  # raises
        return self._in

    def _clean_up(self) -> None:
        if self._in is None:
            return
        try:
            run_hook(self._in, "recv_cleanup", self._recv)
        finally:
            run_hook(self._out, "send_cleanup", self._send)
