"""Methods that are wrong in one way each, and the test of the kit that must say so.

Good is a right one, page by page by zlib, of which most wrong ones are a slip away.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import pathlib
import signal
import struct
import subprocess
import tempfile
import threading
import time
import zlib
from dataclasses import dataclass
from typing import Any, ClassVar

import isal.isal_zlib

from multifd.method import (
    Availability,
    Capabilities,
    CodecError,
    Geometry,
    MethodOptions,
    MultifdMethods,
    RecvParams,
    SendParams,
    option,
)

CAUGHT_BY: dict[str, tuple[type[MultifdMethods], list[tuple[str, str]]]] = {}
"""By name: the class, and the tests that must catch it, with words of the promise that the message names."""


def caught_by(test: str, words: str) -> Any:
    """Register a wrong method under its class name."""

    def register(cls: type[MultifdMethods]) -> type[MultifdMethods]:
        cls.name = cls.__name__.lower()
        CAUGHT_BY.setdefault(cls.name, (cls, []))[1].append((test, words))
        return cls

    return register


def encode(pages: Any) -> bytes:
    """Each page as its length and a zlib stream."""
    out = []
    for page in pages:
        body = zlib.compress(page, 1)
        out += [struct.pack("<I", len(body)), body]
    return b"".join(out)


def decode(payload: memoryview, pages: Any) -> None:
    """Strictly the inverse."""
    at = 0
    for page in pages:
        if at + 4 > len(payload):
            raise CodecError("cut before a length")
        (size,) = struct.unpack_from("<I", payload, at)
        if size > len(payload) - at - 4:
            raise CodecError("cut in a page")
        inflater = zlib.decompressobj()
        try:
            data = inflater.decompress(payload[at + 4 : at + 4 + size], len(page) + 1)
        except zlib.error as e:
            raise CodecError(str(e)) from e
        if len(data) != len(page) or not inflater.eof or inflater.unused_data:
            raise CodecError("not one page")
        page[:] = data
        at += 4 + size
    if at != len(payload):
        raise CodecError("more than its pages")


class Good(MultifdMethods):
    """Right in every way."""

    name = "good"
    api = 1
    capabilities = Capabilities(streaming=False, page_independent=True, deterministic=True)

    def send_prepare(self, p: SendParams) -> None:
        p.iov.append(encode(bytes(page) for page in p.pages))

    def recv(self, p: RecvParams) -> None:
        decode(p.payload, p.pages)


class GoodStream(MultifdMethods):
    """Right too, with a stream for each channel."""

    name = "goodstream"
    api = 1
    capabilities = Capabilities(streaming=True, deterministic=True)

    def send_setup(self, p: SendParams) -> None:
        p.state = zlib.compressobj(1)

    def send_prepare(self, p: SendParams) -> None:
        p.iov.append(p.state.compress(p.pages.gather()) + p.state.flush(zlib.Z_SYNC_FLUSH))

    def recv_setup(self, p: RecvParams) -> None:
        p.state = zlib.decompressobj()

    def recv(self, p: RecvParams) -> None:
        try:
            data = p.state.decompress(p.payload, p.pages.nbytes + 1)
        except zlib.error as e:
            raise CodecError(str(e)) from e
        if len(data) != p.pages.nbytes:
            raise CodecError("not its pages")
        p.pages.scatter(data)


@caught_by("test_round_trip", "decodes to exactly")
class DropsLastByte(Good):
    def send_prepare(self, p: SendParams) -> None:
        p.iov.append(encode(bytes(page[:-1]) + b"\0" for page in p.pages))


@caught_by("test_round_trip", "decodes to exactly")
class ForgetsOrder(Good):
    """Sorts its pages by address."""

    def send_prepare(self, p: SendParams) -> None:
        views = sorted(zip(p.pages.offsets.tolist(), p.pages, strict=True), key=lambda item: item[0])
        p.iov.append(encode(bytes(v) for _, v in views))


@caught_by("test_round_trip", "decodes to exactly")
class AssumesSmallPages(Good):
    """Takes every page for 4096 bytes."""

    def send_prepare(self, p: SendParams) -> None:
        p.iov.append(encode(bytes(page[:4096]) + bytes(len(page) - 4096) for page in p.pages))


@caught_by("test_sequence", "decode")
class TiresOut(GoodStream):
    """Right for a thousand packets."""

    def send_setup(self, p: SendParams) -> None:
        p.state = [zlib.compressobj(1), 0]

    def send_prepare(self, p: SendParams) -> None:
        p.state[1] += 1
        if p.state[1] == 1000:
            p.state[0] = zlib.compressobj(1)
        p.iov.append(p.state[0].compress(p.pages.gather()) + p.state[0].flush(zlib.Z_SYNC_FLUSH))


@caught_by("test_sources", "good input succeeds")
class NeedsWritableMemory(Good):
    def send_prepare(self, p: SendParams) -> None:
        for page in p.pages:
            ctypes.c_char.from_buffer(page)
        super().send_prepare(p)


@caught_by("test_source_unchanged", "never writes to the source")
class WritesToSource(Good):
    def send_prepare(self, p: SendParams) -> None:
        super().send_prepare(p)
        for page in p.pages:
            if not page.readonly:
                page[0] ^= 1


@caught_by("test_channels_interleaved", "decodes")
class SharesState(GoodStream):
    """One compressor for all channels."""

    def send_setup(self, p: SendParams) -> None:
        p.state = self.__dict__.setdefault("one", zlib.compressobj(1))


@caught_by("test_channels_in_threads", "")
class SharesScratch(Good):
    """One buffer for all channels, in use while another channel's hook runs."""

    def __init__(self, options: MethodOptions | None = None) -> None:
        super().__init__(options)
        self.scratch = bytearray(1 << 20)

    def send_prepare(self, p: SendParams) -> None:
        n = p.pages.nbytes
        self.scratch[:n] = p.pages.gather()
        zlib.crc32(self.scratch)  # gives the GIL away
        size = p.pages.page_size
        p.iov.append(encode(bytes(self.scratch[i : i + size]) for i in range(0, n, size)))


