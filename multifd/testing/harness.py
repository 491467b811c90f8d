"""Both ends of a channel without an engine, and how a broken promise is told.

An end does what the engine does around a hook, and checks what the engine has to rely on. All
memory that a hook is given is followed or surrounded by guard pages.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from enum import StrEnum
from typing import Any, Literal, Self

import numpy as np
import pytest

from multifd.errors import MultifdError
from multifd.method import MAX_IOV, CodecError, MultifdMethods, RecvParams, SendParams, max_payload
from multifd.pages import Geometry, Memory, Offsets, Pages

GUIDE = "docs/write-a-method.md"

Layout = Literal["contiguous", "scattered"]


class Section(StrEnum):
    """The guide's sections that a failure points to."""

    STATE = "State and threads"
    BUFFERS = "Buffers and ownership"
    LIVE = "Live pages"
    NATIVE = "Native hooks"
    ERRORS = "Errors"
    OPTIONS = "Options"
    CAPABILITIES = "Capabilities"
    WIRE = "Wire codes and private names"
    VERSIONING = "Versioning"


class Broken(AssertionError):
    """A method broke a promise of the contract.

    Args:
        promise: what a method must do, as a sentence.
        section: of the guide.
        detail: what was seen: packet, page, bytes.
    """

    def __init__(self, promise: str, section: Section, detail: str) -> None:
        super().__init__(f"broken promise: {promise}\n  {detail}\n  guide: {GUIDE}, section {section.value!r}")


class Inconclusive(AssertionError):
    """The machine did not let a test see what it must see; nothing is proved either way."""


def show(data: bytes | memoryview, around: int = 0) -> str:
    """A few bytes in hexadecimal."""
    start = max(0, around - 4)
    return bytes(data[start : start + 12]).hex(" ")


def check_equal(sent: bytes, got: bytes, page_size: int, where: str) -> None:
    """Raises `Broken` with the first page and byte that differ."""
    if sent == got:
        return
    at = next((i for i, (a, b) in enumerate(zip(sent, got, strict=False)) if a != b), min(len(sent), len(got)))
    bad = sum(sent[i : i + page_size] != got[i : i + page_size] for i in range(0, max(len(sent), len(got)), page_size))
    raise Broken(
        "every page decodes to exactly the bytes that were sent",
        Section.BUFFERS,
        f"{where}: {bad} of {len(sent) // page_size} pages differ, first page {at // page_size} of {page_size} bytes "
        f"at its byte {at % page_size}: sent {show(sent, at)}, got {show(got, at)}",
    )


def offsets_of(count: int, layout: Layout, page_size: int) -> Offsets:
    """Where `count` pages lie in a memory of `2 * count + 1`, with at least a guard page on each side."""
    indexes = np.arange(count, dtype=np.int64)
    if layout == "contiguous":
        return (indexes + 1) * page_size
    return np.array(_scattered(count), np.int64) * page_size


@functools.cache
def _scattered(count: int) -> tuple[int, ...]:
    """Every second page of a memory, in another order."""
    return tuple(random.Random(count).sample(range(1, 2 * count, 2), count))


