"""``zlib:level=auto``: a channel whose level a `Policy` chooses while it goes.

To a decoder the bytes of a channel are one deflate stream (RFC 1951) behind zlib's two bytes of head, and blocks do not
say which compressor made them. So a level is a compressor of its own, of zlib or of ISA-L, that knows nothing of what
was before; each packet ends with a sync flush, on a byte, where the next one may begin. Pages as they are go as stored
blocks. Measured on QEMU 7.2.22 and 10.0.2: what the forgotten 32 KiB cost is 0.3 % if every packet changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from multifd.method import SendParams
from multifd.methods._adaptive import Adaptive, Wire
from multifd.methods.adapt import Rung
from multifd.pages import Buffer, Pages

ISAL_RUNGS = (Rung(1, 2.9e-9, 0.605), Rung(3, 3.9e-9, 0.615))
ZLIB_RUNGS = (Rung(1, 16e-9, 0.614), Rung(4, 22e-9, 0.641), Rung(5, 40e-9, 0.649), Rung(6, 66e-9, 0.653))
"""isal 1.9, zlib 1.2.13 on 32 MiB of programs and documents, two cores of an EPYC, seconds of a processor. The levels
between took as long as one beside them; 7 to 9 take up to four times as long as 6 and save 0.2 % more."""
HEAD = b"\x78\x01"
"""RFC 1950: deflate, a window of 32 KiB; what it says of the level no decoder reads."""
SYNC = b"\x00\x00\x00\xff\xff"
"""RFC 1951: a stored block of no bytes, not the last: what a sync flush ends with."""
MOST_STORED = 65535
RAW_DEFLATE = -15
"""Window bits; negative: without head and end."""


def wire(engine: str) -> Wire:
    """What a channel may choose from.

    Args:
        engine: isal, zlib, or both: "isal and zlib".
    """
    isal, by_zlib = "isal" in engine, "zlib" in engine
    rungs = (ISAL_RUNGS if isal else ()) + tuple(r for r in ZLIB_RUNGS if by_zlib and not (isal and r.level == 1))
    return Wire("zlib", (Rung(None, 0.10e-9, 0.0), *rungs), 1, stored, b"")


def stored(runs: Sequence[memoryview]) -> list[Buffer]:
    """Stored blocks of the bytes as they are; the views go into it."""
    payload: list[Buffer] = []
    for run in runs:
        for at in range(0, len(run), MOST_STORED):
            piece = run[at : at + MOST_STORED]
            nbytes = len(piece)
            payload += (b"\0" + nbytes.to_bytes(2, "little") + (nbytes ^ 0xFFFF).to_bytes(2, "little"), piece)
    return [*payload, SYNC]


class Encoder:
    """A level's part of the stream.

    Args:
        module_of: gives the module that has a level.
        packet_bytes: the most input of one `compress`.
    """

    def __init__(self, module_of: Callable[[int], Any], packet_bytes: int) -> None:
        self._module_of = module_of
        self._copy = memoryview(bytearray(packet_bytes))

    def open(self, level: int) -> None:
        """Begin a level; the one before is forgotten."""
        module = self._module_of(level)
        self._compressor = module.compressobj(level, module.DEFLATED, RAW_DEFLATE)
        self._sync_flush = module.Z_SYNC_FLUSH

    def compress(self, runs: Sequence[memoryview]) -> list[Buffer]:
        """The pages' bytes and a sync flush; from a private copy, since ISA-L looks back into its input."""
        end = 0
        for run in runs:
            self._copy[end : end + len(run)] = run
            end += len(run)
        pieces = self._compressor.compress(self._copy[:end]), self._compressor.flush(self._sync_flush)
        return [piece for piece in pieces if piece]

    def adaptive_hook(self, page_size: int, settle: object) -> None:
        """There is none."""


class Stream:
    """One channel's.

    Args:
        module_of: gives the module that has a level.
        engine: as `wire` takes it.
        packet_bytes: the most bytes of a packet's pages.
        p: the channel's.
    """

    def __init__(self, module_of: Callable[[int], Any], engine: str, packet_bytes: int, p: SendParams) -> None:
        self._adaptive = Adaptive(Encoder(module_of, packet_bytes), p, wire(engine))
        self._head: list[Buffer] = [HEAD]

    def compress(self, pages: Pages) -> list[Buffer]:
        """A packet's payload; views of the pages may be in it."""
        head, self._head = self._head, []
        return head + self._adaptive.compress(pages.runs())
