"""Hooks in native code, in a process of their own: ``python -m multifd.testing.native CASE SPEC``; see `child`.

An end calls its hook as the packet pump does: by its address, with addresses, and without the interpreter lock; what it
declines goes by the hook in Python. No compiler and no pump is needed.
"""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cffi
import numpy as np

from multifd.method import CodecError, MultifdMethods, NativeHook, RecvParams, SendParams, native_hook
from multifd.pages import Geometry, Memory, Pages
from multifd.registry import load_method
from multifd.testing import hostile
from multifd.testing.child import tell
from multifd.testing.fence import Fence, fenced_pages
from multifd.testing.guest import send_live
from multifd.testing.harness import (
    Broken,
    RecvEnd,
    Section,
    SendEnd,
    check_equal,
    is_refusal,
    round_trip,
    show,
)
from multifd.testing.strategies import PACKET_KINDS, PAGE_SIZES, packet

DECLINED = -1
"""MULTIFD_NATIVE_DECLINED of multifd/pump/native.h."""
CHANNELS = 4
DEADLINE_S = 60.0
"""For channels at the same time, which take less than a second."""
LIVE_PACKETS = 300
"""The hook in Python is given more."""
HISTORIES = 3
"""Mixtures of native and Python packets that a channel is led through."""

_FFI = cffi.FFI()
_FFI.cdef("""
typedef int64_t (*multifd_native_send)(void *, const uint8_t *const *, uint32_t, uint8_t *, uint64_t);
typedef int64_t (*multifd_native_recv)(void *, const uint8_t *, uint64_t, uint8_t *const *, uint32_t);
typedef struct { void *base; size_t length; } piece;
typedef int64_t (*multifd_native_gather)(void *, const uint8_t *const *, uint32_t, uint8_t *, uint64_t, piece *, uint32_t);
""")


class _Native:
    """What both ends have in common."""

    hook: NativeHook | None = None
    is_native = True
    """Whether the next packets go by the hook in native code."""
    taken = 0
    """Packets that it did not decline."""

    def settle(self) -> None:
        """Let the hook count."""
        if self.hook is not None:
            self.hook.settle()


class NativeSendEnd(_Native, SendEnd):
    """A source's end whose packets go by the hook in native code."""

    def __init__(self, method: MultifdMethods, page_size: int = 4096, channel: int = 0) -> None:
        super().__init__(method, page_size, channel)
        self.out = Fence(self.bound)

    def setup(self) -> None:
        """Run send_setup and ask for the hook."""
        super().setup()
        self.hook = native_hook(self.method, "native_send", self.p)

    def cleanup(self) -> None:
        """Run send_cleanup; the hook is not called any more."""
        self.hook = None
        super().cleanup()

    def _send_prepare(self, p: SendParams) -> None:
        if self.hook is None or not self.is_native:
            super()._send_prepare(p)
            return
        if self._gather(p):
            self.taken += 1
            return
        pages, p.pages = p.pages, self.no_pages  # it has to do without
        pointers = _pointers(pages)
        function = _FFI.cast("multifd_native_send", self.hook.function)
        out = _FFI.cast("uint8_t *", _address(self.out.view))
        result = function(_FFI.cast("void *", self.hook.state), pointers, len(pages), out, self.bound)
        p.pages = pages
        if result == DECLINED:
            super()._send_prepare(p)
        elif result < 0:
            error = self.hook.explain(result)
            raise Broken(
                "a sender's hook takes every packet, or declines it",
                Section.NATIVE,
                f"{self.where}: {result}, {error!r}",
            ) from error
        elif not 0 < result <= self.bound:
            raise Broken(
                "a sender's hook gives the payload's bytes, from 1 to capacity",
                Section.NATIVE,
                f"{self.where}: {result} for {len(pages)} pages, capacity {self.bound}",
            )
        else:
            self.taken += 1
            p.iov.append(self.out.view[:result])

    def _gather(self, p: SendParams) -> bool:
        """Whether the hook that copies no page took the packet."""
        if self.hook is None or not self.hook.gather:
            return False
        room = 2 * len(p.pages) + 1
        pieces, pointers = _FFI.new("piece[]", room), _pointers(p.pages)
        function = _FFI.cast("multifd_native_gather", self.hook.gather)
        out, out_at = _FFI.cast("uint8_t *", _address(self.out.view)), _address(self.out.view)
        result = function(
            _FFI.cast("void *", self.hook.state), pointers, len(p.pages), out, self.bound, pieces, room
        )
        if result == DECLINED:
            return False
        known = [(out_at, self.out.view), *((_address(page), page) for page in p.pages.runs())]
        for piece in pieces[0 : max(result, 0)]:
            at, nbytes = int(_FFI.cast("uintptr_t", piece.base)), piece.length
            found = [view[at - a : at - a + nbytes] for a, view in known if a <= at and at + nbytes <= a + len(view)]
            if not found:
                raise Broken(
                    "pieces of a payload are parts of the packet's pages or of the hook's output",
                    Section.NATIVE,
                    f"{self.where}: {nbytes} bytes at {at:#x}",
                )
            p.iov.append(found[0])
        if not 0 < result <= room:
            raise Broken(
                "a sender's hook gives from 1 piece to as many as there is room for, or declines",
                Section.NATIVE,
                f"{self.where}: {result} for {len(p.pages)} pages, room for {room}",
            )
        return True


