"""One endless zstd frame for each channel: flag value 0x04 (MULTIFD_FLAG_ZSTD), migration/multifd-zstd.c.

QEMU 7.2 to 10.0: streaming, one block flush for each packet, the frame never ended. A destination
also takes complete frames in a packet, and so do we.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from multifd.method import (
    Availability,
    Capabilities,
    MethodOptions,
    MultifdMethods,
    NativeHook,
    RecvParams,
    SendParams,
    option,
)

WINDOW_LOG = 25
"""32 MiB: the most history a decoder here keeps; levels 20 and up would use 128 MiB and are held to it."""


@dataclass(frozen=True)
class ZstdOptions(MethodOptions):
    """Options of zstd."""

    level: int | Literal["auto"] = option(
        1,
        "-7 is fastest, 22 is smallest, 0 is zstd's default (multifd-zstd-level); "
        "auto: each channel follows the link, the processors and its pages",
        low=-7,
        high=22,
    )
    engine: str = option(
        "auto",
        "libzstd: into preallocated buffers, through the zstandard package's cffi module; "
        "zstandard: its public API; auto: libzstd if that is there",
        choices=("auto", "libzstd", "zstandard"),
    )


class ZstdMethod(MultifdMethods):
    """zstd, straight into preallocated buffers where libzstd can be reached."""

    name = "zstd"
    api = 1
    wire_code: ClassVar[int | None] = 0x04
    capabilities = Capabilities(streaming=True, deterministic=True)
    Options = ZstdOptions
    options: ZstdOptions

    def __init__(self, options: MethodOptions | None = None) -> None:
        super().__init__(options)
        if self.options.level == "auto":
            self.capabilities = replace(self.capabilities, deterministic=False)
            importlib.import_module("multifd.methods._adaptive_zstd")  # now, not while a migration waits for it

    @classmethod
    def availability(cls, options: MethodOptions) -> Availability:
        """Which way to libzstd there is."""
        assert isinstance(options, ZstdOptions)
        from multifd.methods import _libzstd

        reason = "" if options.engine == "zstandard" else _libzstd.unavailable_reason()
        if options.engine == "zstandard" or reason:
            return Availability(options.engine != "libzstd", "zstandard", reason)
        return Availability(True, "libzstd")

    def send_setup(self, p: SendParams) -> None:
        """One frame for the channel's whole life, or for as long as its level rests."""
        if self.availability(self.options).engine == "libzstd":
            from multifd.methods._libzstd import Compressor
        else:
            from multifd.methods._zstandard import Compressor  # type: ignore[assignment]
        level, packet_bytes = self.options.level, p.geometry.page_size * p.geometry.page_count
        if level == "auto":
            from multifd.methods._adaptive import Adaptive
            from multifd.methods._adaptive_zstd import TOP, ZSTD

            p.state = Adaptive(Compressor(TOP, WINDOW_LOG, packet_bytes), p, ZSTD)
        else:
            p.state = Compressor(level, WINDOW_LOG, packet_bytes)
            p.state.open(level)

    def send_prepare(self, p: SendParams) -> None:
        """All pages, in whole blocks, from a private copy: libzstd looks back into it."""
        p.iov.extend(p.state.compress(p.pages.runs()))

    def native_send(self, p: SendParams) -> NativeHook | None:
        """The same on the same frame, with libzstd and what was compiled at installation."""
        hook: NativeHook | None = p.state.native_hook(p.geometry.page_size)
        return hook

    def recv_setup(self, p: RecvParams) -> None:
        """One decoder, which keeps at most the window."""
        if self.availability(self.options).engine == "libzstd":
            from multifd.methods._libzstd import Decompressor
        else:
            from multifd.methods._zstandard import Decompressor  # type: ignore[assignment]
        p.state = Decompressor(WINDOW_LOG)

    def recv(self, p: RecvParams) -> None:
        """Decode straight into the pages; nothing is produced beyond them."""
        p.state.decompress(p.payload, p.pages.runs())

    def native_recv(self, p: RecvParams) -> NativeHook | None:
        """The same on the same frame, with libzstd and what was compiled at installation."""
        hook: NativeHook | None = p.state.native_hook(p.geometry.page_size)
        return hook
