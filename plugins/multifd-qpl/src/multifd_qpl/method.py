"""qpl on QEMU's wire: flag value 0x08 (MULTIFD_FLAG_QPL), migration/multifd-qpl.c, QEMU 9.1 to 10.0.

A payload is a table of big-endian u32, the length of each page, and then the pages: raw deflate
(RFC 1951), one stream for each page, or the page itself where the length is the page size.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

from multifd.method import (
    Availability,
    Capabilities,
    CodecError,
    Geometry,
    MethodOptions,
    MethodUnavailable,
    MultifdMethods,
    NativeHook,
    RecvParams,
    SendParams,
    option,
)
from multifd_qpl.abi import Library, LibraryUnavailable, describe_status
from multifd_qpl.isal_library import load_isal
from multifd_qpl.library import load
from multifd_qpl.watch import NO_QUEUE, Alarm, Engine, WatchedEngine, numa_advice, silence_s


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
    retries: int = option(3, "submissions after a refusal, at once, before a page falls back", low=0, high=1000)
    software: str = option(
        "auto",
        "who compresses without a device: ISA-L, libqpl, or the first of them that is there: ISA-L is faster and "
        "smaller (pages that a device refuses are always libqpl's)",
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
    """What its jobs are made with; None: ISA-L page by page."""
    status: int = 0
    """libqpl's status that stands against a device, if one does."""


def choose(options: QplOptions, library: Library | None = None) -> Choice:
    """The engine for these options here.

    Args:
        options: the method's.
        library: what to use instead of looking for libqpl; it is trusted, libqpl's device is tested.
    """
    reasons: list[str] = []
    status, check = 0, _probe if library is not None else _self_test
    if library is None and (options.hardware != "off" or options.software == "libqpl"):
        try:
            library = load()
        except LibraryUnavailable as e:
            reasons.append(str(e))
    if options.hardware == "off":
        reasons.append("hardware=off")
    elif library is not None:
        found = f"{library.path} {library.version}"
        has_crc, problem, status = check(library)
        if not problem:
            is_blind = options.verify == "on" and not has_crc
            reason = f"{found} reports no CRC: the device's results are not verified" if is_blind else ""
            return Choice("iaa", reason, replace(library, has_crc=has_crc))
        reasons.append(f"no IAA for {found}: {problem}")
    if options.hardware == "required":
        return Choice("", "hardware=required, but " + "; ".join(reasons), status=status)
    return replace(_choose_software(options.software, library, reasons), status=status)


def _choose_software(wanted: str, library: Library | None, reasons: list[str]) -> Choice:
    """The engine without a device; with ``auto`` ISA-L before libqpl, as it is faster and smaller: `isal_library`."""
    if wanted != "libqpl":
        try:
            return Choice("isal", "; ".join(reasons), load_isal())
        except LibraryUnavailable as e:
            reasons.append(f"ISA-L cannot be used from C: {e}")
        try:
            import isal.igzip_lib  # noqa: F401
        except ImportError as e:
            reasons.append(f"ISA-L cannot be imported: {e}")
        else:
            return Choice("isal", "; ".join(reasons))
    if wanted != "isal" and library is not None:
        return Choice("libqpl", "; ".join(reasons), library)
    return Choice("", "; ".join([f"software={wanted}, but {reasons[0]}" if reasons else "", *reasons[1:]]))


def _probe(library: Library) -> tuple[bool, str, int]:
    """Whether the library reports CRCs, why it makes no hardware job (empty if it does), and its status."""
    from multifd_qpl.jobs import probe

    status = probe(library)
    return library.has_crc, describe_status(status) if status else "", status


def _self_test(library: Library) -> tuple[bool, str, int]:
    """The same, by a page that goes through the device."""
    from multifd_qpl.selftest import check_hardware

    test = check_hardware(library)
    return library.has_crc and test.has_crc, test.reason, test.code


def _is_sound(library: Library) -> bool:
    return not _self_test(library)[1]


class QplMethod(MultifdMethods):
    """Intel QPL: an IAA device if there is one, else ISA-L, else libqpl's software path.

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
        self._alarm = Alarm()

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
        p.state = self._open(p)

    def send_prepare(self, p: SendParams) -> None:
        """The length table, then each page compressed, or raw if that saves too little."""
        p.state.compress(p)

    def native_send(self, p: SendParams) -> NativeHook | None:
        """`send_prepare` where nothing but pages is to be looked after (``_native.c``)."""
        engine: Engine = p.state
        return engine.native_send(p)

    def send_cleanup(self, p: SendParams) -> None:
        """Finish the channel's jobs."""
        self._close(p)

    def recv_setup(self, p: RecvParams) -> None:
        """The channel's jobs and buffers."""
        p.state = self._open(p)

    def recv(self, p: RecvParams) -> None:
        """Check the length table, then decompress straight into the pages."""
        p.state.decompress(read_lengths(p.payload, len(p.pages), p.geometry.page_size), p)

    def native_recv(self, p: RecvParams) -> NativeHook | None:
        """`recv` of what decodes to pages; Python refuses the rest."""
        engine: Engine = p.state
        return engine.native_recv(p)

    def recv_cleanup(self, p: RecvParams) -> None:
        """Finish the channel's jobs."""
        self._close(p)

    def _open(self, p: SendParams | RecvParams) -> Engine:
        choice = choose(self.options, self._library)
        advice = numa_advice() if choice.status == NO_QUEUE and self._library is None else ""
        p.counters.update(silent=0, no_device=int(bool(advice)))
        if not choice.engine:
            raise MethodUnavailable("; ".join(filter(None, (choice.reason, advice))))
        if advice:
            self._alarm.say("no_device", f"channel {p.channel} has no IAA device: {choice.reason}", lambda: advice)
        if choice.library is None:
            from multifd_qpl.software import IsalEngine

            return IsalEngine(p.geometry)
        from multifd_qpl.jobs import BatchEngine

        engine = BatchEngine(
            choice.library,
            p.geometry,
            p.abort,
            hardware=choice.engine == "iaa",
            wait=self.options.busy == "wait",
            retries=self.options.retries,
            verify=self.options.verify == "on",
            silence_s=silence_s(p.timeout_s),
        )
        is_required = self.options.hardware == "required"
        if is_required and not engine.has_hardware:
            engine.close()
            raise MethodUnavailable("hardware=required, but libqpl cannot make enough hardware jobs")
        if not engine.has_hardware:
            return engine
        is_sound = partial(_is_sound, choice.library)
        return WatchedEngine(engine, self._alarm, is_sound=is_sound, is_required=is_required)

    @staticmethod
    def _close(p: SendParams | RecvParams) -> None:
        engine: Engine | None = p.state
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
