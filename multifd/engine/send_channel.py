"""One channel of a sender: it pulls packets from the round, and writes them and the SYNC that ends it.

Rules of this file: packets go by the pump where there is one that gets at their pages, else by `_send`, which is the
reference: same bytes, same errors. Whatever the pump gives back goes by `_send`, too.

Thread rule: everything belongs to the channel's thread, but for what `Rounds` and `SourceMain` share.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from multifd.engine.fate import Fate
from multifd.engine.session import SendSession
from multifd.engine.source_main import SourceMain
from multifd.engine.sync import Rounds
from multifd.errors import RamError
from multifd.pages import Buffer, Geometry, Offsets
from multifd.pump.extent import Extent
from multifd.pump.library import Stop
from multifd.pump.sending import MOST_PACKETS, SendPump
from multifd.ram.block import SourceBlock
from multifd.stats import ChannelStats
from multifd.transport.connection import Connection
from multifd.wire.dialect import Dialect
from multifd.wire.packet import NO_OFFSETS, PacketEncoder
from multifd.wire.writer import encode_zero_pages

_SHARE_NS = 5_000_000
"""What a batch of packets should take: a channel that has just taken one ends a round so much later than the others."""


class SendChannel:
    """A channel's connection with the method's session on it.

    Args:
        connection: the caller's, who closes it.
        session: the method's, not entered yet.
        main: where ZERO words go, in dialects that have no zero pages in packets.
        rounds: where packets come from.
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
        geometry: Geometry,
        dialect: Dialect,
        figures: ChannelStats,
        fate: Fate,
    ) -> None:
        self._connection, self._session, self._main, self._rounds = connection, session, main, rounds
        self._dialect, self._figures, self._fate = dialect, figures, fate
        self._encoder, self._page_count = PacketEncoder(geometry), geometry.page_count
        self._pump: SendPump | None = None
        self._appetite = 1  # packets: what one call of the pump sends in its time

    def run(self) -> None:
        """Send round after round until there is none.

        Raises:
            MultifdError: what went wrong; the rounds are cut short then.
        """
        try:
            self._session.follow(self._connection.link_use)
            with self._session:
                self._pump = self._session.open_pump(self._connection.descriptor, self._dialect.zero_pages_in_packets)
                self._rounds.synced()
                for number in itertools.count(1):
                    if not self._rounds.wait_next(number):
                        return
                    packet_num, portion = self._rounds.take(self._appetite)
                    while portion is not None:
                        self._send_portion(packet_num, *portion)
                        packet_num, portion = self._rounds.take(self._appetite)
                    self._connection.send([self._encoder.sync(packet_num)])
                    self._rounds.synced()
        except BaseException:
            # The other channels must not finish a round that lacks this one's pages.
            self._rounds.cut()
            raise

    def _send_portion(self, packet_num: int, block: SourceBlock, offsets: Offsets) -> None:
        pump, extent = self._pump, None
        if pump is not None:
            try:
                extent = block.extent_of(offsets, is_verbatim=self._session.is_verbatim)
            except RamError:
                self._fate.source_failed()
                raise
        if pump is not None and extent is not None:
            self._pump_out(pump, packet_num, block, offsets, extent)
            return
        for i in range(-(-len(offsets) // self._page_count)):
            self._send(packet_num + i, block, self._packet(offsets, i))

    def _packet(self, offsets: Offsets, number: int) -> Offsets:
        return offsets[number * self._page_count : (number + 1) * self._page_count]

    def _pump_out(self, pump: SendPump, packet_num: int, block: SourceBlock, offsets: Offsets, extent: Extent) -> None:
        connection, figures = self._connection, pump.figures
        start = time.monotonic_ns()
        pump.load(packet_num, block.idstr, extent, offsets)
        stop = Stop.BOUND
        while stop is not Stop.DONE:
            stop = pump.run(connection.grant())
            connection.sent(figures.bytes)
            self._figures.normal_pages += figures.normal_pages
            self._figures.zero_pages += figures.zero_pages
            if figures.zero_pages and not self._dialect.zero_pages_in_packets:
                self._main.write(encode_zero_pages(block.idstr, pump.zero_offsets()))
            match stop:
                case Stop.WAIT:
                    connection.check_idle()
                case Stop.BROKEN:
                    error = connection.sending_failed(figures.error)
                    if isinstance(error, RamError):
                        self._fate.source_failed()
                    raise error
                case Stop.DECLINED:
                    self._send(packet_num + figures.packet, block, self._packet(offsets, figures.packet))
                    pump.skip()
                case Stop.FAILED:
                    raise self._session.native_error(figures.hook_result)
        self._adapt(time.monotonic_ns() - start)

    def _adapt(self, took_ns: int) -> None:
        """Few packets at a time where they take long, so that channels end a round together."""
        if took_ns > _SHARE_NS:
            self._appetite = max(self._appetite // 2, 1)
        elif took_ns < _SHARE_NS // 2:
            self._appetite = min(self._appetite * 2, MOST_PACKETS)

    def _send(self, packet_num: int, block: SourceBlock, offsets: Offsets) -> None:
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
            header = self._encoder.data(self._session.code, packet_num, block.idstr, normal, zero, payload)
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
        if session.is_verbatim and self._connection.takes_mapped:
            mapped = block.map(offsets, session.staging)
            if mapped is not None:
                return mapped.zero_mask, mapped.views, sum(map(len, mapped.views))
        pages = block.load(offsets, session.staging)
        if pages is None:
            return np.ones(len(offsets), np.bool_), (), 0
        mask = pages.zero_mask()
        if mask is not None:
            pages = pages.select(~mask)
        return mask, *(session.prepare(pages) if len(pages) else ((), 0))
