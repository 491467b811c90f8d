"""Payloads that no sender made, given to recv in a process of their own: ``python -m multifd.testing.hostile SPEC``.

A native decoder may crash, hang or take all memory; the parent (`test_trust`) sees that and which case it
was. Every line on stdout is a case as it begins; the last is ``done``, or ``broken`` and the message as JSON.
"""

from __future__ import annotations

import contextlib
import random
import resource
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from multifd.method import PACKET_BYTES, CodecError, MultifdMethods
from multifd.pages import Geometry, Memory, Pages
from multifd.registry import load_method
from multifd.testing.child import tell
from multifd.testing.harness import Broken, RecvEnd, Section, SendEnd, show
from multifd.testing.strategies import PAGE_SIZES, packet

PAGE_SIZE = 4096
COUNT = 5
ROOM_BYTES = 512 << 20
"""Address space that the process may still take: a decoder that believes a length of 1 GiB fails."""
BOMB_BYTES = 256 << 20
"""What a bomb decodes to, if the format has room for it in a payload."""
WIDE_BYTES = 96 << 20
"""The same for one packet and for one page; the sender has to make it in one call."""
HELD_BYTES = 48 << 20
"""What decoding may hold at most: a packet, a payload, and history as large as zstd's largest by default (8 MiB),
each a few times over."""

EFFORT_S = 5.0
"""Processor time for one payload, given twice after a short history: an honest one takes milliseconds."""

_FORCED = (b"\xff\xff\xff\xff", b"\x3f\xff\xff\xff", b"\xff\xff\xff\x3f", b"\0\0\0\0")


def _damaged(payload: bytes, other: bytes, rng: random.Random) -> Iterator[tuple[str, bytes]]:
    """Variants of a payload that cannot be told to be wrong by their length alone."""
    size = len(payload)
    for at in sorted({*range(min(size, 24)), *(rng.randrange(size) for _ in range(24))}):
        bit = rng.randrange(8)
        yield f"bit {bit} of byte {at} flipped", payload[:at] + bytes([payload[at] ^ 1 << bit]) + payload[at + 1 :]
    for at in range(min(size - 4, 16)):
        for value in _FORCED:
            yield f"bytes {at} to {at + 3} set to {value.hex()}", payload[:at] + value + payload[at + 4 :]
    yield "another packet's payload", other
    middle = size // 2
    yield "its halves swapped", payload[middle:] + payload[:middle]


def _foreign(rng: random.Random, bound: int) -> Iterator[tuple[str, bytes]]:
    """What was never this method's payload."""
    for size in (1, 3, 100, 5000, COUNT * PAGE_SIZE - 1, bound):
        yield f"{size} random bytes", rng.randbytes(size)
        yield f"{size} zero bytes", bytes(size)
        yield f"{size} bytes of ff", b"\xff" * size
    yield "a zlib stream", zlib.compress(packet("text", 1, PAGE_SIZE, COUNT))
    yield "a gzip stream", zlib.compress(packet("text", 1, PAGE_SIZE, COUNT), wbits=31)


class _Judge:
    """Gives one payload after a history of good ones to two receivers whose pages hold different bytes."""

    def __init__(self, method: MultifdMethods, history: list[bytes], page_size: int) -> None:
        self._method, self._history, self._page_size = method, history, page_size

    def _attempt(self, payload: bytes, count: int, fill: int) -> bytes | None:
        """The pages' bytes, None if refused."""
        with RecvEnd(self._method, self._page_size) as recv:
            for good in self._history:
                recv.unpack(good, COUNT)
            try:
                return recv.receive(payload, count, "scattered", fill)
            except CodecError:
                return None

    def try_case(self, case: str, payload: bytes, count: int = COUNT, must_be: bytes | None = None) -> None:
        """Raises `Broken` unless the payload is refused, or fills every byte of the pages (with `must_be`)."""
        print(case, flush=True)
        begin = time.process_time()
        a, b = (self._attempt(payload, count, fill) for fill in (0xE7, 0x18))
        check_effort(self._method, case, time.process_time() - begin)
        where = f"method {self._method.name!r}, {count} pages, payload of {len(payload)} bytes {show(payload)} ({case})"
        if a != b:
            seen = "refused or accepted" if a is None or b is None else "left some of their bytes as they were"
            raise Broken(
                "recv raises CodecError or fills every byte of its pages",
                Section.ERRORS,
                f"{where}: depending on what the pages held before, it {seen}",
            )
        if a is not None and must_be is not None and a != must_be:
            size = self._page_size
            page = next(i for i in range(count) if a[i * size :][:size] != must_be[i * size :][:size])
            raise Broken(
                "recv raises CodecError for a payload that is not exactly its packet's",
                Section.ERRORS,
                f"{where}: it was accepted, and page {page} is {show(a[page * self._page_size :])}, "
                f"sent was {show(must_be[page * self._page_size :])}",
            )


def check_effort(method: MultifdMethods, case: str, seconds: float) -> None:
    """Raises `Broken` if a payload took more processor time than any honest one can."""
    if seconds > EFFORT_S:
        raise Broken(
            "recv takes no longer for a payload that lies than a good one could",
            Section.ERRORS,
            f"method {method.name!r}, {case}: {seconds:.1f} s of processor time for a packet of a few pages",
        )


