"""A receiver's channel outside the interpreter: packets into their places, until one is not plainly right."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from multifd.method import NativeHook, settle
from multifd.pages import Geometry, Memory, Offsets
from multifd.pump import library
from multifd.pump.extent import Extent, Kind
from multifd.pump.library import PATIENCE_NS, Stop, address_of, close_sink, fill_block, open_sink
from multifd.wire.packet import header_bytes

_LOG_PACKETS = 16
"""What is written to files between two looks of their owner: 8 MiB of pages."""


class RecvPump:
    """One channel's.

    Thread rule: the channel's thread, which closes it.

    Args:
        descriptor: the connection's socket, blocking with a timeout; the caller's.
        geometry: the migration's.
        abort: one byte, not zero once the migration is torn down; kept.
        blocks: name, used_length in bytes, and where it lies, if it can be reached, of every block.
        staging: the channel's, as large as a packet's pages; kept, used during calls.
    """

    def __init__(
        self,
        descriptor: int,
        geometry: Geometry,
        abort: bytearray,
        blocks: Mapping[str, tuple[int, Extent | None]],
        staging: Memory,
    ) -> None:
        ffi, self._lib = library.load()
        self._ffi = ffi
        self._hook: NativeHook | None = None
        count = geometry.page_count
        self._abort, self._staging = np.frombuffer(abort, np.uint8), staging
        self._header = ffi.new("uint8_t[]", header_bytes(geometry))
        self._pages, self._iov = ffi.new("uint8_t *[]", count), ffi.new("struct iovec[]", 4 * count + 2)
        room = _LOG_PACKETS * count
        self._log_block, self._log_offset = np.empty(room, np.uint32), np.empty(room, np.int64)
        self._log_is_zero = np.empty(room, np.bool_)
        self._payload: npt.NDArray[np.uint8] = np.empty(0, np.uint8)
        self._names = list(blocks)
        self._extents = [extent for _, extent in blocks.values()]
        self._idstrs = [ffi.new("char[]", name.encode("ascii", "replace")) for name in blocks]
        self._blocks = ffi.new("pump_block[]", max(len(blocks), 1))
        for block, idstr, (used_length, extent) in zip(self._blocks, self._idstrs, blocks.values(), strict=False):
            if extent is None:
                block.kind = self._lib.PUMP_FOREIGN
                block.idstr, block.idstr_bytes = idstr, len(idstr) - 1
            else:
                fill_block(block, idstr, used_length, extent)
        for block, name in zip(self._blocks, blocks, strict=False):
            if "\0" in name or not name.isascii():  # a header cannot name it
                block.idstr_bytes = self._lib.PUMP_IDSTR_BYTES
        self._s = s = ffi.new("pump_receiver *")
        s.socket, s.sink, s.patience_ns, s.code = descriptor, -1, PATIENCE_NS, -1
        if any(extent is not None and extent.kind is Kind.CHECKED for extent in self._extents):
            s.sink = open_sink()
        s.page_size, s.page_count = geometry.page_size, count
        s.header, s.pages, s.iov = self._header, self._pages, self._iov
        s.blocks, s.block_count, s.log_room = self._blocks, len(blocks), room
        s.abort = ffi.cast("uint8_t *", address_of(self._abort))
        s.staging = ffi.cast("uint8_t *", address_of(staging.array))
        s.log_block = ffi.cast("uint32_t *", address_of(self._log_block))
        s.log_offset = ffi.cast("int64_t *", address_of(self._log_offset))
        s.log_is_zero = ffi.cast("uint8_t *", address_of(self._log_is_zero))
        self.header = memoryview(ffi.buffer(self._header))

    def aim(self, code: int, hook: NativeHook | None, payload: memoryview) -> None:
        """The method is known: packets of it need not come back from here on.

        Args:
            code: the method's, on the wire.
            hook: the method's; None if the payload is the pages themselves.
            payload: where payloads are read to, as large as they may be; kept.
        """
        ffi, s = self._ffi, self._s
        self._hook = hook
        self._payload = np.frombuffer(payload, np.uint8)
        s.code, s.capacity = code, len(payload)
        s.payload = ffi.cast("uint8_t *", address_of(self._payload))
        if hook is not None:
            s.hook, s.hook_state = ffi.cast("multifd_native_recv", hook.function), ffi.cast("void *", hook.state)
            s.scatter = ffi.cast("multifd_native_scatter", hook.scatter)

    def run(self) -> Stop:
        """Receive on. `bytes`, `packets`, `normal_pages`, `zero_pages` count this call.

        Raises:
            RamError: a block's file was closed.
        """
        s = self._s
        s.bytes = s.packets = s.normal_pages = s.zero_pages = s.log_count = 0
        try:
            with contextlib.ExitStack() as stack:
                lent: dict[int, int] = {}
                for block, extent in zip(self._blocks, self._extents, strict=False):
                    if extent is not None and extent.file is not None:
                        if id(extent.file) not in lent:
                            lent[id(extent.file)] = stack.enter_context(extent.file.use())
                        block.file = lent[id(extent.file)]
                return Stop(self._lib.pump_receive(s))
        finally:
            if self._hook is not None:
                settle(self._hook)

    @property
    def figures(self) -> Any:
        """The structure, for what `run` counted, `header_got`, `in_payload`, `payload_due`, `payload_got`, `error`
        and `hook_result`."""
        return self._s

    def written(self) -> Iterator[tuple[str, Offsets, npt.NDArray[np.bool_]]]:
        """What the last call wrote to files: block, offsets in the order they came, and which of these are zero
        pages, with which nothing was done yet."""
        count = self._s.log_count
        if not count:
            return
        numbers = self._log_block[:count]
        for number in np.unique(numbers).tolist():
            mine = numbers == number
            yield self._names[number], self._log_offset[:count][mine], self._log_is_zero[:count][mine]

    def next(self) -> None:
        """The packet in `header` was done by somebody else."""
        self._s.header_got = self._s.in_payload = 0  # pump_next, without giving the GIL away for it

    def close(self) -> None:
        """Release what it holds; twice is harmless."""
        self._extents.clear()
        close_sink(self._s)
