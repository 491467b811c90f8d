"""qpl on QEMU's wire: flag value 0x08 (MULTIFD_FLAG_QPL), migration/multifd-qpl.c, QEMU 9.1 to 10.0.

A payload is a table of big-endian u32, the length of each page, and then the pages: raw deflate
(RFC 1951), one stream for each page, or the page itself where the length is the page size.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from multifd.method import (
    Availability,
    Capabilities,
    CodecError,
    Geometry,
    MethodOptions,
    MethodUnavailable,
    MultifdMethods,
    RecvParams,
    SendParams,
    option,
)
from multifd_qpl.library import Library, LibraryUnavailable, describe_status, load

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class QplOptions(MethodOptions):
    """Options of qpl."""

    refused: ClassVar[Mapping[str, str]] = {
        "level": "QPL compresses pages at one level only, as the IAA device has no other"
    }

    busy: str = option(
        "fallback",
        "when all work queues are busy after the retries: compress the page in software, or wait",
        choices=("fallback", "wait"),
    )
    retries: int = option(3, "submissions after a refusal, at once, before a page falls back", low=0)
    software: str = option(
        "auto",
        "who compresses without a device: libqpl, ISA-L, or the first of them that is there "
        "(pages that a device refuses are always libqpl's)",
        choices=("auto", "isal", "libqpl"),
    )
    hardware: str = option(
        "auto",
        "whether to use an IAA device: if there is one, never, or fail without",
        choices=("auto", "off", "required"),
    )
    verify: str = option(
        "on",
        "whether a device's results are checked: what it compressed by decompressing it again, both by CRC "
        "(a device is a sixth slower for it, at the source)",
        choices=("on", "off"),
    )


@dataclass(frozen=True)
class Choice:
    """What the options come to on this machine."""

    engine: str
    """``iaa``, ``libqpl``, ``isal``, or empty if the options cannot be met."""
    reason: str
    """Why not a better one."""
    library: Library | None = None


def choose(options: QplOptions, library: Library | None = None) -> Choice:
    """The engine for these options here.

    Args:
        options: the method's.
        library: what to use instead of looking for libqpl.
    """
    reasons = []
    if library is None:
        try:
            library = load()
        except LibraryUnavailable as e:
            reasons.append(str(e))
    if library is not None:
        found = f"{library.path} {library.version}"
        if options.hardware == "off":
            reasons.append("hardware=off")
        else:
            from multifd_qpl.jobs import probe

            status = probe(library)
            if status == 0:
                is_blind = options.verify == "on" and not library.has_crc
                reason = f"{found} reports no CRC: the device's results are not verified" if is_blind else ""
                return Choice("iaa", reason, library)
            reasons.append(f"no IAA for {found}: {describe_status(status)}")
    if options.hardware == "required":
        return Choice("", "hardware=required, but " + "; ".join(reasons))
    if library is not None and options.software != "isal":
        return Choice("libqpl", "; ".join(reasons), library)
    if options.software == "libqpl":
        return Choice("", "software=libqpl, but " + "; ".join(reasons))
    try:
        import isal.igzip_lib  # noqa: F401
    except ImportError as e:
        return Choice("", "; ".join([*reasons, f"ISA-L cannot be imported: {e}"]))
    return Choice("isal", "; ".join(reasons))


class _Engine(Protocol):
    """What does the work of one channel and direction."""

    def compress(self, p: SendParams) -> None: ...

    def decompress(self, lengths: Sequence[int], p: RecvParams) -> None: ...

    def close(self) -> None: ...


class QplMethod(MultifdMethods):
    """Intel QPL: an IAA device if there is one, else libqpl's software path, else ISA-L.

    Args:
        options: see `QplOptions`; None for the defaults.
        library: what to use instead of looking for libqpl, for tests and simulations.
    """

    name = "qpl"
    api = 1
    wire_code: ClassVar[int | None] = 0x08
    capabilities = Capabilities(streaming=False, page_independent=True)
    Options = QplOptions
    options: QplOptions

    def __init__(self, options: MethodOptions | None = None, library: Library | None = None) -> None:
        super().__init__(options)
        self._library = library

    @classmethod
    def availability(cls, options: MethodOptions) -> Availability:
        """Which engine would run, and why not a better one."""
        assert isinstance(options, QplOptions)
        choice = choose(options)
        return Availability(bool(choice.engine), choice.engine, choice.reason)

    def max_payload(self, geometry: Geometry) -> int:
        """Every page as it is, and the length table."""
        return geometry.page_count * (geometry.page_size + 4)

    def send_setup(self, p: SendParams) -> None:
        """The channel's jobs and buffers."""
        p.state = self._open(p.geometry, p.abort)

    def send_prepare(self, p: SendParams) -> None:
        """The length table, then each page compressed, or raw if it does not shrink."""
        p.state.compress(p)

    def send_cleanup(self, p: SendParams) -> None:
        """Finish the channel's jobs."""
        self._close(p)

    def recv_setup(self, p: RecvParams) -> None:
        """The channel's jobs and buffers."""
        p.state = self._open(p.geometry, p.abort)

    def recv(self, p: RecvParams) -> None:
        """Check the length table, then decompress straight into the pages."""
        p.state.decompress(read_lengths(p.payload, len(p.pages), p.geometry.page_size), p)

    def recv_cleanup(self, p: RecvParams) -> None:
        """Finish the channel's jobs."""
        self._close(p)

    def _open(self, geometry: Geometry, abort: bytearray) -> _Engine:
        choice = choose(self.options, self._library)
        if not choice.engine:
            raise MethodUnavailable(choice.reason)
        if choice.library is None:
            from multifd_qpl.software import IsalEngine

            return IsalEngine(geometry)
        from multifd_qpl.jobs import BatchEngine

        engine = BatchEngine(
            choice.library,
            geometry,
            abort,
            hardware=choice.engine == "iaa",
            wait=self.options.busy == "wait",
            retries=self.options.retries,
            verify=self.options.verify == "on",
        )
        if self.options.hardware == "required" and not engine.has_hardware:
            engine.close()
            raise MethodUnavailable("hardware=required, but libqpl cannot make enough hardware jobs")
        return engine

    @staticmethod
    def _close(p: SendParams | RecvParams) -> None:
        engine: _Engine | None = p.state
        p.state = None
        if engine is not None:
            engine.close()


def read_lengths(payload: memoryview, page_count: int, page_size: int) -> tuple[int, ...]:
    """The length table, checked as QEMU 10.0 does (multifd_qpl_recv).

    Raises:
        CodecError: it cannot belong to a payload of this size.
    """
    table_bytes = 4 * page_count
    if table_bytes >= len(payload):
        raise CodecError(f"payload of {len(payload)} bytes, expected more than the length table's {table_bytes}")
    lengths = struct.unpack_from(f">{page_count}I", payload)
    if max(lengths) > page_size:
        i = next(i for i, length in enumerate(lengths) if length > page_size)
        raise CodecError(f"page {i}: length {lengths[i]}, at most {page_size}", offset=4 * i)
    if table_bytes + sum(lengths) != len(payload):
        raise CodecError(f"lengths add up to {table_bytes + sum(lengths)} bytes, the payload has {len(payload)}")
    return lengths