@caught_by("test_iov_untouched", "stay untouched")
class ReusesIov(Good):
    """One output buffer for all channels."""

    def __init__(self, options: MethodOptions | None = None) -> None:
        super().__init__(options)
        self.out = bytearray(1 << 20)

    def send_prepare(self, p: SendParams) -> None:
        data = encode(bytes(page) for page in p.pages)
        self.out[: len(data)] = data
        p.iov.append(memoryview(self.out)[: len(data)])


@caught_by("test_pages_not_kept", "keeps no view")
class KeepsPages(Good):
    def send_prepare(self, p: SendParams) -> None:
        super().send_prepare(p)
        p.state = list(p.pages)


@caught_by("test_pages_not_kept", "keeps no view")
class KeepsPayload(Good):
    def recv(self, p: RecvParams) -> None:
        super().recv(p)
        p.state = p.payload


@caught_by("test_sequence", "decode")
class DeltaAgainstKeptPages(GoodStream):
    """Sends what differs from the packet before, which it looks at where it was."""

    def send_setup(self, p: SendParams) -> None:
        p.state = []

    def send_prepare(self, p: SendParams) -> None:
        old = [bytes(v) for v in p.state]
        new = [bytes(page) for page in p.pages]
        same = bytes(i < len(old) and old[i] == page for i, page in enumerate(new))
        p.iov.append(same + encode(page for page, s in zip(new, same, strict=True) if not s))
        p.state = list(p.pages)

    def recv_setup(self, p: RecvParams) -> None:
        p.state = []

    def recv(self, p: RecvParams) -> None:
        n, old = len(p.pages), p.state
        same = bytes(p.payload[:n])
        if len(same) < n or max(same) > 1 or any(s and i >= len(old) for i, s in enumerate(same)):
            raise CodecError("bad list")
        decode(p.payload[n:], [page for page, s in zip(p.pages, same, strict=True) if not s])
        for i, page in enumerate(p.pages):
            if same[i]:
                page[:] = old[i]
        p.state = [bytes(page) for page in p.pages]


