"""One channel of a receiver: packets in, pages into their places, up to a SYNC; then it waits for main.

Thread rule: everything belongs to the channel's thread, but for what `Barrier` and the method's negotiation share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from multifd.engine.session import RecvSession
from multifd.engine.sync import Barrier
from multifd.errors import ChannelError, CodecError, RemoteWireError
from multifd.method import MultifdMethods
from multifd.pages import Geometry
from multifd.ram.block import TargetBlock
from multifd.stats import ChannelStats
from multifd.transport.connection import Connection
from multifd.transport.idle import IdleTimer
from multifd.wire.packet import PREFIX_BYTES, Packet, check_prefix, decode_packet, header_bytes


class RecvChannel:
    """A channel's connection.

    Args:
        id: the channel's.
        connection: the caller's, who closes it; its init packet is read.
        barrier: where it waits for main.
        method_of: gives the method of a packet's code, or raises.
        has_ended: whether main has ended.
        figures: where to count.
    """

    def __init__(
        self,
        id: int,
        connection: Connection,
        barrier: Barrier,
        method_of: Callable[[int], MultifdMethods],
        has_ended: Callable[[], bool],
        figures: ChannelStats,
    ) -> None:
        self.id, self.connection = id, connection
        self._barrier, self._method_of, self._has_ended, self._figures = barrier, method_of, has_ended, figures
        self._packets = 0
        self._has_unsynced = False

    def run(self, geometry: Geometry, blocks: Mapping[str, TargetBlock], idle: IdleTimer) -> None:
        """Receive packets until the connection ends.

        Args:
            geometry: the migration's.
            blocks: where pages go, by name.
            idle: the migration's.

        Raises:
            RemoteWireError, PeerMismatch, MethodNotFound: a packet that cannot be, or of another method.
            CodecError: a payload that does not decode.
            ChannelError: the connection broke, or ended where pages would be lost.
            RamError: the pages cannot be written.
        """
        header = memoryview(bytearray(header_bytes(geometry)))
        lengths = {name: block.used_length for name, block in blocks.items()}
        try:
            with RecvSession(self._method_of, self.id, geometry, idle, self._figures.counters) as session:
                while got := self.connection.recv_into([header], at_least=PREFIX_BYTES):
                    if got < len(header):
                        check_prefix(header)  # what is no packet may be shorter than one
                        self.connection.recv_exactly([header[got:]])
                    self._take(decode_packet(header, geometry, lengths), blocks, session)
                    self._packets += 1
                if self._has_unsynced:
                    self._refuse_unsynced()
                self._barrier.leave(self.id)
        except (RemoteWireError, CodecError) as e:
            e.channel, e.packet = self.id, self._packets
            raise

    def _take(self, packet: Packet, blocks: Mapping[str, TargetBlock], session: RecvSession) -> None:
        normal, zero = packet.normal, packet.zero
        if len(normal):
            block = blocks[packet.ramblock]
            is_verbatim = session.method(packet.code).capabilities.verbatim
            if is_verbatim and (views := block.lend(normal)) is not None:
                session.receive_verbatim(self.connection, views, packet.next_packet_size)
            else:
                pages = block.place(normal, session.staging)
                session.receive(self.connection, packet.code, pages, packet.next_packet_size)
                block.store(normal, session.staging)
            self._figures.normal_pages += len(normal)
            self._has_unsynced = True
        if len(zero):
            blocks[packet.ramblock].clear(zero)
            self._figures.zero_pages += len(zero)
            self._has_unsynced = True
        if packet.is_sync:
            self._has_unsynced = False
            self._barrier.arrive(self.id)

    def _refuse_unsynced(self) -> None:
        what = "pages after the last sync point: they may be incomplete"
        if not self._has_ended():
            raise ChannelError(f"{self.connection.peer} closed the connection: {what}")
        raise RemoteWireError(what)
