"""A push parser for a channel's packets that looks at headers and steps over payloads, sans-IO.

Rules of this file: bytes in, headers out; no connection, no clock. Fed byte by byte it gives the same headers as fed at
once. Only `RemoteWireError` leaves. Nothing is kept but one header.
"""

from __future__ import annotations

from collections.abc import Iterator

from multifd.errors import RemoteWireError
from multifd.pages import Geometry
from multifd.wire.packet import (
    DEVICE_STATE_BYTES,
    FLAG_DEVICE_STATE,
    PREFIX_BYTES,
    decode_counts,
    device_state_bytes,
    header_bytes,
    packet_flags,
)


class PacketWalker:
    """What comes after a channel's init packet: `feed` bytes, get the headers of RAM packets.

    Args:
        geometry: the migration's.
    """

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry
        self._header = bytearray()
        self._left = 0  # of the payload that is stepped over
        self.packets = 0
        """That have begun with a whole header."""

    @property
    def pending(self) -> int:
        """Bytes of a header that is not complete."""
        return len(self._header)

    @property
    def missing(self) -> int:
        """Bytes of a payload that are still to come."""
        return self._left

    @property
    def longest(self) -> int:
        """Bytes of the longest header."""
        return header_bytes(self._geometry)

    def wanted(self) -> int:
        """Bytes until more is known: of the header that has begun, or comes next."""
        return self._wanted() - len(self._header)

    def step_over(self, most: int) -> int:
        """As if the next bytes of the payload had been fed, at most `most`; returns how many that are."""
        step = min(self._left, most)
        self._left -= step
        return step

    def feed(self, data: memoryview) -> Iterator[bytearray]:
        """The headers that these bytes complete; take all of them before the next call.

        Raises:
            RemoteWireError: a header that cannot be; the walker is of no use any more.
        """
        at = 0
        while at < len(data):
            if self._left:
                step = min(self._left, len(data) - at)
                self._left -= step
            else:
                step = min(self._wanted() - len(self._header), len(data) - at)
                self._header += data[at : at + step]
            at += step
            if not self._left and len(self._header) == self._wanted():
                header, self._header = self._header, bytearray()
                yield from self._take(header)

    def _wanted(self) -> int:
        """How long the header that has begun is, as far as is known."""
        if len(self._header) < PREFIX_BYTES:
            return PREFIX_BYTES
        try:
            is_device_state = packet_flags(self._header) & FLAG_DEVICE_STATE
        except RemoteWireError as e:
            e.packet = self.packets
            raise
        return DEVICE_STATE_BYTES if is_device_state else header_bytes(self._geometry)

    def _take(self, header: bytearray) -> Iterator[bytearray]:
        try:
            if packet_flags(header) & FLAG_DEVICE_STATE:
                self._left = device_state_bytes(header)
            else:
                counts = decode_counts(header, self._geometry)
                # Without pages the field is what an older sender left in it.
                self._left = counts.next_packet_size if counts.normal_pages else 0
        except RemoteWireError as e:
            e.packet = self.packets
            raise
        self.packets += 1
        if not packet_flags(header) & FLAG_DEVICE_STATE:
            yield header
