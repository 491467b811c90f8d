"""Hooks in native code, in a process of their own: ``python -m multifd.testing.native CASE SPEC``; see `child`."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from multifd.method import CodecError, MultifdMethods
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
from multifd.testing.native_ends import NativeRecvEnd, NativeSendEnd
from multifd.testing.strategies import PACKET_KINDS, PAGE_SIZES, packet

CHANNELS = 4
DEADLINE_S = 60.0
"""For channels at the same time, which take less than a second."""
LIVE_PACKETS = 300
"""The hook in Python is given more."""
HISTORIES = 3
"""Mixtures of native and Python packets that a channel is led through."""


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