@caught_by("test_live_pages", "not written during send_prepare")
class LooksBackIntoGuest(GoodStream):
    """ISA-L's stream, fed with the guest's pages instead of a private copy."""

    def send_setup(self, p: SendParams) -> None:
        p.state = isal.isal_zlib.compressobj(1)

    def send_prepare(self, p: SendParams) -> None:
        parts = [p.state.compress(run) for run in p.pages.runs()]
        p.iov.append(b"".join(parts) + p.state.flush(isal.isal_zlib.Z_SYNC_FLUSH))


@caught_by("test_live_pages", "not written during send_prepare")
class ReadsTwice(Good):
    """Measures each page, then compresses it again."""

    def send_prepare(self, p: SendParams) -> None:
        sizes = [len(zlib.compress(page, 1)) for page in p.pages]
        bodies = [zlib.compress(page, 1) for page in p.pages]
        p.iov.extend(struct.pack("<I", s) + b for s, b in zip(sizes, bodies, strict=True))


@caught_by("test_round_trip", "outside its pages")
class WritesPastPage(Good):
    def recv(self, p: RecvParams) -> None:
        super().recv(p)
        offset = int(p.pages.offsets[-1]) + p.pages.page_size
        p.pages._memory.view[offset] ^= 1


@caught_by("test_hostile_payloads", "CodecError or fills every byte")
class SwallowsErrors(Good):
    def recv(self, p: RecvParams) -> None:
        with contextlib.suppress(CodecError):
            super().recv(p)


@caught_by("test_hostile_payloads", "not exactly its packet's")
class ZeroesOnError(Good):
    def recv(self, p: RecvParams) -> None:
        try:
            super().recv(p)
        except CodecError:
            p.pages.scatter(bytes(p.pages.nbytes))


@caught_by("test_hostile_payloads", "with nothing else")
class OtherErrors(Good):
    """zlib.error, struct.error, ..."""

    def recv(self, p: RecvParams) -> None:
        at = 0
        for page in p.pages:
            (size,) = struct.unpack_from("<I", p.payload, at)
            page[:] = zlib.decompress(p.payload[at + 4 : at + 4 + size])
            at += 4 + size


@caught_by("test_hostile_payloads", "with nothing else")
class TrustsLength(Good):
    """Makes room for what the payload says."""

    def recv(self, p: RecvParams) -> None:
        if len(p.payload) < 4:
            raise CodecError("short")
        (size,) = struct.unpack_from("<I", p.payload)
        bytearray(size)
        super().recv(p)


@caught_by("test_hostile_payloads", "more than its bound")
class BelievesBombs(GoodStream):
    """Inflates everything, then looks at its length."""

    def recv(self, p: RecvParams) -> None:
        try:
            data = p.state.decompress(p.payload)
        except zlib.error as e:
            raise CodecError(str(e)) from e
        if len(data) != p.pages.nbytes:
            raise CodecError("not its pages")
        p.pages.scatter(data)


@caught_by("test_hostile_payloads", "more than its bound")
class BelievesPageBombs(Good):
    """Inflates each page whatever it becomes."""

    def recv(self, p: RecvParams) -> None:
        at = 0
        for page in p.pages:
            try:
                (size,) = struct.unpack_from("<I", p.payload, at)
                inflater = zlib.decompressobj()
                data = inflater.decompress(p.payload[at + 4 : at + 4 + size])
            except (struct.error, zlib.error) as e:
                raise CodecError(str(e)) from e
            at += 4 + size
            if len(data) != len(page) or not inflater.eof or inflater.unused_data or at > len(p.payload):
                raise CodecError("not one page")
            page[:] = data
        if at != len(p.payload):
            raise CodecError("more than its pages")


@caught_by("test_hostile_payloads", "survives")
class Crashes(Good):
    """A native decoder that writes through a length it was given."""

    def recv(self, p: RecvParams) -> None:
        if bytes(p.payload[1:4]) == b"\xff\xff\xff":
            os.kill(os.getpid(), signal.SIGSEGV)
        super().recv(p)


@caught_by("test_hostile_payloads", "not exactly its packet's")
class IgnoresRest(Good):
    """Takes a packet of more pages for its own, shifted by one when it is cut."""

    def recv(self, p: RecvParams) -> None:
        try:
            decode(p.payload, p.pages)
        except CodecError:
            if len(p.payload) < 4:
                raise
            for page in p.pages:
                page[:] = bytes(len(page))


