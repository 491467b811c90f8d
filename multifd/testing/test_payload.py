"""What goes in comes out: every size, layout and source, long sequences, and the capabilities claimed."""

from __future__ import annotations

import mmap
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from multifd.method import MAX_PAYLOAD, CodecError
from multifd.pages import Buffer, Geometry, Memory, Pages
from multifd.registry import load_method
from multifd.testing.harness import Broken, RecvEnd, Section, SendEnd, check_equal, promised, round_trip, show
from multifd.testing.strategies import PACKET_KINDS, PAGE_SIZES, packet


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_round_trip(multifd_method: str, page_size: int) -> None:
    """Every kind of page, 1 page to a full packet, contiguous and scattered, decodes to what was sent."""
    method = load_method(multifd_method)
    full = Geometry.of(page_size).page_count
    with SendEnd(method, page_size) as send, RecvEnd(method, page_size) as recv:
        for kind in PACKET_KINDS:
            for count in (1, 2, full // 2 + 1):
                round_trip(send, recv, packet(kind, count, page_size, count), "scattered", f"{count} pages {kind}")
            round_trip(send, recv, packet(kind, 0, page_size, 1), "contiguous", f"1 page {kind}")
        for kind in ("zero", "mixed", "random"):
            round_trip(send, recv, packet(kind, 1, page_size, full), "contiguous", f"full packet {kind}")
            round_trip(send, recv, packet(kind, 2, page_size, full), "scattered", f"full packet {kind}, scattered")


def test_sequence(multifd_method: str) -> None:
    """Thousands of packets on one channel, whose source memory is used again for each."""
    method = load_method(multifd_method)
    rng = random.Random(7)
    pool = b"".join(packet(kind, 3, 4096, 8) for kind in PACKET_KINDS)
    with SendEnd(method) as send, RecvEnd(method) as recv:
        memory = Memory(bytearray(8 * 4096), 4096)
        for number in range(2500):
            count = rng.choice((1, 1, 1, 2, 3, 8))
            start = rng.randrange(len(pool) // 4096 - count) * 4096
            data = pool[start : start + count * 4096]
            memory.view[: len(data)] = data
            send.prepare(Pages(memory, np.arange(count, dtype=np.int64) * 4096, send.scratch))
            payload = send.take()
            check_equal(data, recv.unpack(payload, count), 4096, f"{send.where} of a sequence, number {number}")


@pytest.mark.parametrize("kind", ["bytes", "bytearray", "memoryview", "mmap", "read-only mmap"])
def test_sources(multifd_method: str, kind: str, tmp_path: Path) -> None:
    """Pages in memory of any kind, also what cannot be written."""
    method = load_method(multifd_method)
    data = packet("mixed", 5, 4096, 16)
    path = tmp_path / "pages"
    path.write_bytes(data)
    with path.open("r+b") as file:
        sources: dict[str, Callable[[], Buffer]] = {
            "bytes": lambda: data,
            "bytearray": lambda: bytearray(data),
            "memoryview": lambda: memoryview(bytearray(b"12345678" + data))[8:],
            "mmap": lambda: memoryview(mmap.mmap(file.fileno(), len(data))),
            "read-only mmap": lambda: memoryview(mmap.mmap(file.fileno(), len(data), access=mmap.ACCESS_READ)),
        }
        memory = Memory(sources[kind](), 4096)
        offsets = np.array([0, 4096, 3 * 4096, 9 * 4096, 8 * 4096], np.int64)
        wanted = b"".join(data[o : o + 4096] for o in offsets.tolist())
        with SendEnd(method) as send, RecvEnd(method) as recv:
            for _ in range(3):
                send.prepare(Pages(memory, offsets, send.scratch))
                got = recv.unpack(send.take(), len(offsets))
                check_equal(wanted, got, 4096, f"{send.where}, pages in {kind}")


def test_source_unchanged(multifd_method: str) -> None:
    """send_prepare reads the guest's memory and never writes to it."""
    method = load_method(multifd_method)
    with SendEnd(method) as send:
        for kind in PACKET_KINDS:
            data = packet(kind, 6, 4096, 9)
            pages = send.place(data, "scattered")
            send.prepare(pages)
            if b"".join(pages) != data:
                raise Broken("send_prepare never writes to the source's memory", Section.LIVE, f"{send.where}: {kind}")


def test_payload_bound(multifd_method: str) -> None:
    """No payload exceeds max_payload, least of all that of a full packet that does not compress."""
    method = load_method(multifd_method)
    for page_size in PAGE_SIZES:
        full = Geometry.of(page_size).page_count
        with SendEnd(method, page_size) as send:
            for i, kind in enumerate(("random", "zero", "random", "text", "code", "random", "random")):
                send.pack(packet(kind, i, page_size, full))


def test_capabilities_are_possible(multifd_method: str) -> None:
    """The claims are of the right types, within the wire's limits, and do not contradict each other."""
    method = load_method(multifd_method)
    c = method.capabilities
    bad = [n for n in ("streaming", "page_independent", "deterministic", "verbatim") if type(getattr(c, n)) is not bool]
    if bad:
        raise Broken("capabilities are True or False", Section.CAPABILITIES, f"method {method.name!r}: {bad} are not")
    for page_size in PAGE_SIZES:
        bound = method.max_payload(Geometry.of(page_size))
        if type(bound) is not int or not 0 < bound <= MAX_PAYLOAD:
            raise Broken(
                "max_payload is from 1 byte to 1 MiB, QEMU's own limit",
                Section.CAPABILITIES,
                f"method {method.name!r}: {bound!r} for pages of {page_size} bytes",
            )
    if c.streaming and (c.page_independent or c.verbatim):
        raise Broken(
            "a method whose payloads need earlier ones is neither page_independent nor verbatim",
            Section.CAPABILITIES,
            f"method {method.name!r}: {c}; write streaming=False",
        )


def test_stateless_claim(multifd_method: str) -> None:
    """streaming=False: each payload decodes alone, in any order, at a fresh receiver."""
    method = load_method(multifd_method)
    promised(not method.capabilities.streaming, "streaming=False")
    with SendEnd(method) as send:
        sent = [packet(kind, i % 2, 4096, 4) for i, kind in enumerate((*PACKET_KINDS, *PACKET_KINDS, "text", "text"))]
        payloads = [send.pack(data) for data in sent]
    for number in reversed(range(len(sent))):
        with RecvEnd(method) as recv:
            try:
                got = recv.receive(payloads[number], 4)
            except CodecError as e:
                got = repr(e).encode()
        if got != sent[number]:
            raise Broken(
                "streaming=False: every payload decodes without the channel's earlier ones",
                Section.CAPABILITIES,
                f"method {method.name!r}, packet {number} alone at a fresh receiver: expected {show(sent[number])}, "
                f"got {show(got) if len(got) == len(sent[number]) else got.decode()}",
            )


def test_page_independent_claim(multifd_method: str) -> None:
    """page_independent=True: no page is encoded by another one, and damage to one stays in it."""
    method = load_method(multifd_method)
    promised(method.capabilities.page_independent, "page_independent=True")
    promise = "page_independent=True: each page decodes without the others of its packet"
    count, page_size = 16, 4096
    with SendEnd(method) as send:
        one = send.pack(packet("all-equal", 1, page_size, 1))
        many = send.pack(packet("all-equal", 1, page_size, count))
    if len(many) < 0.9 * count * (len(one) - 64):
        raise Broken(
            promise,
            Section.CAPABILITIES,
            f"method {method.name!r}: a page that does not compress takes {len(one)} bytes, {count} copies of it "
            f"{len(many)}: they are encoded by each other",
        )
    rng, spread, undetected = random.Random(3), 0, 0
    for kind in ("text", "one-bit", "random"):
        data = packet(kind, 4, page_size, count)
        with SendEnd(method) as send:
            payload = send.pack(data)
        for _ in range(60):
            at = rng.randrange(len(payload))
            damaged = payload[:at] + bytes([payload[at] ^ 1 << rng.randrange(8)]) + payload[at + 1 :]
            with RecvEnd(method) as recv:
                try:
                    got = recv.receive(damaged, count)
                except CodecError:
                    continue
            undetected += 1
            pages = range(0, len(data), page_size)
            spread += sum(got[i : i + page_size] != data[i : i + page_size] for i in pages) > 1
    if spread > undetected / 2:
        raise Broken(
            promise,
            Section.CAPABILITIES,
            f"method {method.name!r}: {undetected} payloads with one wrong bit decoded, in {spread} of them the "
            "wrong bit changed several pages",
        )


def test_deterministic_claim(multifd_method: str) -> None:
    """deterministic=True: equal pages after equal history give equal payloads."""
    method = load_method(multifd_method)
    promised(method.capabilities.deterministic, "deterministic=True")
    again = load_method(multifd_method)
    with SendEnd(method) as a, SendEnd(again) as b, SendEnd(method, channel=3) as c:
        for kind in PACKET_KINDS:
            data = packet(kind, 8, 4096, 5)
            payloads = [a.pack(data), b.pack(data, "scattered"), c.pack(data)]
            if len(set(payloads)) > 1:
                raise Broken(
                    "deterministic=True: equal pages after equal history give equal payloads",
                    Section.CAPABILITIES,
                    f"{a.where}, {kind}: payloads of {[len(p) for p in payloads]} bytes: "
                    + " / ".join(show(p) for p in payloads),
                )


def test_verbatim_claim(multifd_method: str) -> None:
    """verbatim=True: the payload is the pages' bytes, in order; the engine does not call recv then."""
    method = load_method(multifd_method)
    promised(method.capabilities.verbatim, "verbatim=True")
    with SendEnd(method) as send:
        for kind in PACKET_KINDS:
            data = packet(kind, 9, 4096, 5)
            payload = send.pack(data, "scattered")
            if payload != data:
                raise Broken(
                    "verbatim=True: the payload is the pages' bytes in order",
                    Section.CAPABILITIES,
                    f"{send.where}, {kind}: payload of {len(payload)} bytes {show(payload)}, "
                    f"pages of {len(data)} bytes {show(data)}",
                )
