"""A format's known bytes: a method with a wire code decodes what others sent, and is decoded by the reference.

The files in ``golden`` are QEMU's own where a QEMU can be had that sends the format; see their README.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from multifd.registry import load_method
from multifd.testing.harness import Broken, RecvEnd, Section, SendEnd, check_equal, promised
from multifd.testing.strategies import PACKET_KINDS, packet


@dataclass(frozen=True)
class Vector:
    """The first payload of a channel, as its maker sent it."""

    file: str
    count: int
    sha256: str
    """Of the pages' bytes."""
    maker: str
    """Who sent it, and with what; ``golden/README.md`` has the rest."""


VECTORS: dict[int, Vector] = {
    2: Vector(
        "qemu-zlib.bin",
        128,
        "b8322190983e8385189a6865bd34f503366b3fe506da00052ba7030f5386d112",
        "QEMU 7.2.22, pc-q35-7.2, paused guest with generated RAM, multifd-zlib-level 1; QEMU 10.0.2 sends the same",
    ),
    4: Vector(
        "qemu-zstd.bin",
        128,
        "b8322190983e8385189a6865bd34f503366b3fe506da00052ba7030f5386d112",
        "QEMU 7.2.22, pc-q35-7.2, paused guest with generated RAM, multifd-zstd-level 1; QEMU 10.0.2 sends the same",
    ),
    8: Vector(
        "isal-qpl.bin",
        32,
        "2f16d903a42e6cbcbc004c47f75864a650f865e3ed585687a67372f6aef01b4a",
        "multifd-qpl 0.1's ISA-L engine, isal 1.9.1, pages of every kind, some of them raw; no QEMU",
    ),
}
"""By wire code."""


def _zlib_decoder() -> Callable[[bytes], bytes]:
    return zlib.decompressobj().decompress


def _zstd_decoder() -> Callable[[bytes], bytes]:
    import zstandard

    frame = zstandard.ZstdDecompressor().decompressobj()

    def decode(payload: bytes) -> bytes:
        nonlocal frame
        pages = b""
        while payload:
            if frame.eof:
                frame = zstandard.ZstdDecompressor().decompressobj()
            pages += frame.decompress(payload)
            payload = frame.unused_data if frame.eof else b""
        return pages

    return decode


def _qpl_decoder() -> Callable[[bytes], bytes]:
    def decode(payload: bytes, count: int = 20, page_size: int = 4096) -> bytes:
        lengths, at, pages = struct.unpack_from(f">{count}I", payload), 4 * count, []
        for length in lengths:
            body = payload[at : at + length]
            at += length
            pages.append(body if length == page_size else zlib.decompress(body, wbits=-15))
        return b"".join(pages)

    return decode


REFERENCES: dict[int, Callable[[], Callable[[bytes], bytes]]] = {
    0: lambda: bytes,
    2: _zlib_decoder,
    4: _zstd_decoder,
    8: _qpl_decoder,
}
"""By wire code: a decoder of a channel that shares nothing with the method."""


def test_golden_vectors(multifd_method: str) -> None:
    """A method with a QEMU wire code decodes payloads of that format that others made."""
    method = load_method(multifd_method)
    vector = VECTORS.get(-1 if method.wire_code is None else method.wire_code)
    promised(vector is not None, f"a format with known payloads (wire_code is {method.wire_code})")
    assert vector is not None
    promise = f"a method with wire code {method.wire_code} decodes the known payload of that format"
    payload = (Path(__file__).parent / "golden" / vector.file).read_bytes()
    with RecvEnd(method) as recv:
        try:
            got = recv.unpack(payload, vector.count)
        except Broken as e:
            raise Broken(promise, Section.WIRE, f"{vector.file} ({vector.maker}): {e}") from e
    if hashlib.sha256(got).hexdigest() != vector.sha256:
        raise Broken(
            promise, Section.WIRE, f"{recv.where}: {vector.file} ({vector.maker}) decodes to other bytes than it holds"
        )


def test_reference_decoder(multifd_method: str) -> None:
    """What a method with a QEMU wire code sends is decoded by an independent decoder of that format."""
    method = load_method(multifd_method)
    make_reference = REFERENCES.get(-1 if method.wire_code is None else method.wire_code)
    promised(make_reference is not None, f"a format with a reference decoder (wire_code is {method.wire_code})")
    assert make_reference is not None
    decode = make_reference()
    with SendEnd(method) as send:
        for kind in PACKET_KINDS:
            data = packet(kind, 12, 4096, 20)
            payload = send.pack(data)
            try:
                got = decode(payload)
            except Exception as e:
                raise Broken(
                    f"payloads with wire code {method.wire_code} are what QEMU's destination decodes",
                    Section.WIRE,
                    f"{send.where}, {kind}: the reference decoder says {e!r}",
                ) from e
            check_equal(data, got, 4096, f"{send.where}, {kind}, decoded by the reference for {method.wire_code}")