@caught_by("test_payload_bound", "max_payload")
class LiesAboutBound(Good):
    def max_payload(self, geometry: Geometry) -> int:
        return geometry.page_count * geometry.page_size


@caught_by("test_stateless_claim", "streaming=False")
class StreamsInSecret(GoodStream):
    capabilities = Capabilities(streaming=False)


@caught_by("test_page_independent_claim", "page_independent=True")
class DependsOnPages(GoodStream):
    """One stream for each packet."""

    capabilities = Capabilities(streaming=False, page_independent=True)

    def send_setup(self, p: SendParams) -> None:
        pass

    recv_setup = send_setup  # type: ignore[assignment]

    def send_prepare(self, p: SendParams) -> None:
        p.iov.append(zlib.compress(p.pages.gather(), 1))

    def recv(self, p: RecvParams) -> None:
        p.state = zlib.decompressobj()
        super().recv(p)
        eof, p.state = p.state.eof, None
        if not eof:
            raise CodecError("no end")


@caught_by("test_deterministic_claim", "deterministic=True")
class NotDeterministic(Good):
    def send_prepare(self, p: SendParams) -> None:
        self.__dict__["n"] = self.__dict__.get("n", 0) + 1
        out = []
        for page in p.pages:
            body = zlib.compress(page, 1 + self.__dict__["n"] % 9)
            out += [struct.pack("<I", len(body)), body]
        p.iov.append(b"".join(out))


@caught_by("test_verbatim_claim", "verbatim=True")
class NotVerbatim(Good):
    capabilities = Capabilities(streaming=False, verbatim=True)


@caught_by("test_capabilities_are_possible", "max_payload")
class HugeBound(Good):
    def max_payload(self, geometry: Geometry) -> int:
        return 1 << 30


@caught_by("test_capabilities_are_possible", "earlier ones")
class Contradicts(Good):
    capabilities = Capabilities(streaming=True, page_independent=True)


@caught_by("test_cleanup_twice", "harmless")
class CleanupOnce(GoodStream):
    def send_cleanup(self, p: SendParams) -> None:
        p.state.flush()
        p.state = None


@caught_by("test_cleanup_twice", "p.state None")
class KeepsState(GoodStream):
    def recv_cleanup(self, p: RecvParams) -> None:
        pass


@caught_by("test_setup_fails_half_way", "failed setup")
class CleanupNeedsSetup(Good):
    def send_setup(self, p: SendParams) -> None:
        p.state = {}
        p.state["job"] = zlib.compressobj(1)

    def send_cleanup(self, p: SendParams) -> None:
        if p.state is not None:
            p.state.pop("job").flush()
            p.state = None


class _Worker:
    """A thread that waits for work."""

    def __init__(self) -> None:
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._end.wait, name="worker", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._end.set()
        self._thread.join(10)


@caught_by("test_setup_fails_half_way", "every thread")
class LeaksThreadOnFailure(Good):
    """Ends its thread, unless setup failed after it began."""

    def send_setup(self, p: SendParams) -> None:
        worker = _Worker()
        size = p.geometry.page_size
        p.state = worker, size

    def send_cleanup(self, p: SendParams) -> None:
        if p.state is not None:
            p.state[0].stop()
            p.state = None


@caught_by("test_no_growth", "every thread")
class LeaksThread(Good):
    def recv_setup(self, p: RecvParams) -> None:
        if len(self.__dict__.setdefault("workers", [])) < 520:
            self.__dict__["workers"].append(_Worker())


@caught_by("test_no_growth", "descriptor")
class LeaksFile(Good):
    def recv_setup(self, p: RecvParams) -> None:
        if len(self.__dict__.setdefault("files", [])) < 600:
            self.__dict__["files"].append(os.open("/dev/null", os.O_RDONLY))


@caught_by("test_no_growth", "releases everything")
class LeaksMemory(GoodStream):
    """Remembers every channel there ever was."""

    def send_setup(self, p: SendParams) -> None:
        super().send_setup(p)
        self.__dict__.setdefault("all", []).append([p.state, bytearray(4096)])


