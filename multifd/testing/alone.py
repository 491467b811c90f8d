"""Cases that need a process of their own: ``python -m multifd.testing.alone CASE SPEC``; see `child`."""

from __future__ import annotations

import gc
import mmap
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from multifd.method import CodecError
from multifd.pages import Geometry, Memory, Pages
from multifd.registry import load_method
from multifd.testing.child import tell
from multifd.testing.fence import Fence, fenced_pages
from multifd.testing.harness import Broken, RecvEnd, Section, SendEnd, check_equal
from multifd.testing.strategies import PACKET_KINDS, PAGE_SIZES, packet

LIVES = 20
SETTLE_S = 10.0
"""How long threads and processes that have been told to end may take for it."""


def guards(spec: str) -> None:
    """Pages, payload and scratch end where no memory may be touched, at both ends and at every page size."""
    method = load_method(spec)
    for page_size in PAGE_SIZES:
        full = Geometry.of(page_size).page_count
        with SendEnd(method, page_size) as send, RecvEnd(method, page_size) as recv:
            for kind, count in (("mixed", 1), ("text", 3), ("random", full), ("mixed", full)):
                print(f"{count} pages of {page_size} bytes, {kind}", flush=True)
                data, nbytes = packet(kind, 3, page_size, count), count * page_size
                memory, offsets, source = fenced_pages(data, page_size)
                scratch = Memory(Fence(nbytes).view, page_size)
                send.prepare(Pages(memory, offsets, scratch))
                joined = send.take()
                payload = Fence(len(joined))
                payload.view[:] = joined
                target, offsets, room = fenced_pages(bytes(nbytes), page_size)
                recv.fill(Pages(target, offsets, scratch), payload.view.toreadonly())
                got = b"".join(target.view[o : o + page_size] for o in offsets.tolist())
                check_equal(data, got, page_size, send.where)
                send.p.pages, recv.p.pages, recv.p.payload = send.no_pages, recv.no_pages, memoryview(b"")
                send.p.iov.clear()
                del source, room


def errors(spec: str) -> None:
    """An error of recv, kept in a cycle until the garbage collector comes, takes no page and no payload with it."""
    method = load_method(spec)
    gc.set_threshold(7, 2, 2)
    promise = "an error carries no cffi view away, and lets pages and payload go when it is collected"
    for number, kind in enumerate(("mixed", "text", "random")):
        with SendEnd(method) as send:
            good = send.pack(packet(kind, number, 4096, 4))
        for what, bad in _spoiled(good):
            print(f"{kind}: {what}", flush=True)
            target, payload = mmap.mmap(-1, 4 * 4096), mmap.mmap(-1, len(bad))
            payload[:] = bad
            before = _cffi_views()
            recv = RecvEnd(method)
            recv.setup()
            recv.p.pages = Pages(Memory(memoryview(target), 4096), np.arange(4, dtype=np.int64) * 4096, recv.scratch)
            recv.p.payload = memoryview(payload).toreadonly()
            kept: list[object] = []
            try:
                method.recv(recv.p)
            except CodecError as e:
                kept += [e, kept]
            except Exception as e:
                raise Broken("recv raises CodecError and nothing else", Section.ERRORS, f"{what}: {e!r}") from e
            views = _cffi_views() - before
            recv.p.pages, recv.p.payload = recv.no_pages, memoryview(b"")
            recv.cleanup()
            if kept and views > 0:
                raise Broken(
                    promise,
                    Section.ERRORS,
                    f"{recv.where}, {what}: {views} views by ffi.from_buffer live in the error's frames; when they are "
                    "collected CPython 3.11 crashes: use `with ffi.from_buffer(...)`",
                )
            del kept, recv
            gc.collect()
            for name, buffer in (("pages", target), ("payload", payload)):
                try:
                    buffer.close()
                except BufferError:
                    raise Broken(promise, Section.ERRORS, f"{kind}, {what}: the {name} are still referred to") from None


def _spoiled(good: bytes) -> Iterator[tuple[str, bytes]]:
    yield "cut in the middle", good[: len(good) // 2 + 1]
    yield "cut by one byte", good[:-1] or b"\0"
    for at in (0, len(good) // 3, len(good) // 2, len(good) - 1):
        yield f"byte {at} inverted", good[:at] + bytes([good[at] ^ 0xFF]) + good[at + 1 :]
    yield "ones", b"\xff" * len(good)
    yield "twice", good + good


def _cffi_views() -> int:
    """How many results of ffi.from_buffer there are that were not released; cffi gives their type no other name."""
    views = [o for o in gc.get_objects() if type(o).__name__ == "__CDataFromBuf"]
    return sum("RELEASED" not in repr(view) for view in views)


def leftovers(spec: str) -> None:
    """Channels come and go, also after a payload that does not decode: no thread, process, map or file stays."""
    method = load_method(spec)
    _live(spec, 2)
    gc.collect()
    before = _left()
    _live(spec, LIVES)
    del method
    gc.collect()
    deadline, after = time.monotonic() + SETTLE_S, _left()
    while any(after[k] > before[k] for k in ("threads", "processes")) and time.monotonic() < deadline:
        time.sleep(0.02)
        after = _left()
    for what, number in after.items():
        # the allocator's own maps come and go
        if number > before[what] + (LIVES // 2 if what == "maps" else 0):
            raise Broken(
                "cleanup releases everything: threads, processes, descriptors, maps, files",
                Section.STATE,
                f"method {spec!r}: {number} {what} after {LIVES} channels at each end, {before[what]} before",
            )


def _live(spec: str, count: int) -> None:
    for number in range(count):
        method = load_method(spec)
        with SendEnd(method) as send, RecvEnd(method) as recv:
            data = packet("mixed", number, 4096, 4)
            check_equal(data, recv.unpack(send.pack(data), 4), 4096, send.where)
            try:
                recv.receive(b"\xff" * 64, 4)
            except CodecError:
                continue


def _left() -> dict[str, int]:
    tasks = list(Path("/proc/self/task").iterdir())
    children = sum(len((task / "children").read_text().split()) for task in tasks if (task / "children").exists())
    with open("/proc/self/maps") as maps:
        lines = sum(1 for _ in maps)
    return {
        "threads": threading.active_count(),
        "processes": children,
        "descriptors": len(os.listdir("/proc/self/fd")),
        "maps": lines,
        "files in the temporary folder": sum(len(files) for _, _, files in os.walk(".")),
    }


def payloads(spec: str) -> None:
    """Print what this process makes of known packets, in hexadecimal."""
    method = load_method(spec)
    with SendEnd(method) as send:
        for kind in PACKET_KINDS:
            print(send.pack(packet(kind, 21, 4096, 6)).hex())


CASES = {"guards": guards, "errors": errors, "leftovers": leftovers, "payloads": payloads}

if __name__ == "__main__":
    tell(lambda: CASES[sys.argv[1]](sys.argv[2]))
