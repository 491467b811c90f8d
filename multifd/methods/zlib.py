"""One deflate stream for each channel: flag value 0x02 (MULTIFD_FLAG_ZLIB), migration/multifd-zlib.c.

QEMU 7.2 to 10.0: zlib wrapper (RFC 1950), window 15, memLevel 8, sync-flushed once for each packet,
never finished; a destination needs the whole history of the channel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from multifd.method import (
    Availability,
    Capabilities,
    CodecError,
    MethodOptions,
    MultifdMethods,
    RecvParams,
    SendParams,
    option,
)
from multifd.pages import Buffer, Pages

_ISAL_LEVELS = {1: 1, 2: 2, 3: 3}
"""Level 1 to 3 map to ISA-L's; it has no counterpart of 0 and 4 to 9."""


@dataclass(frozen=True)
class ZlibOptions(MethodOptions):
    """Options of zlib."""

    level: int | Literal["auto"] = option(
        1,
        "0 is stored, 1 is fastest, 9 is smallest (multifd-zlib-level); "
        "auto: each channel follows the link, the processors and its pages",
        low=0,
        high=9,
    )
    engine: str = option(
        "auto",
        "auto: ISA-L for levels 1 to 3, else zlib; both give and take the same format",
        choices=("auto", "isal", "zlib"),
    )


class ZlibMethod(MultifdMethods):
    """zlib, by ISA-L where that has the level."""

    name = "zlib"
    api = 1
    wire_code: ClassVar[int | None] = 0x02
    # Not deterministic: ISA-L was seen, once, to give other bytes for equal pages after equal history (isal 1.9.1,
    # tests/test_methods.py::test_channels_share_no_history); those decode to the same pages.
    capabilities = Capabilities(streaming=True)
    Options = ZlibOptions
    options: ZlibOptions

    @classmethod
    def availability(cls, options: MethodOptions) -> Availability:
        """zlib is Python's own; ISA-L may be missing or lack the level."""
        assert isinstance(options, ZlibOptions)
        has_level = options.level == "auto" or options.level in _ISAL_LEVELS
        if options.engine == "zlib" or (options.engine == "auto" and not has_level):
            return Availability(True, "zlib", "" if options.engine == "zlib" else "ISA-L has levels 1 to 3")
        if not has_level:
            return Availability(False, "", f"engine isal has levels 1 to 3, not {options.level}")
        try:
            import isal.isal_zlib  # noqa: F401
        except ImportError as e:
            return Availability(options.engine == "auto", "zlib", f"ISA-L cannot be imported: {e}")
        both = options.level == "auto" and options.engine == "auto"
        return Availability(True, "isal and zlib" if both else "isal")

    def _module(self, level: int = 1) -> Any:
        """Python's or ISA-L's, whichever has the level."""
        if "isal" in self.availability(self.options).engine and level in _ISAL_LEVELS:
            from isal import isal_zlib

            return isal_zlib
        import zlib

        return zlib

    def send_setup(self, p: SendParams) -> None:
        """One compressor for the channel's whole stream, or for as long as its level rests."""
        level = self.options.level
        if level == "auto":
            from multifd.methods._adaptive_zlib import Stream

            engine, packet_bytes = self.availability(self.options).engine, p.geometry.page_size * p.geometry.page_count
            p.state = Stream(self._module, engine, packet_bytes, p)
        else:
            p.state = _FixedStream(self._module(level), level)

    def send_prepare(self, p: SendParams) -> None:
        """All pages, then a sync flush."""
        p.iov.extend(p.state.compress(p.pages))

    def recv_setup(self, p: RecvParams) -> None:
        """One decompressor for the channel's whole stream."""
        p.state = self._module().decompressobj()

    def recv(self, p: RecvParams) -> None:
        """Inflate to exactly the pages' bytes; the output is bounded while it grows."""
        nbytes = p.pages.nbytes
        try:
            data = p.state.decompress(p.payload, nbytes + 1)
        except Exception as e:  # zlib.error and isal's IsalError share no base
            raise CodecError(f"zlib payload of {len(p.payload)} bytes: {e}") from e
        if len(data) != nbytes or p.state.eof:
            got = "the end of the stream" if p.state.eof else f"{len(data)} bytes or more"
            raise CodecError(f"zlib payload gives {got}, expected {nbytes} bytes and no end")
        p.pages.scatter(data)


class _FixedStream:
    """A channel's, by one level."""

    def __init__(self, module: Any, level: int) -> None:
        self._compressor, self._sync_flush = module.compressobj(level), module.Z_SYNC_FLUSH

    def compress(self, pages: Pages) -> list[Buffer]:
        """A packet's payload; from a private copy, since ISA-L looks back into its input."""
        pieces = self._compressor.compress(pages.gather()), self._compressor.flush(self._sync_flush)
        return [piece for piece in pieces if piece]
