"""One channel of a receiver: packets in, pages into their places, up to a SYNC; then it waits for main.

Rules of this file: packets come by the pump where there is one that gets at their places, else by `_take`, which is
the reference: same pages, same errors. What is not plainly right, the pump leaves to it.

Thread rule: everything belongs to the channel's thread, but for what `Barrier` and the method's negotiation share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from multifd.engine.session import RecvSession
from multifd.engine.sync import Barrier
from multifd.errors import ChannelError, CodecError, RemoteWireError
from multifd.method import MultifdMethods
from multifd.pages import Geometry
from multifd.pump.library import Stop
from multifd.pump.receiving import RecvPump
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
        places = {name: (block.used_length, block.extent()) for name, block in blocks.items()}
        try:
            with RecvSession(self._method_of, self.id, geometry, idle, self._figures.counters) as session:
                pump = session.open_pump(self.connection.descriptor, places)
                if pump is None:
                    self._run(geometry, blocks, session)
                else:
                    self._run_pump(pump, geometry, blocks, session)
                if self._has_unsynced:
                    self._refuse_unsynced()
                self._barrier.leave(self.id)
        except (RemoteWireError, CodecError) as e:
            e.channel, e.packet = self.id, self._packets
            raise

    def _run(self, geometry: Geometry, blocks: Mapping[str, TargetBlock], session: RecvSession) -> None:
        header = memoryview(bytearray(header_bytes(geometry)))
        while got := self.connection.recv_into([header], at_least=PREFIX_BYTES):
            self._take_rest(header, got, geometry, blocks, session)

    def _take_rest(
        self, header: memoryview, got: int, geometry: Geometry, blocks: Mapping[str, TargetBlock], session: RecvSession
    ) -> None:
        """Take a packet of whose header `got` bytes are here."""
        if got < len(header):
            check_prefix(header)  # what is no packet may be shorter than one
            self.connection.recv_exactly([header[got:]])
        lengths = {name: block.used_length for name, block in blocks.items()}
        self._take(decode_packet(header, geometry, lengths), blocks, session)
        self._packets += 1

    def _take(self, packet: Packet, blocks: Mapping[str, TargetBlock], session: RecvSession) -> None:
        normal = packet.normal
        if len(normal):
            block = blocks[packet.ramblock]
            is_verbatim = session.method(packet.code).capabilities.verbatim
            views = block.lend(normal) if is_verbatim and self.connection.takes_mapped else None
            if views is not None:
                session.receive_verbatim(self.connection, views, packet.next_packet_size)
            else:
                pages = block.place(normal, session.staging)
                session.receive(self.connection, packet.code, pages, packet.next_packet_size)
                block.store(normal, session.staging)
            self._figures.normal_pages += len(normal)
            self._has_unsynced = True
        self._take_zero(packet, blocks)
        if packet.is_sync:
            self._has_unsynced = False
            self._barrier.arrive(self.id)

    def _take_zero(self, packet: Packet, blocks: Mapping[str, TargetBlock]) -> None:
        if len(packet.zero):
            blocks[packet.ramblock].clear(packet.zero)
            self._figures.zero_pages += len(packet.zero)
            self._has_unsynced = True

    # -- by the pump --------------------------------------------------------------------------------

    def _run_pump(
        self, pump: RecvPump, geometry: Geometry, blocks: Mapping[str, TargetBlock], session: RecvSession
    ) -> None:
        connection, figures = self.connection, pump.figures
        while True:
            stop = pump.run()
            connection.received(figures.bytes)
            for name, offsets, is_zero in pump.written():
                blocks[name].written(offsets, is_zero)
            self._packets += figures.packets
            self._figures.normal_pages += figures.normal_pages
            self._figures.zero_pages += figures.zero_pages
            self._has_unsynced = self._has_unsynced or figures.packets > 0
            match stop:
                case Stop.BOUND:
                    continue
                case Stop.WAIT:
                    connection.check_idle()
                    continue
                case Stop.BROKEN:
                    raise connection.receiving_failed(figures.error)
                case Stop.END:
                    if not (figures.header_got or figures.in_payload):
                        return
                    raise self._cut_off(pump)
                case Stop.FAILED:
                    raise session.native_error(figures.hook_result)
                case Stop.HEADER:
                    self._take_rest(pump.header, figures.header_got, geometry, blocks, session)
                case _:
                    lengths = {name: block.used_length for name, block in blocks.items()}
                    self._finish(stop, decode_packet(pump.header, geometry, lengths), blocks, session)
            pump.next()

    def _finish(self, stop: Stop, packet: Packet, blocks: Mapping[str, TargetBlock], session: RecvSession) -> None:
        """Do what the pump could not do of a packet whose payload is here."""
        block = blocks[packet.ramblock]
        if stop is Stop.DECLINED:
            session.decode(block.place(packet.normal, session.staging), packet.next_packet_size)
        if stop is not Stop.CLEAR:
            block.store(packet.normal, session.staging)
        self._figures.normal_pages += len(packet.normal)
        self._has_unsynced = True
        self._take_zero(packet, blocks)
        self._packets += 1

    def _cut_off(self, pump: RecvPump) -> ChannelError:
        """The peer has closed in the middle of a packet."""
        figures = pump.figures
        if figures.in_payload:
            return self.connection.closed_after(figures.payload_got, figures.payload_due)
        wanted = PREFIX_BYTES if figures.header_got < PREFIX_BYTES else len(pump.header)
        return self.connection.closed_after(figures.header_got, wanted)

    def _refuse_unsynced(self) -> None:
        what = "pages after the last sync point: they may be incomplete"
        if not self._has_ended():
            raise ChannelError(f"{self.connection.peer} closed the connection: {what}")
        raise RemoteWireError(what)
