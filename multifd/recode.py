"""One channel of a relay: its packets in by one method and out by another, in order, one at a time.

Rules of this file: everything belongs to the channel's thread. A header is passed on as it came but
for the method's code and the payload's size, so packet numbers, SYNC flags, blocks, offsets and
their order stay the source's; block and offsets are the destination's to check.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass, field

from multifd.agreement import Agreement
from multifd.channel import Connection
from multifd.errors import CodecError, RemoteWireError
from multifd.method import PACKET_BYTES, Geometry, MultifdMethods, RecvParams, SendParams, run_hook
from multifd.payload import prepare_payload, receive_payload, verbatim_bytes
from multifd.ram import Staging
from multifd.wire import (
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


class Recoder:
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
        agreement: Agreement,
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
        # Anonymous maps cost no memory before they are touched.
        self._buffer = memoryview(mmap.mmap(-1, PACKET_BYTES))
        self._payload = memoryview(b"")

    def run(self, source: Connection, destination: Connection) -> None:
        """Pass packets on until the source closes the channel.

        Raises:
            RemoteWireError, PeerMismatch, MethodNotFound: a packet that cannot be, or of another method.
            CodecError: a payload that does not decode.
            ChannelError: a connection broke.
        """
        header = memoryview(bytearray(max(header_bytes(self._geometry), DEVICE_STATE_BYTES)))
        try:
            while source.recv_into([header[:PREFIX_BYTES]]):
                is_device_state = bool(packet_flags(header) & FLAG_DEVICE_STATE)
                nbytes = DEVICE_STATE_BYTES if is_device_state else header_bytes(self._geometry)
                source.recv_exactly([header[PREFIX_BYTES:nbytes]])
                if is_device_state:
                    self._pass_device_state(header[:nbytes], source, destination)
                else:
                    self._pass_ram(header[:nbytes], source, destination)
                self._figures.packets += 1
        except (RemoteWireError, CodecError) as e:
            e.channel, e.packet = self._recv.channel, self._figures.packets
            raise
        finally:
            self._clean_up()

    def _pass_device_state(self, header: memoryview, source: Connection, destination: Connection) -> None:
        """QEMU 10.0, a vfio device: as it is, in pieces, whatever its size."""
        if payload := device_state_bytes(header):
            source.forward(destination, payload, self._buffer, [header])
        else:
            destination.send([header])

    def _pass_ram(self, header: memoryview, source: Connection, destination: Connection) -> None:
        counts = decode_counts(header, self._geometry)
        if counts.normal_pages:
            self._pass_pages(header, counts, source, destination)
        else:
            if counts.zero_pages:
                # No payload, but a destination of 9.0 or later insists on its method's code.
                recode_header(header, self._out_code, 0)
            destination.send([header])
        self._figures.normal_pages += counts.normal_pages
        self._figures.zero_pages += counts.zero_pages

    def _pass_pages(self, header: memoryview, counts: Counts, source: Connection, destination: Connection) -> None:
        method = self._agree(counts.code)
        pages = self._staging.pages(counts.normal_pages)
        if method.capabilities.verbatim and self._out.capabilities.verbatim:
            nbytes = verbatim_bytes(pages, counts.next_packet_size)
            recode_header(header, self._out_code, nbytes)
            source.forward(destination, nbytes, self._buffer, [header])
            return
        receive_payload(source, method, self._recv, pages, counts.next_packet_size, self._payload)
        self._send.iov.clear()
        recode_header(header, self._out_code, prepare_payload(self._out, self._send, pages))
        destination.send([header, *self._send.iov])

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
