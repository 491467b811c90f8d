"""One channel of a migration that is kept as it comes: its bytes go to a file, and SYNCs wait for main as at any end.

Rules of this file: everything belongs to the channel's thread. Nothing is decoded and no method is run; headers are
looked at for where a packet ends, and as at any end for what cannot be: a source that is told success is let go.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from multifd.engine.recv_channel import RecvChannel
from multifd.engine.sync import Barrier
from multifd.errors import RemoteWireError
from multifd.method import MultifdMethods
from multifd.pages import Geometry
from multifd.ram.block import TargetBlock, private_map
from multifd.ram.part_folder import StreamFile
from multifd.stats import ChannelStats
from multifd.transport.connection import Connection
from multifd.transport.idle import IdleTimer
from multifd.wire.packet import Packet, decode_packet
from multifd.wire.walker import PacketWalker

_READ_BYTES = 1 << 20


class KeepChannel(RecvChannel):
    """A channel's connection and its file, in the place of a `RecvChannel`.

    Args:
        id, connection, barrier, method_of, has_ended, figures: as there.
        file: what has come before, the init packet, is in it; the caller's.
        check: called with the method's code of each packet with pages; what it raises ends the migration.
        lengths: the blocks' used_length in bytes by name, once `run` is called.
    """

    def __init__(
        self,
        id: int,
        connection: Connection,
        barrier: Barrier,
        method_of: Callable[[int], MultifdMethods],
        has_ended: Callable[[], bool],
        figures: ChannelStats,
        file: StreamFile,
        check: Callable[[int], object],
        lengths: Callable[[], Mapping[str, int]],
    ) -> None:
        super().__init__(id, connection, barrier, method_of, has_ended, figures)
        self._file, self._check, self._lengths = file, check, lengths

    def run(self, geometry: Geometry, blocks: Mapping[str, TargetBlock], idle: IdleTimer) -> None:
        """Keep packets until the connection ends; see `RecvChannel.run`."""
        walker, buffer, lengths = PacketWalker(geometry), private_map(_READ_BYTES), self._lengths()
        due: list[bool] = []  # for each packet that is not known to be complete, whether it is a SYNC
        try:
            while got := self.connection.recv_into([buffer], at_least=1):
                packets = (decode_packet(header, geometry, lengths) for header in walker.feed(buffer[:got]))
                due += map(self._look, packets)
                self._file.write(buffer[:got])
                # Up to 8.2 a SYNC may carry pages: whoever sends them waits for room, and main waits for them.
                done = len(due) - bool(walker.missing)
                for _ in range(sum(due[:done])):
                    self._barrier.arrive(self.id)
                del due[:done]
        except RemoteWireError as e:
            e.channel, e.packet = self.id, walker.packets
            raise
        if walker.pending or walker.missing:
            raise self.connection.closed_after(0, walker.missing)
        if self._has_unsynced:
            self._refuse_unsynced()
        self._file.normal_pages, self._file.zero_pages = self._figures.normal_pages, self._figures.zero_pages
        self._barrier.leave(self.id)

    def _look(self, packet: Packet) -> bool:
        """Count a packet's pages; whether it is a SYNC."""
        normal_pages, zero_pages = len(packet.normal), len(packet.zero)
        if normal_pages:
            self._check(packet.code)
        self._figures.normal_pages += normal_pages
        self._figures.zero_pages += zero_pages
        self._has_unsynced = not packet.is_sync and (self._has_unsynced or normal_pages + zero_pages > 0)
        return packet.is_sync