class NativeRecvEnd(_Native, RecvEnd):
    """A destination's end whose packets go by the hook in native code."""

    def setup(self) -> None:
        """Run recv_setup and ask for the hook."""
        super().setup()
        self.hook = native_hook(self.method, "native_recv", self.p)

    def cleanup(self) -> None:
        """Run recv_cleanup; the hook is not called any more."""
        self.hook = None
        super().cleanup()

    def _recv(self, p: RecvParams) -> None:
        if self.hook is None or not self.is_native or not len(p.payload):  # the pump leaves an empty one to Python
            super()._recv(p)
            return
        pages, payload = p.pages, p.payload
        p.pages, p.payload = self.no_pages, memoryview(b"")  # it has to do without
        function = _FFI.cast("multifd_native_recv", self.hook.function)
        source = _FFI.cast("uint8_t *", _address(payload))
        state = _FFI.cast("void *", self.hook.state)
        result = function(state, source, len(payload), _pointers(pages), len(pages))
        p.pages, p.payload = pages, payload
        if result == DECLINED:
            super()._recv(p)
            return
        self.taken += 1
        if result < 0:
            raise self.hook.explain(result)
        if result:
            raise Broken("a receiver's hook gives 0 or a negative number", Section.NATIVE, f"{self.where}: {result}")


def _address(view: memoryview) -> int:
    return int(np.frombuffer(view, np.uint8).ctypes.data)


def _pointers(pages: Pages) -> Any:
    return _FFI.new("uint8_t *[]", [_FFI.cast("uint8_t *", _address(page)) for page in pages])


def is_offered(method: MultifdMethods) -> tuple[bool, bool]:
    """Whether a channel has a sender's, a receiver's hook in native code here."""
    with NativeSendEnd(method) as send, NativeRecvEnd(method) as recv:
        return send.hook is not None, recv.hook is not None


