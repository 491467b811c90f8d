"""One channel of a sender: it pulls packets from the round, and writes them and the SYNC that ends it.

Thread rule: everything belongs to the channel's thread, but for what `Rounds` and `SourceMain` share.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from multifd.engine.fate import Fate
from multifd.engine.session import SendSession
from multifd.engine.source_main import SourceMain
from multifd.engine.sync import Rounds
from multifd.errors import RamError
from multifd.pages import Buffer, Geometry, Offsets
from multifd.ram.block import SourceBlock
from multifd.stats import ChannelStats
from multifd.transport.connection import Connection
from multifd.wire.dialect import Dialect
from multifd.wire.packet import NO_OFFSETS, PacketEncoder
from multifd.wire.writer import encode_zero_pages


class SendChannel:
    """A channel's connection with the method's session on it.

    Args:
        connection: the caller's, who closes it.
        session: the method's, not entered yet.
        main: where ZERO words go, in dialects that have no zero pages in packets.
        rounds: where packets come from.
        packet_nums: the migration's, shared by all channels.
        geometry: the migration's.
        dialect: what the destination understands.
        figures: where to count.
        fate: told if the source's memory cannot be read.
    """

    def __init__(
        self,
        connection: Connection,
        session: SendSession,
        main: SourceMain,
        rounds: Rounds,
        packet_nums: Iterator[int],
        geometry: Geometry,
        dialect: Dialect,
        figures: ChannelStats,
        fate: Fate,
    ) -> None:
        self._connection, self._session, self._main, self._rounds = connection, session, main, rounds
        self._packet_nums, self._dialect, self._figures, self._fate = packet_nums, dialect, figures, fate
        self._encoder = PacketEncoder(geometry)

    def run(self) -> None:
        """Send round after round until there is none.

        Raises:
            MultifdError: what went wrong; the rounds are cut short then.
        """
        try:
            with self._session:
                for number in itertools.count(1):
                    if not self._rounds.wait_next(number):
                        return
                    while (packet := self._rounds.take()) is not None:
                        self._send(*packet)
                    self._connection.send([self._encoder.sync(next(self._packet_nums))])
                    self._rounds.synced()
        except BaseException:
            # The other channels must not finish a round that lacks this one's pages.
            self._rounds.cut()
            raise

    def _send(self, block: SourceBlock, offsets: Offsets) -> None:
        try:
            pages = block.load(offsets, self._session.staging)
        except RamError:
            self._fate.source_failed()
            raise
        normal, zero = NO_OFFSETS, offsets
        iov: Sequence[Buffer] = ()
        payload = 0
        if pages is not None:
            mask = pages.zero_mask()
            if mask is None:
                zero, normal = NO_OFFSETS, offsets
            else:
                zero, normal = offsets[mask], offsets[~mask]
                pages = pages.select(~mask)
            if len(normal):
                iov, payload = self._session.prepare(pages)
        if len(zero):
            self._figures.zero_pages += len(zero)
            if not self._dialect.zero_pages_in_packets:
                self._main.write(encode_zero_pages(block.idstr, zero))
                zero = NO_OFFSETS
        if len(normal) or len(zero):
            header = self._encoder.data(self._session.code, next(self._packet_nums), block.idstr, normal, zero, payload)
            try:
                self._connection.send([header, *iov])
            except RamError:  # the kernel reads the pages where they lie
                self._fate.source_failed()
                raise
        self._figures.normal_pages += len(normal)
