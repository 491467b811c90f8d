"""One channel of a relay whose packets go on as the source made them, by whatever method.

Rules of this file: everything belongs to the channel's thread. Nothing is decoded and nothing is changed, so no method
is run here, and one that is not installed passes, too; headers are looked at for where a packet ends.
"""

from __future__ import annotations

from collections.abc import Callable

from multifd.engine.splice import Splice
from multifd.engine.transcoder import ChannelFigures
from multifd.errors import RemoteWireError
from multifd.pages import Geometry
from multifd.ram.block import private_map
from multifd.transport.connection import Connection
from multifd.wire.packet import (
    DEVICE_STATE_BYTES,
    FLAG_DEVICE_STATE,
    FLAG_SYNC,
    PREFIX_BYTES,
    decode_counts,
    device_state_bytes,
    header_bytes,
    packet_flags,
)

_AHEAD_BYTES = 1 << 20
"""As in `multifd.engine.transcoder`."""


class Passing:
    """The packets of one channel, from its source to its destination, in the place of a `Transcoder`; use once.

    Args:
        channel: its id.
        geometry: the migration's.
        check: called with the method's code of each packet with pages; what it raises ends the migration.
        figures: where to count.
    """

    def __init__(
        self, channel: int, geometry: Geometry, check: Callable[[int], object], figures: ChannelFigures
    ) -> None:
        self._channel, self._geometry, self._check, self._figures = channel, geometry, check, figures

    def run(self, source: Connection, destination: Connection) -> None:
        """Pass packets on until the source closes the channel.

        Raises:
            RemoteWireError, PeerMismatch: a packet that cannot be, or of another method than may be.
            ChannelError: a connection broke.
        """
        ahead = private_map(_AHEAD_BYTES)
        splice = Splice(source, destination, ahead)
        figures = self._figures
        try:
            while prefix := splice.peek(PREFIX_BYTES):
                if packet_flags(prefix) & FLAG_DEVICE_STATE:
                    length = DEVICE_STATE_BYTES + device_state_bytes(splice.peek(DEVICE_STATE_BYTES))
                else:
                    header = splice.peek(header_bytes(self._geometry))
                    counts = decode_counts(header, self._geometry)
                    length = len(header)
                    if counts.normal_pages:
                        self._check(counts.code)
                        length += counts.next_packet_size
                    figures.syncs += bool(packet_flags(header) & FLAG_SYNC)
                    figures.normal_pages += counts.normal_pages
                    figures.zero_pages += counts.zero_pages
                splice.pass_on(length)
                figures.packets += 1
            splice.send()
        except RemoteWireError as e:
            e.channel, e.packet = self._channel, figures.packets
            raise
