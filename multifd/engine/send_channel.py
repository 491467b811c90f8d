"""One channel of a sender: it pulls packets from the round, and writes them and the SYNC that ends it.

Thread rule: everything belongs to the channel's thread, but for what `Rounds` and `SourceMain` share.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

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
            zero_mask, iov, payload = self._load(block, offsets)
        except RamError:
            self._fate.source_failed()
            raise
        zero, normal = (NO_OFFSETS, offsets) if zero_mask is None else (offsets[zero_mask], offsets[~zero_mask])
        zero_count = len(zero)
        if zero_count and not self._dialect.zero_pages_in_packets:
            self._main.write(encode_zero_pages(block.idstr, zero))
            zero = NO_OFFSETS
        if len(normal) or len(zero):
            number = next(self._packet_nums)
            header = self._encoder.data(self._session.code, number, block.idstr, normal, zero, payload)
            try:
                self._connection.send([header, *iov])
            except RamError:  # the kernel reads the pages where they lie
                self._fate.source_failed()
                raise
        self._figures.normal_pages += len(normal)
        self._figures.zero_pages += zero_count

    def _load(self, block: SourceBlock, offsets: Offsets) -> tuple[npt.NDArray[np.bool_] | None, Sequence[Buffer], int]:
        """Which pages of a portion are zero (None for none), and the others' payload with its bytes."""
        session = self._session
        if session.is_verbatim and (mapped := block.map(offsets, session.staging)) is not None:
            return mapped.zero_mask, mapped.views, sum(map(len, mapped.views))
        pages = block.load(offsets, session.staging)
        if pages is None:
            return np.ones(len(offsets), np.bool_), (), 0
        mask = pages.zero_mask()
        if mask is not None:
            pages = pages.select(~mask)
        return mask, *(session.prepare(pages) if len(pages) else ((), 0))