class _End:
    """What both ends have in common."""

    def __init__(self, method: MultifdMethods, page_size: int = 4096, channel: int = 0) -> None:
        self.method, self.geometry, self.channel = method, Geometry.of(page_size), channel
        self.packet = 0
        self.bound = max_payload(method, self.geometry)
        self.scratch = Memory(bytearray(page_size * self.geometry.page_count), page_size)
        self.no_pages = Pages(self.scratch, np.empty(0, np.int64), self.scratch)

    @property
    def where(self) -> str:
        """Method, channel and packet, for messages."""
        return f"method {self.method.name!r}, channel {self.channel}, packet {self.packet}"

    def place(self, data: bytes, layout: Layout = "contiguous") -> Pages:
        """The pages of `data` in fresh memory, with guard pages around them."""
        page_size = self.geometry.page_size
        count = len(data) // page_size
        memory = Memory(bytearray((2 * count + 1) * page_size), page_size)
        offsets = offsets_of(count, layout, page_size)
        memory.array[offsets // page_size] = np.frombuffer(data, np.uint8).reshape(count, page_size)
        return Pages(memory, offsets, self.scratch)

    def _hook(self, hook: Callable[[Any], None], p: SendParams | RecvParams) -> None:
        """Call a hook that has no reason to fail."""
        try:
            hook(p)
        except Broken:
            raise
        except Exception as e:
            raise Broken(
                f"{hook.__name__.lstrip('_')} of good input succeeds", Section.ERRORS, f"{self.where}: it raised {e!r}"
            ) from e
        for key, value in p.counters.items():
            if not (isinstance(key, str) and type(value) is int):
                raise Broken(
                    "counters map texts to whole numbers", Section.BUFFERS, f"{self.where}: {key!r}: {value!r}"
                )


class SendEnd(_End):
    """The source's end of a channel; as a context manager, set up and cleaned up."""

    def __init__(self, method: MultifdMethods, page_size: int = 4096, channel: int = 0) -> None:
        super().__init__(method, page_size, channel)
        self.p = SendParams(channel, self.geometry, bytearray(1), self.no_pages)

    def __enter__(self) -> Self:
        self.setup()
        return self

    def __exit__(self, *exc: object) -> None:
        self.cleanup()

    def setup(self) -> None:
        """Run send_setup."""
        self._hook(self.method.send_setup, self.p)

    def cleanup(self) -> None:
        """Run send_cleanup."""
        self._hook(self.method.send_cleanup, self.p)

    def prepare(self, pages: Pages) -> None:
        """Run send_prepare and check ``p.iov``, which stays."""
        p = self.p
        p.iov.clear()
        p.pages = pages
        self._hook(self._send_prepare, p)
        self._check_iov()

    def _send_prepare(self, p: SendParams) -> None:
        self.method.send_prepare(p)

    def take(self) -> bytes:
        """The payload in ``p.iov``, as the engine would write it now."""
        self.packet += 1
        return b"".join(self.p.iov)

    def pack(self, data: bytes, layout: Layout = "contiguous") -> bytes:
        """The payload of the pages of `data`."""
        self.prepare(self.place(data, layout))
        return self.take()

    def _check_iov(self) -> None:
        iov, bound = self.p.iov, self.bound
        for i, item in enumerate(iov):
            good = isinstance(item, bytes | bytearray | memoryview)
            if not good or (isinstance(item, memoryview) and (item.itemsize != 1 or not item.c_contiguous)):
                raise Broken(
                    "p.iov holds bytes, bytearrays and contiguous memoryviews of bytes",
                    Section.BUFFERS,
                    f"{self.where}: buffer {i} is {item!r}",
                )
        total = sum(memoryview(item).nbytes for item in iov)
        if total > bound:
            raise Broken(
                "no payload is longer than max_payload(geometry)",
                Section.CAPABILITIES,
                f"{self.where}: {total} bytes for {len(self.p.pages)} pages of {self.geometry.page_size}, "
                f"max_payload is {bound}",
            )
        if not total > 0 or len(iov) > MAX_IOV:
            raise Broken(
                f"a payload has at least one byte, in at most {MAX_IOV} buffers",
                Section.BUFFERS,
                f"{self.where}: {total} bytes in {len(iov)} buffers for {len(self.p.pages)} pages",
            )


class RecvEnd(_End):
    """The destination's end of a channel; as a context manager, set up and cleaned up."""

    def __init__(self, method: MultifdMethods, page_size: int = 4096, channel: int = 0) -> None:
        super().__init__(method, page_size, channel)
        self.p = RecvParams(channel, self.geometry, bytearray(1), self.no_pages)
        self._buffer = bytearray()

    def __enter__(self) -> Self:
        self.setup()
        return self

    def __exit__(self, *exc: object) -> None:
        self.cleanup()

    def setup(self) -> None:
        """Run recv_setup."""
        self._hook(self.method.recv_setup, self.p)

    def cleanup(self) -> None:
        """Run recv_cleanup."""
        self._hook(self.method.recv_cleanup, self.p)

    def receive(self, payload: bytes, count: int, layout: Layout = "contiguous", fill: int = 0xE7) -> bytes:
        """Give `payload` to recv, untrusted, and return the bytes of `count` pages that held `fill` before.

        Raises:
            CodecError: recv refused it.
            Broken: another error, or a byte outside the pages was written.
        """
        p, page_size = self.p, self.geometry.page_size
        offsets = offsets_of(count, layout, page_size)
        memory = Memory(bytearray([fill]) * ((2 * count + 1) * page_size), page_size)
        if len(self._buffer) < len(payload):
            self._buffer = bytearray(len(payload))
        buffer = memoryview(self._buffer)[: len(payload)]
        buffer[:] = payload
        p.pages, p.payload = Pages(memory, offsets, self.scratch), buffer.toreadonly()
        try:
            self._recv(p)
        except (CodecError, Broken):
            raise
        except Exception as e:
            raise Broken(
                "recv answers a payload that does not decode with CodecError, and with nothing else",
                Section.ERRORS,
                f"{self.where}: payload of {len(payload)} bytes {show(payload)}: it raised {type(e).__name__}: {e}",
            ) from e
        finally:
            # The engine reads the next packet into the same buffer.
            buffer[:] = b"\xa5" * len(payload)
            self._check_guards(memory, offsets, fill)
        self.packet += 1
        return memory.array[offsets // page_size].tobytes()

    def fill(self, pages: Pages, payload: memoryview) -> None:
        """Run recv for a good payload, into pages of the caller's."""
        self.p.pages, self.p.payload = pages, payload
        self._hook(self._recv, self.p)
        self.packet += 1

    def _recv(self, p: RecvParams) -> None:
        self.method.recv(p)

    def unpack(self, payload: bytes, count: int, layout: Layout = "contiguous") -> bytes:
        """The bytes of `count` pages from a payload that is good."""
        try:
            return self.receive(payload, count, layout)
        except CodecError as e:
            raise Broken(
                "recv decodes every payload that send_prepare made",
                Section.BUFFERS,
                f"{self.where}: {count} pages of {self.geometry.page_size} bytes, payload of {len(payload)} bytes "
                f"{show(payload)}: {e}",
            ) from e

    def _check_guards(self, memory: Memory, offsets: Offsets, fill: int) -> None:
        page_size = self.geometry.page_size
        is_guard = np.ones(len(memory.array), np.bool_)
        is_guard[offsets // page_size] = False
        written = is_guard & (memory.array != fill).any(axis=1)
        if written.any():
            page = int(written.argmax())
            byte = int((memory.array[page] != fill).argmax())
            raise Broken(
                "recv writes nothing outside its pages",
                Section.BUFFERS,
                f"{self.where}: byte {byte} of the guard page {page} (of {len(memory.array)}, {len(offsets)} of them "
                f"the packet's) is {memory.array[page, byte]:#04x}, was {fill:#04x}",
            )


def round_trip(send: SendEnd, recv: RecvEnd, data: bytes, layout: Layout = "contiguous", what: str = "") -> bytes:
    """Send the pages of `data`, compare what arrives, and return the payload."""
    page_size = send.geometry.page_size
    payload = send.pack(data, layout)
    other: Layout = "scattered" if layout == "contiguous" else "contiguous"
    where = f"{send.where} ({what or layout})"
    check_equal(data, recv.unpack(payload, len(data) // page_size, other), page_size, where)
    return payload


def promised(is_promised: bool, promise: str) -> None:
    """Skip the test of a promise that the method does not make."""
    if not is_promised:
        pytest.skip(f"the method does not promise {promise}")


def is_refusal(error: BaseException) -> bool:
    """Whether a hook may stop with this error once it has been told to abort."""
    return isinstance(error, MultifdError)