@caught_by("test_abort", "stops for p.abort")
class AbortsWithWrongError(Good):
    def send_prepare(self, p: SendParams) -> None:
        if p.abort[0]:
            raise RuntimeError("aborted")
        super().send_prepare(p)


@caught_by("test_identity", "wire_code is one of")
class OddCode(Good):
    wire_code: ClassVar[int | None] = 0x30


@caught_by("test_identity", "wire_version is a byte")
class BigVersion(Good):
    wire_version = 256


@dataclass(frozen=True)
class _Unchecked(MethodOptions):
    level: int = option(1, "effort", low=0, high=9)

    def __post_init__(self) -> None:
        pass


@caught_by("test_options", "raises OptionError")
class ChecksNoOption(Good):
    Options = _Unchecked


@dataclass(frozen=True)
class _Lenient(MethodOptions):
    level: int = option(1, "effort", low=0, high=9)

    @classmethod
    def parse(cls, texts: Any) -> Any:
        return super().parse({k: v for k, v in texts.items() if k == "level"})


@caught_by("test_options", "no_such_option")
class IgnoresUnknownOptions(Good):
    Options = _Lenient


@caught_by("test_availability", "never raises")
class AvailabilityRaises(Good):
    @classmethod
    def availability(cls, options: MethodOptions) -> Availability:
        raise ImportError("no library")


@caught_by("test_availability", "says why")
class UnavailableWithoutReason(Good):
    @classmethod
    def availability(cls, options: MethodOptions) -> Availability:
        return Availability(False)


@caught_by("test_shared_wire_code", "share a wire code")
class TakesAnothersCode(Good):
    wire_code: ClassVar[int | None] = 2


@caught_by("test_golden_vectors", "decodes the known payload of that format")
@caught_by("test_reference_decoder", "what QEMU's destination decodes")
class NotQemusZlib(Good):
    wire_code: ClassVar[int | None] = 2


@caught_by("test_migration_after_migration", "migration by the method succeeds")
class NeedsMainThread(Good):
    """Sets an alarm in case its device hangs; only a process's first thread can."""

    def send_setup(self, p: SendParams) -> None:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)


@caught_by("test_any_history", "decodes every payload")
class PoisonedByFailure(GoodStream):
    """Stays broken after a failure, though a new migration began."""

    def recv(self, p: RecvParams) -> None:
        if "failed" in self.__dict__:
            raise CodecError("failed before")
        try:
            super().recv(p)
        except CodecError:
            self.__dict__["failed"] = True
            raise


@caught_by("test_round_trip", "decodes to exactly")
class WrongAt32K(Good):
    """A table of page sizes without 32 KiB."""

    def send_prepare(self, p: SendParams) -> None:
        size = p.pages.page_size
        p.iov.append(encode(bytes(page) if size != 32768 else bytes(page[:-1]) + b"\0" for page in p.pages))


@dataclass(frozen=True)
class _Keyed(MethodOptions):
    key: int = option(0, "what bytes are combined with", low=0, high=255)


def _keyed(data: bytes, key: int) -> bytes:
    return data.translate(bytes(i ^ key for i in range(256)))


@caught_by("test_receiver_defaults", "sender with any options")
class NeedsSendersOptions(Good):
    """The receiver has to be told what the sender was told."""

    Options = _Keyed
    options: _Keyed

    def send_prepare(self, p: SendParams) -> None:
        p.iov.append(encode(_keyed(bytes(page), self.options.key) for page in p.pages))

    def recv(self, p: RecvParams) -> None:
        super().recv(p)
        for page in p.pages:
            page[:] = _keyed(bytes(page), self.options.key)


@caught_by("test_receiver_defaults", "sender with any options")
class SharesOptions(Good):
    """The options of the instance that was built last, for all; the payload says those of its own."""

    Options = _Keyed
    options: _Keyed
    last: ClassVar[int] = 0

    def __init__(self, options: MethodOptions | None = None) -> None:
        super().__init__(options)
        type(self).last = self.options.key

    def send_prepare(self, p: SendParams) -> None:
        p.iov.append(bytes([self.options.key]) + encode(_keyed(bytes(page), self.last) for page in p.pages))

    def recv(self, p: RecvParams) -> None:
        if not p.payload:
            raise CodecError("empty")
        decode(p.payload[1:], p.pages)
        for page in p.pages:
            page[:] = _keyed(bytes(page), p.payload[0])