def damage(method: MultifdMethods) -> None:
    """Cut, extended, flipped, swapped, empty and foreign payloads, at every page size."""
    for page_size in PAGE_SIZES:
        _damage(method, page_size, ("text", "mixed", "almost-zero", "random") if page_size == PAGE_SIZE else ("mixed",))


def _damage(method: MultifdMethods, page_size: int, kinds: tuple[str, ...]) -> None:
    for lie in lies(method, page_size, kinds):
        _Judge(method, lie.history, page_size).try_case(lie.case, lie.payload, lie.count, lie.must_be)


@dataclass(frozen=True)
class Lie:
    """A payload that no sender made."""

    case: str
    """In words."""
    history: list[bytes]
    """Good payloads of `COUNT` pages that come before it on the channel."""
    payload: bytes
    count: int = COUNT
    """The pages that its packet says it has."""
    must_be: bytes | None = None
    """The pages' bytes if it is accepted; None: any."""


def lies(method: MultifdMethods, page_size: int, kinds: tuple[str, ...]) -> Iterator[Lie]:
    """Cut, extended, flipped, swapped, empty and foreign payloads.

    Args:
        method: whose payloads they look like.
        page_size: bytes.
        kinds: of pages, whose payloads are damaged.
    """
    rng = random.Random(11)
    for kind in kinds:
        with SendEnd(method, page_size) as send:
            contents = [packet(kind, seed, page_size, COUNT) for seed in range(3)]
            payloads = [send.pack(data) for data in contents]
        history, good, data = payloads[:2], payloads[2], contents[2]
        size = len(good)
        for keep in sorted({0, 1, 2, 3, 4, 5, size // 4, size // 2, size - 40, size - 8, size - 2, size - 1}):
            if 0 <= keep < size:
                yield Lie(f"{page_size}, {kind}: cut to {keep} of {size} bytes", history, good[:keep], must_be=data)
        for extra in (b"\0", b"\xff" * 7, good, rng.randbytes(300)):
            yield Lie(f"{page_size}, {kind}: extended by {len(extra)} bytes", history, good + extra, must_be=data)
        shorter = data[: (COUNT - 1) * page_size]
        yield Lie(f"{page_size}, {kind}: for one page less", history, good, COUNT - 1, shorter)
        yield Lie(f"{page_size}, {kind}: for one page more", history, good, COUNT + 1)
        for case, payload in _damaged(good, payloads[1], rng):
            yield Lie(f"{page_size}, {kind}: {case}", history, payload)
    for case, payload in _foreign(rng, method.max_payload(Geometry.of(page_size))):
        yield Lie(case, [], payload)


def bombs(method: MultifdMethods, end: type[RecvEnd] = RecvEnd) -> None:
    """Payloads within the bound that decode to hundreds of times a packet."""
    bound = method.max_payload(Geometry.of(PAGE_SIZE))
    for case, payload in _bombs(method, bound):
        print(case, flush=True)
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak: proc(5)
        before = _peak_bytes()
        for count in (1, COUNT):
            begin = time.process_time()
            with end(method) as recv, contextlib.suppress(CodecError):
                recv.receive(payload, count)
            check_effort(method, case, time.process_time() - begin)
        held = _peak_bytes() - before
        if held > HELD_BYTES:
            raise Broken(
                "recv never holds more than its bound while it decodes",
                Section.ERRORS,
                f"method {method.name!r}: {case}, {len(payload)} bytes: the process grew by {held >> 20} MiB",
            )


def _bombs(method: MultifdMethods, bound: int) -> Iterator[tuple[str, bytes]]:
    zeros = bytes(PACKET_BYTES)
    with SendEnd(method) as send:
        pages = send.place(zeros)
        parts, size = [], 0
        for _ in range(BOMB_BYTES // PACKET_BYTES):
            send.prepare(pages)
            parts.append(send.take())
            size += len(parts[-1])
            if size > bound:
                break
    yield f"{len(parts)} packets of zero pages in one payload", b"".join(parts)[:bound]
    # A packet, and a page, far beyond any geometry; a sender that refuses them need not be tried.
    for page_size, count in ((PAGE_SIZE, WIDE_BYTES // PAGE_SIZE), (WIDE_BYTES, 1)):
        wide = SendEnd(method)
        wide.p.geometry = Geometry(page_size, count)
        try:
            memory = Memory(bytearray(WIDE_BYTES), page_size)
            with wide:
                offsets = np.arange(count, dtype=np.int64) * page_size
                wide.prepare(Pages(memory, offsets, Memory(bytearray(WIDE_BYTES), page_size)))
                payload = wide.take()
        except (Broken, MemoryError):
            continue
        yield f"{count} zero pages of {page_size} bytes in one payload", payload


def _peak_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


def limit_memory() -> None:
    """Let this process have little more address space than it has now."""
    status = Path("/proc/self/status").read_text()
    now = int(status.partition("VmSize:")[2].split()[0]) << 10
    resource.setrlimit(resource.RLIMIT_AS, (now + ROOM_BYTES, resource.RLIM_INFINITY))


def main(attack: str, spec: str) -> None:
    """Run one attack, ``damage`` or ``bombs``, on one method."""
    method = load_method(spec)
    with SendEnd(method) as send, RecvEnd(method) as recv:  # imports what it needs
        recv.unpack(send.pack(packet("mixed", 0, PAGE_SIZE, COUNT)), COUNT)
    limit_memory()
    tell(lambda: {"damage": damage, "bombs": bombs}[attack](method))


if __name__ == "__main__":
    main(*sys.argv[1:])
