"""A channel of a relay: the connection to the source, and the one to the destination that goes with it.

Rules of this file: one thread runs it, and has passed a packet on before it reads the next, so that a slow destination
holds the source back.
"""

from __future__ import annotations

from dataclasses import replace

from multifd.engine.passing import Passing
from multifd.engine.relay_main import RelayMain
from multifd.engine.relay_way import RelayWay
from multifd.engine.transcoder import ChannelFigures, Transcoder
from multifd.errors import ChannelError
from multifd.transport.connection import Connection
from multifd.wire.packet import InitPacket

_POLL_S = 0.05


class RelayChannel:
    """One channel.

    Args:
        source: its connection, the init packet already read; the caller closes it, and `destination` once there is one.
        init: what it announced.
    """

    def __init__(self, source: Connection, init: InitPacket) -> None:
        self.source, self.init = source, init
        self.destination: Connection | None = None
        self.figures = ChannelFigures()

    def run(self, main: RelayMain, way: RelayWay) -> None:
        """Pass everything on, up to the channel's end.

        Raises:
            MultifdError: a connection broke, a packet is not one, or a method fails.
            Aborted: the migration ended meanwhile.
        """
        main.is_out.wait()  # the end of everything sets it, too
        way.idle.check()
        self.destination = destination = way.connect(f"channel {self.init.id}")
        destination.send([self._announced(way).encode()])
        main.has_geometry.wait()  # the end of everything sets it, too
        way.idle.check()
        try:
            self._passing(main, way).run(self.source, destination)
        except ChannelError:
            # 9.1 and 9.2 end with a SYNC that no destination waits for: it may come after its end.
            is_behind_all = not main.is_understood or self.figures.syncs >= main.sync_points
            if not (main.stream_ended.is_set() and is_behind_all and destination.has_hung_up()):
                raise
        if self.source.may_be_cut:
            self._check_cut(main, way)
        destination.finish()

    def _announced(self, way: RelayWay) -> InitPacket:
        announced = replace(self.init, channels=self.init.channels or way.config.channels or 0)
        if way.out is None:
            return announced
        return replace(announced, wire_version=way.out.wire_version, method=way.out.name)

    def _passing(self, main: RelayMain, way: RelayWay) -> Passing | Transcoder:
        if way.out is None:
            return Passing(self.init.id, main.geometry, way.check_method, self.figures)
        return Transcoder(self.init.id, main.geometry, way.negotiation.method_of, way.out, way.idle, self.figures)

    def _check_cut(self, main: RelayMain, way: RelayWay) -> None:
        """It ended, and somebody on the way may have cut it: main says whether all of it is here."""
        while not main.stream_ended.wait(_POLL_S):
            way.idle.check()
        if main.is_understood and self.figures.syncs < main.sync_points:
            raise ChannelError(f"{self.source.peer} closed the connection before sync point {self.figures.syncs + 1}")
