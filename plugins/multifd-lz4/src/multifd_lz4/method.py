"""lz4 for multifd: a packet's pages as one lz4 block, or as they are if that is not smaller.

Payload, wire version 2: one byte, 0 for pages as they are and 1 for an lz4 block, then that. There is one call for each
packet, without the GIL, so that channels scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import lz4.block

from multifd.method import (
    Availability,
    Capabilities,
    CodecError,
    Geometry,
    MethodOptions,
    MultifdMethods,
    NativeHook,
    RecvParams,
    SendParams,
    option,
)
from multifd_lz4 import native

_RAW, _BLOCK = b"\0", b"\1"


@dataclass(frozen=True)
class Lz4Options(MethodOptions):
    """Options of lz4."""

    # 65537 is LZ4_ACCELERATION_MAX, lib/lz4.c of lz4 1.9.4; the library clamps silently.
    acceleration: int = option(1, "each step is faster and compresses less", low=1, high=65537)


class Lz4Method(MultifdMethods):
    """Packets as independent lz4 blocks; no state, so channels have nothing to share."""

    name = "lz4"
    api = 1
    wire_version = 2
    capabilities = Capabilities(streaming=False, deterministic=True)
    Options = Lz4Options
    options: Lz4Options

    @classmethod
    def availability(cls, options: MethodOptions) -> Availability:
        """Everywhere: this module does not import without the library."""
        return Availability(True, f"liblz4 {lz4.library_version_string()}", native.unavailable_reason())

    def max_payload(self, geometry: Geometry) -> int:
        """Pages as they are, and the byte before them."""
        return 1 + geometry.page_count * geometry.page_size

    # [send]
    def send_prepare(self, p: SendParams) -> None:
        """One call for a private copy of the pages: lz4 looks back into its input, and a live guest writes to it."""
        data = p.pages.gather()
        block = lz4.block.compress(data, mode="fast", acceleration=self.options.acceleration, store_size=False)
        p.iov.extend((_BLOCK, block) if len(block) < len(data) else (_RAW, data))

    # [native]
    def native_send(self, p: SendParams) -> NativeHook | None:
        """The same outside the interpreter, where it was compiled."""
        return native.send_hook(p.geometry, self.options.acceleration)

    def native_recv(self, p: RecvParams) -> NativeHook | None:
        """The same outside the interpreter, where it was compiled."""
        return native.recv_hook(p.geometry)

    # [recv]
    def recv(self, p: RecvParams) -> None:
        """Decode to exactly the pages' bytes, and no byte more while finding out."""
        kind, body, nbytes = bytes(p.payload[:1]), p.payload[1:], p.pages.nbytes
        if kind == _BLOCK:
            try:
                # Never more than this: the library gives an error instead of output beyond it.
                data = lz4.block.decompress(body, uncompressed_size=nbytes)
            except (lz4.block.LZ4BlockError, ValueError) as e:
                raise CodecError(f"lz4 block of {len(body)} bytes: {e}") from e
        elif kind == _RAW:
            data = body
        else:
            raise CodecError(f"lz4 payload of {len(p.payload)} bytes begins with {kind!r}, expected 0 or 1")
        if len(data) != nbytes:
            raise CodecError(f"lz4 payload of {len(p.payload)} bytes gives {len(data)} bytes, its pages have {nbytes}")
        p.pages.scatter(data)

    # [end]
