"""zstd by the public API of the zstandard package: the way that always exists, with one more copy.

Decoding uses a stream_writer: it hands its output over in pieces, so a payload that decodes to far too
much is refused while it decodes. decompressobj would hold all of it (measured: 33 KB made 1 GiB).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO, cast

import zstandard

from multifd.method import PACKET_BYTES, Buffer, CodecError


class Compressor:
    """An endless frame; arguments as `multifd.methods._libzstd.Compressor`."""

    def __init__(self, highest: int, window_log: int, packet_bytes: int) -> None:
        self._window_log = window_log

    def open(self, level: int) -> None:
        """Begin a frame at a level; one that is open is forgotten."""
        limit = {"window_log": self._window_log} if level >= 20 else {}
        parameters = zstandard.ZstdCompressionParameters.from_level(
            level, write_content_size=False, write_checksum=False, **limit
        )
        self._frame = zstandard.ZstdCompressor(compression_params=parameters).compressobj()

    def compress(self, runs: Sequence[memoryview]) -> list[Buffer]:
        """The pages' bytes and a block flush."""
        pieces: list[Buffer] = [self._frame.compress(run) for run in runs]
        pieces.append(self._frame.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK))
        return pieces

    def native_hook(self, page_size: int) -> None:
        """There is none: the public API has no functions to call from native code."""

    def adaptive_hook(self, page_size: int, settle: object) -> None:
        """There is none."""


class _Filler:
    """A file to write to that fills buffers and takes no byte more."""

    def __init__(self) -> None:
        self._runs: list[memoryview] = []

    def aim(self, runs: Sequence[memoryview]) -> None:
        """Fill `runs` from now on."""
        self._runs = list(runs)

    @property
    def is_full(self) -> bool:
        """Whether no byte is missing."""
        return not self._runs

    def write(self, data: bytes) -> int:
        """Take all of `data`."""
        view = memoryview(data)
        while len(view):
            if not self._runs:
                raise CodecError("zstd payload holds more than its pages")
            run = self._runs[0]
            count = min(len(run), len(view))
            run[:count] = view[:count]
            view = view[count:]
            if count == len(run):
                del self._runs[0]
            else:
                self._runs[0] = run[count:]
        return len(data)


class Decompressor:
    """The other end of it; arguments as `multifd.methods._libzstd.Decompressor`."""

    def __init__(self, window_log_max: int) -> None:
        decompressor = zstandard.ZstdDecompressor(max_window_size=1 << window_log_max)
        self._filler = _Filler()
        # Room for more than a packet: the writer keeps back what does not fit when its input ends.
        self._writer = decompressor.stream_writer(
            cast("IO[bytes]", self._filler), write_size=2 * PACKET_BYTES, closefd=False
        )

    def decompress(self, payload: memoryview, runs: Sequence[memoryview]) -> None:
        """Fill `runs` from `payload`, which must hold exactly that.

        Raises:
            CodecError: it does not.
        """
        self._filler.aim(runs)
        try:
            self._writer.write(payload)
        except zstandard.ZstdError as e:
            raise CodecError(f"zstd payload: {e}") from e
        if not self._filler.is_full:
            raise CodecError(f"zstd payload of {len(payload)} bytes ends before its pages do")

    def native_hook(self, page_size: int) -> None:
        """There is none, as for `Compressor`."""