def payloads(method: MultifdMethods) -> None:
    """Both hooks of an end give the same, each decodes the other's, at every page size and layout."""
    for page_size in PAGE_SIZES:
        full = Geometry.of(page_size).page_count
        python, native = SendEnd(method, page_size), NativeSendEnd(method, page_size)
        by_native, by_python = NativeRecvEnd(method, page_size), RecvEnd(method, page_size)
        with python, native, by_native, by_python:
            for number, kind in enumerate((*PACKET_KINDS, "mixed", "random")):
                count = full if number >= len(PACKET_KINDS) else (1, 3, full // 2 + 1)[number % 3]
                layout: Any = ("contiguous", "scattered")[number % 2]
                data, what = packet(kind, number, page_size, count), f"{count} pages of {page_size} bytes, {kind}"
                print(what, flush=True)
                expected = round_trip(python, by_native, data, layout, f"{what}, decoded by the native hook")
                got = round_trip(native, by_python, data, layout, f"{what}, encoded by the native hook")
                _check_payload(method, expected, got, native.where, what)
            _check_taken(native, by_native)


def _check_payload(method: MultifdMethods, expected: bytes, got: bytes, where: str, what: str) -> None:
    if method.capabilities.deterministic and expected != got:
        at = next((i for i, (a, b) in enumerate(zip(expected, got, strict=False)) if a != b), len(got))
        raise Broken(
            "a native hook makes the payload that the hook in Python makes of equal pages after equal history",
            Section.NATIVE,
            f"{where}, {what}: {len(expected)} bytes in Python, {len(got)} natively, different from byte {at} on: "
            f"{show(expected, at)} / {show(got, at)}",
        )


def _check_taken(*ends: NativeSendEnd | NativeRecvEnd) -> None:
    for end in ends:
        if end.hook is not None and not end.taken:
            raise Broken(
                "a native hook that is offered takes packets",
                Section.NATIVE,
                f"{end.where}: {type(end).__name__[6:-3].lower()}'s declined all of {end.packet}; offer None then",
            )


def mixtures(method: MultifdMethods) -> None:
    """One channel, some packets of which go by the native hooks and some by those in Python, counts as in Python."""
    kinds = list(PACKET_KINDS)
    contents = [packet(kinds[i % len(kinds)], i, 4096, 1 + i % 7) for i in range(40)]
    alone = [_run(method, contents, None) for _ in range(2)]
    for seed in range(HISTORIES):
        print(f"mixture {seed}", flush=True)
        got = _run(method, contents, random.Random(seed))
        for number, (a, b) in enumerate(zip(alone[0][0], got[0], strict=True)):
            _check_payload(method, a, b, f"method {method.name!r}, packet {number}", f"mixture {seed}")
        for side, first, second, mixed in zip(("sender", "receiver"), alone[0][1], alone[1][1], got[1], strict=True):
            # What differs between two runs in Python is chance, a time for example.
            steady = {key for key in first if method.capabilities.deterministic and first[key] == second.get(key)}
            wrong = {key: (first[key], mixed.get(key)) for key in steady if mixed.get(key) != first[key]}
            if first.keys() != mixed.keys() or wrong:
                raise Broken(
                    "settle leaves in p.counters what the hook in Python counts",
                    Section.NATIVE,
                    f"method {method.name!r}, {side}, {len(contents)} packets: {first} in Python, {mixed} in mixture",
                )


def _run(
    method: MultifdMethods, contents: list[bytes], rng: random.Random | None
) -> tuple[list[bytes], tuple[dict[str, int], dict[str, int]]]:
    """Payloads, and both ends' counters; without `rng` all goes by Python."""
    made = []
    with NativeSendEnd(method) as send, NativeRecvEnd(method) as recv:
        for data in contents:
            send.is_native, recv.is_native = (
                rng is not None and rng.random() < 0.6,
                rng is not None and rng.random() < 0.6,
            )
            made.append(round_trip(send, recv, data))
            if rng is not None and rng.random() < 0.4:  # a call of the pump may have been several packets
                send.settle()
                recv.settle()
        send.settle()
        recv.settle()
        counters = dict(send.p.counters), dict(recv.p.counters)
    return made, counters


def refusals(method: MultifdMethods) -> None:
    """Whatever a peer sends: the pages or the exception that the hook in Python gives."""
    for page_size, kinds in ((4096, ("text", "mixed")), (65536, ("mixed",))):
        for lie in hostile.lies(method, page_size, kinds):
            print(lie.case, flush=True)
            expected, got = (_outcome(end(method, page_size), lie) for end in (RecvEnd, NativeRecvEnd))
            if expected != got:
                python, native = (v if isinstance(v, str) else f"pages {show(v)}" for v in (expected, got))
                raise Broken(
                    "a native hook refuses and decodes exactly what recv does, and explains it by the same exception",
                    Section.NATIVE,
                    f"method {method.name!r}, {lie.count} pages of {page_size} bytes, payload of {len(lie.payload)} "
                    f"bytes {show(lie.payload)} ({lie.case}): in Python {python}; natively {native}",
                )


def _outcome(end: RecvEnd, lie: hostile.Lie) -> bytes | str:
    with end:
        for good in lie.history:
            end.unpack(good, hostile.COUNT)
        try:
            return end.receive(lie.payload, lie.count, "scattered")
        except CodecError as e:
            return f"{type(e).__name__}: {e}"


def bombs(method: MultifdMethods) -> None:
    """Payloads that decode to hundreds of times a packet."""
    hostile.limit_memory()
    hostile.bombs(method, NativeRecvEnd)


def guards(method: MultifdMethods) -> None:
    """Memory that ends where none may be touched, and that is gone when the hook has returned."""
    for page_size in PAGE_SIZES:
        full = Geometry.of(page_size).page_count
        with NativeSendEnd(method, page_size) as send, NativeRecvEnd(method, page_size) as recv:
            for number, (kind, count) in enumerate((("mixed", 1), ("text", 3), ("text", 3), ("random", full))):
                what = f"{count} pages of {page_size} bytes, {kind}"
                data, nbytes = packet(kind, 3, page_size, count), count * page_size
                memory, offsets, source = fenced_pages(data, page_size)
                target, _, room = fenced_pages(bytes(nbytes), page_size)
                scratch = Memory(bytearray(nbytes), page_size)
                send.out = Fence(send.bound)
                print(f"{what}: send", flush=True)
                send.prepare(Pages(memory, offsets, scratch))
                payload = Fence(len(joined := send.take()))
                payload.view[:] = joined
                if b"".join(memory.view[o : o + page_size] for o in offsets.tolist()) != data:
                    raise Broken("a native hook never writes to the source's pages", Section.NATIVE, f"{send.where}")
                print(f"{what}: recv", flush=True)
                recv.fill(Pages(target, offsets, scratch), payload.view.toreadonly())
                got = b"".join(target.view[o : o + page_size] for o in offsets.tolist())
                check_equal(data, got, page_size, send.where)
                send.p.pages, recv.p.pages, recv.p.payload = send.no_pages, recv.no_pages, memoryview(b"")
                send.p.iov.clear()
                for fence in (source, room, payload, send.out):
                    fence.revoke()
                print(f"{what}: after its memory is gone", flush=True)
                if number % 2:
                    send.settle()
                    recv.settle()
            print("cleanup after all memory is gone", flush=True)


def live(method: MultifdMethods) -> None:
    """Half of the pages are rewritten by another process meanwhile: the others decode exactly."""
    with NativeSendEnd(method) as send, RecvEnd(method) as recv:
        send_live(send, recv, "scattered", Path(), LIVE_PACKETS)


def threads(method: MultifdMethods) -> None:
    """Channels at the same time, through one instance."""
    errors: list[BaseException] = []
    start = threading.Barrier(CHANNELS)

    def run(channel: int) -> None:
        try:
            with NativeSendEnd(method, 4096, channel) as send, NativeRecvEnd(method, 4096, channel) as recv:
                data = [packet(kind, channel, 4096, 16) for kind in PACKET_KINDS]
                start.wait(DEADLINE_S)
                for _ in range(2):
                    for pages in data:
                        round_trip(send, recv, pages)
        except BaseException as e:
            errors.append(e)
            start.abort()

    _join([threading.Thread(target=run, args=(i,), daemon=True) for i in range(CHANNELS)], method)
    if errors:
        raise next((e for e in errors if not isinstance(e, threading.BrokenBarrierError)), errors[0])


def abort(method: MultifdMethods) -> None:
    """With p.abort set, a hook comes back, and an error of it is one of the contract."""
    with SendEnd(method) as source:
        payload = source.pack(packet("mixed", 2, 4096, 32))
    wrong: list[tuple[str, BaseException]] = []

    def run() -> None:
        with NativeSendEnd(method) as send, NativeRecvEnd(method) as recv:
            send.p.abort[0] = recv.p.abort[0] = 1
            send.p.pages = send.place(packet("mixed", 2, 4096, 32))
            recv.p.pages, recv.p.payload = recv.place(bytes(32 * 4096)), memoryview(payload)
            hooks: tuple[tuple[str, Callable[[], None]], ...] = (
                ("native_send", lambda: send._send_prepare(send.p)),
                ("native_recv", lambda: recv._recv(recv.p)),
            )
            for name, hook in hooks:
                try:
                    hook()
                except Exception as e:
                    error = e.__cause__ if isinstance(e, Broken) and e.__cause__ is not None else e
                    if not is_refusal(error):
                        wrong.append((name, error))

    _join([threading.Thread(target=run, daemon=True)], method)
    for name, error in wrong:
        raise Broken(
            "a hook that stops for p.abort is explained by an error of multifd.errors",
            Section.NATIVE,
            f"method {method.name!r}: {name}'s hook: {error!r}",
        )


def _join(running: list[threading.Thread], method: MultifdMethods) -> None:
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(DEADLINE_S)
    if any(thread.is_alive() for thread in running):
        raise Broken(
            "every native hook comes back, and one that can wait polls p.abort",
            Section.NATIVE,
            f"method {method.name!r}: not after {DEADLINE_S:.0f} s",
        )


CASES: dict[str, Callable[[MultifdMethods], None]] = {
    "payloads": payloads,
    "mixtures": mixtures,
    "refusals": refusals,
    "bombs": bombs,
    "guards": guards,
    "live": live,
    "threads": threads,
    "abort": abort,
}

if __name__ == "__main__":
    tell(lambda: CASES[sys.argv[1]](load_method(sys.argv[2])))
