"""A relay's channel outside the interpreter: packets whose payload is the pages, from one socket to another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from multifd.pages import Geometry
from multifd.pump import library
from multifd.pump.library import PATIENCE_NS, Stop, address_of
from multifd.wire.packet import header_bytes


@dataclass(slots=True)
class Window:
    """What of a buffer is what: [sent:due] may go on, [due:at] was taken out, [at:end] is still to be looked at."""

    sent: int = 0
    due: int = 0
    at: int = 0
    end: int = 0


class SplicePump:
    """One channel's.

    Thread rule: the channel's thread.

    Args:
        source, destination: the connections' sockets, blocking with a timeout; the caller's.
        geometry: the migration's.
        abort: one byte, not zero once the migration is torn down; kept.
        buffer: what is read ahead; kept, used during calls.
        code_in, code_out: the methods', on the wire; both have the pages as their payload.
    """

    def __init__(
        self,
        source: int,
        destination: int,
        geometry: Geometry,
        abort: bytearray,
        buffer: memoryview,
        code_in: int,
        code_out: int,
    ) -> None:
        ffi, self._lib = library.load()
        self._abort, self._buffer = np.frombuffer(abort, np.uint8), np.frombuffer(buffer, np.uint8)
        self._s = s = ffi.new("pump_splice *")
        s.source, s.destination, s.code_in, s.code_out = source, destination, code_in, code_out
        s.page_size, s.page_count, s.header_bytes = geometry.page_size, geometry.page_count, header_bytes(geometry)
        s.abort = ffi.cast("uint8_t *", address_of(self._abort))
        s.buffer, s.capacity, s.patience_ns = ffi.cast("uint8_t *", address_of(self._buffer)), len(buffer), PATIENCE_NS

    def run(self, window: Window) -> Stop:
        """Pass on; the figures count this call.

        Args:
            window: of the buffer; brought up to date.
        """
        s = self._s
        s.sent, s.due, s.at, s.end = window.sent, window.due, window.at, window.end
        s.packets = s.normal_pages = s.zero_pages = s.bytes_in = s.bytes_out = 0
        stop = Stop(self._lib.pump_pass_on(s))
        window.sent, window.due, window.at, window.end = s.sent, s.due, s.at, s.end
        return stop

    @property
    def figures(self) -> Any:
        """The structure, for what `run` counted, `left`, the payload's bytes that are still to come, `error` and
        `has_failed_out`."""
        return self._s