@caught_by("test_no_growth", "")
class LeaksOnFailure(Good):
    """Remembers each payload that did not decode."""

    def recv(self, p: RecvParams) -> None:
        try:
            super().recv(p)
        except CodecError as e:
            self.__dict__.setdefault("failures", []).append([str(e), bytes(8192)])
            raise


@caught_by("test_setup_fails_half_way", "memory of a failed setup")
class LeaksMemoryOnFailure(Good):
    """Native memory that is not in p.state yet when the next line fails."""

    def send_setup(self, p: SendParams) -> None:
        libc = ctypes.CDLL(None)
        libc.malloc.restype = ctypes.c_void_p
        address = libc.malloc(ctypes.c_size_t(40 << 20))  # glibc maps what is larger than 32 MiB
        p.state = libc, ctypes.c_void_p(address)

    def send_cleanup(self, p: SendParams) -> None:
        if p.state is not None:
            libc, address = p.state
            p.state = None
            libc.free(address)


@caught_by("test_errors_release_memory", "cffi view")
class ErrorHoldsView(Good):
    """The view of the payload is a local of the frame that raises."""

    def recv(self, p: RecvParams) -> None:
        import zstandard._cffi  # type: ignore[import-not-found]

        view = zstandard._cffi.ffi.from_buffer(p.payload)
        assert len(view) == len(p.payload)
        super().recv(p)


@caught_by("test_errors_release_memory", "let")
class KeepsError(Good):
    """The error, and with its traceback the pages, for a later message."""

    kept: ClassVar[list[BaseException]] = []

    def recv(self, p: RecvParams) -> None:
        try:
            super().recv(p)
        except CodecError as e:
            self.kept.append(e)
            raise


def _address(view: memoryview) -> int:
    import numpy as np

    return int(np.frombuffer(view, np.uint8).ctypes.data)


@caught_by("test_guard_pages", "no memory but its own")
class ReadsPastPage(Good):
    """A native match finder that looks eight bytes ahead."""

    def send_prepare(self, p: SendParams) -> None:
        for page in p.pages:
            ctypes.string_at(_address(page), len(page) + 8)
        super().send_prepare(p)


@caught_by("test_guard_pages", "no memory but its own")
class ReadsPastPayload(Good):
    """A native decoder that reads eight bytes at a time."""

    def recv(self, p: RecvParams) -> None:
        ctypes.string_at(_address(p.payload), len(p.payload) + 8)
        super().recv(p)


def _seed() -> bytes:
    """Eight bytes that are this process's own: so wide that two processes never have the same."""
    return hash("page").to_bytes(8, "big", signed=True)


