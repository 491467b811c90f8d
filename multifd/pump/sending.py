"""A sender's channel outside the interpreter: a batch of packets, one call after the other until it is done."""

from __future__ import annotations

from typing import Any

import numpy as np

from multifd.method import NativeHook, settle
from multifd.pages import PACKET_BYTES, Geometry, Memory, Offsets
from multifd.pump import library
from multifd.pump.extent import Extent, Kind
from multifd.pump.library import PATIENCE_NS, Stop, address_of, close_sink, fill_block, open_sink
from multifd.wire.packet import header_bytes

MOST_PACKETS = 8 * 1024 * 1024 // PACKET_BYTES
"""In a batch: 8 MiB of pages."""
_NO_OFFSETS: Offsets = np.empty(0, np.int64)


class SendPump:
    """One channel's.

    Thread rule: the channel's thread, which closes it.

    Args:
        descriptor: the connection's socket, blocking with a timeout; the caller's.
        geometry: the migration's.
        abort: one byte, not zero once the migration is torn down; kept.
        code: the method's, on the wire.
        zero_pages_in_packets: whether the destination takes zero pages in packets.
        capacity: the most bytes of a payload.
        staging: the channel's, as large as a packet's pages; kept, used during calls.
        hook: the method's; None if the payload is the pages themselves.
    """

    def __init__(
        self,
        descriptor: int,
        geometry: Geometry,
        abort: bytearray,
        code: int,
        *,
        zero_pages_in_packets: bool,
        capacity: int,
        staging: Memory,
        hook: NativeHook | None,
    ) -> None:
        ffi, self._lib = library.load()
        self._ffi, self._hook = ffi, hook
        count = geometry.page_count
        self._abort, self._staging = np.frombuffer(abort, np.uint8), staging
        self._header = ffi.new("uint8_t[]", header_bytes(geometry))
        uncleared = ffi.new_allocator(should_clear_after_alloc=False)  # what is not written is not touched
        self._out = uncleared("uint8_t[]", capacity if hook else 1)
        self._pages, self._iov = ffi.new("uint8_t const *[]", count), ffi.new("struct iovec[]", 2 * count + 2)
        self._counts, self._is_zero = np.empty(MOST_PACKETS, np.uint32), np.empty(MOST_PACKETS * count, np.uint8)
        self._offsets = _NO_OFFSETS
        self._told = 0
        self._blocks: dict[tuple[str, Extent], tuple[Any, Any]] = {}
        self._extent: Extent | None = None
        self._s = s = ffi.new("pump_sender *")
        s.socket, s.sink, s.code, s.capacity, s.patience_ns = descriptor, -1, code, capacity, PATIENCE_NS
        s.page_size, s.page_count, s.zero_in_packets = geometry.page_size, count, zero_pages_in_packets
        s.header, s.out, s.pages, s.iov = self._header, self._out, self._pages, self._iov
        s.abort = ffi.cast("uint8_t *", address_of(self._abort))
        s.staging = ffi.cast("uint8_t *", address_of(staging.array))
        s.counts = ffi.cast("uint32_t *", address_of(self._counts))
        s.is_zero = ffi.cast("uint8_t *", address_of(self._is_zero))
        if hook is not None:
            s.hook, s.hook_state = ffi.cast("multifd_native_send", hook.function), ffi.cast("void *", hook.state)
            s.gather = ffi.cast("multifd_native_gather", hook.gather)

    def load(self, packet_num: int, idstr: str, extent: Extent, offsets: Offsets) -> None:
        """Take a batch; the one before must be done.

        Args:
            packet_num: the first packet's; the others' follow.
            idstr: the name of the block that all pages are of, ASCII, at most 255 bytes.
            extent: where it lies.
            offsets: int64, of 1 to `MOST_PACKETS` packets: each has `page_count` pages, the last what is left.
        """
        ffi, s = self._ffi, self._s
        if (idstr, extent) not in self._blocks:
            block, name = ffi.new("pump_block *"), ffi.new("char[]", idstr.encode("ascii"))
            fill_block(block, name, 0, extent)
            self._blocks[idstr, extent] = block, name
            if extent.kind is Kind.CHECKED and s.sink < 0:
                s.sink = open_sink()
        self._extent = extent
        self._offsets, pages, full = np.ascontiguousarray(offsets, np.int64), len(offsets), s.page_count
        packets = -(-pages // full)
        self._counts[:packets] = full
        self._counts[packets - 1] = pages - (packets - 1) * full
        self._told = 0
        s.block, s.offsets = self._blocks[idstr, extent][0], ffi.cast("int64_t *", address_of(self._offsets))
        s.packets, s.packet_num, s.packet, s.first_page = packets, packet_num, 0, 0

    def run(self, budget: int) -> Stop:
        """Send the batch on. `bytes`, `normal_pages`, `zero_pages` count this call.

        Args:
            budget: bytes that may be sent.

        Raises:
            RamError: the block's file was closed.
        """
        s, extent = self._s, self._extent
        s.budget = budget
        s.bytes = s.normal_pages = s.zero_pages = 0
        try:
            if extent is None or extent.file is None:
                return Stop(self._lib.pump_send(s))
            with extent.file.use() as s.block.file:
                return Stop(self._lib.pump_send(s))
        finally:
            if self._hook is not None:
                settle(self._hook)

    @property
    def figures(self) -> Any:
        """The structure, for `bytes`, `normal_pages` and `zero_pages` of the last call, `error`, `hook_result`, and
        `packet`, the place in the batch of the packet that is next."""
        return self._s

    def skip(self) -> None:
        """The packet that is next was sent by somebody else."""
        self._lib.pump_skip(self._s)
        self._told = self._s.first_page

    def zero_offsets(self) -> Offsets:
        """Offsets of the zero pages in the packets that were done since the last time."""
        first, self._told = self._told, self._s.first_page
        chosen: Offsets = self._offsets[first : self._told][self._is_zero[first : self._told] != 0]
        return chosen

    def close(self) -> None:
        """Release what it holds; twice is harmless."""
        self._extent = None
        self._blocks.clear()
        close_sink(self._s)