def _masked(data: bytes) -> bytes:
    mask = int.from_bytes(_seed() * (len(data) // 8))
    return (int.from_bytes(data) ^ mask).to_bytes(len(data))


@caught_by("test_other_process", "decodes to exactly")
class NeedsSameProcess(Good):
    def send_prepare(self, p: SendParams) -> None:
        p.iov.append(encode(_masked(bytes(page)) for page in p.pages))

    def recv(self, p: RecvParams) -> None:
        super().recv(p)
        for page in p.pages:
            page[:] = _masked(bytes(page))


@caught_by("test_other_process", "deterministic=True")
class DependsOnHashSeed(Good):
    """Says in the payload what its process's hashes made it do."""

    def send_prepare(self, p: SendParams) -> None:
        seed = _seed()
        p.iov.append(seed + encode(_keyed(bytes(page), seed[0]) for page in p.pages))

    def recv(self, p: RecvParams) -> None:
        if len(p.payload) < 8:
            raise CodecError("too short")
        decode(p.payload[8:], p.pages)
        for page in p.pages:
            page[:] = _keyed(bytes(page), p.payload[0])


@caught_by("test_leaves_nothing", "processes after")
class LeavesProcess(Good):
    def send_setup(self, p: SendParams) -> None:
        void = subprocess.DEVNULL
        self.__dict__["child"] = subprocess.Popen(["sleep", "60"], stdin=void, stdout=void, stderr=void)


@caught_by("test_leaves_nothing", "files in the temporary folder")
class LeavesFile(Good):
    def recv_setup(self, p: RecvParams) -> None:
        fd, path = tempfile.mkstemp()
        os.close(fd)
        p.state = pathlib.Path(path)


@caught_by("test_leaves_nothing", "maps after")
class LeavesMap(Good):
    maps: ClassVar[list[mmap.mmap]] = []

    def recv_setup(self, p: RecvParams) -> None:
        self.maps.append(mmap.mmap(-1, 4096, prot=mmap.PROT_READ if len(self.maps) % 2 else mmap.PROT_WRITE))


@caught_by("test_options_unchanged", "options never change")
class ChangesOptions(Good):
    Options = _Keyed
    options: _Keyed

    def send_prepare(self, p: SendParams) -> None:
        object.__setattr__(self.options, "key", 7)
        super().send_prepare(p)


@caught_by("test_stale_bytes", "freed memory")
class SendsStaleBytes(Good):
    """Sends its whole buffer, of which the packet's bytes are the beginning."""

    def __init__(self, options: MethodOptions | None = None) -> None:
        super().__init__(options)
        self.lock, self.buffer = threading.Lock(), bytearray(1 << 19)

    def send_prepare(self, p: SendParams) -> None:
        data = encode(bytes(page) for page in p.pages)
        with self.lock:
            raw = p.pages.gather()
            self.buffer[: len(raw)] = raw
            tail = bytes(self.buffer[len(raw) : len(raw) + 64])
        p.iov.append(struct.pack("<II", len(data), len(tail)) + data + tail)

    def recv(self, p: RecvParams) -> None:
        if len(p.payload) < 8:
            raise CodecError("short")
        size, tail = struct.unpack_from("<II", p.payload)
        if 8 + size + tail != len(p.payload):
            raise CodecError("lengths")
        decode(p.payload[8 : 8 + size], p.pages)


@caught_by("test_hostile_payloads", "takes no longer")
class CpuBomb(Good):
    """Counts as far as a payload says."""

    def recv(self, p: RecvParams) -> None:
        if bytes(p.payload[:4]) == b"\xff\xff\xff\xff":
            end = time.process_time() + 3.0
            while time.process_time() < end:
                pass
        super().recv(p)


@caught_by("test_hostile_payloads", "not exactly its packet's")
class ZeroesLargePagesOnError(Good):
    def recv(self, p: RecvParams) -> None:
        try:
            super().recv(p)
        except CodecError:
            if p.pages.page_size < 65536:
                raise
            p.pages.scatter(bytes(p.pages.nbytes))


@caught_by("test_abort", "stops for p.abort")
class AbortsLateWithWrongError(Good):
    """Right if it is told before it begins."""

    def send_prepare(self, p: SendParams) -> None:
        was = p.abort[0]
        super().send_prepare(p)
        if p.abort[0] and not was:
            raise TimeoutError("device")


@caught_by("test_channels_in_threads", "")
class SharesRecvScratch(Good):
    """One buffer for all channels at the receiver, at large pages only."""

    def __init__(self, options: MethodOptions | None = None) -> None:
        super().__init__(options)
        self.scratch = bytearray(1 << 19)

    def recv(self, p: RecvParams) -> None:
        n, size = p.pages.nbytes, p.pages.page_size
        if size < 65536:
            super().recv(p)
            return
        view = memoryview(self.scratch)
        decode(p.payload, [view[i : i + size] for i in range(0, n, size)])
        zlib.crc32(view)  # gives the GIL away
        p.pages.scatter(view[:n])


@caught_by("test_live_pages", "not written during send_prepare")
class ReadsLargePagesTwice(ReadsTwice):
    def send_prepare(self, p: SendParams) -> None:
        if p.pages.page_size == 65536:
            super().send_prepare(p)
        else:
            Good.send_prepare(self, p)
