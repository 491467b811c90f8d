"""A channel's state and buffers: independence, ownership, setup and cleanup, growth, abort."""

from __future__ import annotations

import contextlib
import functools
import gc
import mmap
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

from multifd.method import CodecError, MultifdMethods
from multifd.pages import Memory, Pages
from multifd.registry import load_method
from multifd.testing.harness import Broken, RecvEnd, Section, SendEnd, check_equal, is_refusal, round_trip, show
from multifd.testing.strategies import PACKET_KINDS, packet

DEADLINE_S = 30.0
"""How long a hook that has been told to stop may take, and threads to finish what takes them a second."""

_SWITCH_S = 1e-5
"""Python's is 5 ms, in which a short hook runs undisturbed."""

GROWTH_BYTES = 4 << 20
"""Growth of the process over `SETUPS` setups that cannot be the allocator's noise."""
SETUPS = 1000
FAILURES = 300
FAILURES_BYTES = 96 << 20
"""Growth in address space over `FAILURES` failed set-ups: less than half a megabyte for each."""
ABORT_LINES = 60
"""Lines of a hook at which the abort comes."""


def test_channels_interleaved(multifd_method: str) -> None:
    """Channels take turns, each with its own pages; none sees another's state."""
    sender, receiver = load_method(multifd_method), load_method(multifd_method)
    ends = [(SendEnd(sender, channel=i), RecvEnd(receiver, channel=i)) for i in range(3)]
    for send, recv in ends:
        send.setup()
        recv.setup()
    kinds = list(PACKET_KINDS)
    for number in range(60):
        for i, (send, recv) in enumerate(ends):
            if (number + i) % 3:  # not in step
                round_trip(send, recv, packet(kinds[(number * 5 + i) % len(kinds)], number + i, 4096, 1 + i))
        if number == 30:  # one channel ends, the others go on
            ends[0][0].cleanup()
            ends[0][1].cleanup()
            del ends[0]
    for send, recv in ends:
        send.cleanup()
        recv.cleanup()


@pytest.mark.parametrize("page_size", [4096, 65536])
def test_channels_in_threads(multifd_method: str, page_size: int) -> None:
    """Many channels at once, each in its own threads, through one instance; threads change as often as they can."""
    sender, receiver = load_method(multifd_method), load_method(multifd_method)
    errors: list[BaseException] = []
    start = threading.Barrier(6)

    def run(i: int) -> None:
        try:
            with SendEnd(sender, page_size, i) as send, RecvEnd(receiver, page_size, i) as recv:
                data = [packet(kind, i, page_size, (1 << 17) // page_size) for kind in PACKET_KINDS]
                start.wait(DEADLINE_S)
                for _ in range(4):
                    for pages in data:
                        round_trip(send, recv, pages)
        except BaseException as e:
            errors.append(e)
            start.abort()

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(6)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_S)
    try:
        for thread in threads:
            thread.start()
        _join(threads, load_method(multifd_method))
    finally:
        sys.setswitchinterval(interval)
    if errors:
        raise next((e for e in errors if not isinstance(e, threading.BrokenBarrierError)), errors[0])


def test_iov_untouched(multifd_method: str) -> None:
    """What p.iov holds stays as it is until the next hook of this channel, whatever other channels do."""
    method = load_method(multifd_method)
    first, other = SendEnd(method, channel=0), SendEnd(method, channel=1)
    with first, other, RecvEnd(method) as recv:
        for number, kind in enumerate((*PACKET_KINDS, *PACKET_KINDS)):
            data = packet(kind, number, 4096, 6)
            first.prepare(first.place(data))
            before = [bytes(item) for item in first.p.iov]
            for _ in range(2):
                other.pack(packet("mixed", number + 100, 4096, 9))
            gc.collect(0)
            after = [bytes(item) for item in first.p.iov]
            for i, (a, b) in enumerate(zip(before, after, strict=True)):
                if a != b:
                    raise Broken(
                        "buffers in p.iov stay untouched until the next hook of their channel",
                        Section.BUFFERS,
                        f"{first.where}: buffer {i} of {len(a)} bytes was {show(a)}, became {show(b)} while another "
                        "channel's hooks ran",
                    )
            check_equal(data, recv.unpack(first.take(), 6), 4096, first.where)


def test_pages_not_kept(multifd_method: str) -> None:
    """Pages and payload are the engine's again when a hook returns: nothing refers to them."""
    method = load_method(multifd_method)
    send, recv = SendEnd(method), RecvEnd(method)
    with send, recv:
        for number, kind in enumerate(PACKET_KINDS):
            data = packet(kind, number, 4096, 4)
            source, target = mmap.mmap(-1, len(data)), mmap.mmap(-1, len(data))
            source[:] = data
            offsets = np.arange(4, dtype=np.int64) * 4096
            send.prepare(Pages(Memory(memoryview(source), 4096), offsets, send.scratch))
            payload = mmap.mmap(-1, 1 << 20)
            nbytes = len(joined := send.take())
            payload[:nbytes] = joined
            pages = Pages(Memory(memoryview(target), 4096), offsets, recv.scratch)
            recv.fill(pages, memoryview(payload)[:nbytes].toreadonly())
            del pages
            check_equal(data, target[:], 4096, send.where)
            send.p.iov.clear()
            send.p.pages, recv.p.pages, recv.p.payload = send.no_pages, recv.no_pages, memoryview(b"")
            gc.collect()
            for what, buffer in (("the source's pages", source), ("the payload", payload), ("recv's pages", target)):
                try:
                    buffer.close()
                except BufferError:
                    raise Broken(
                        "a hook keeps no view of pages or payload after it returned",
                        Section.BUFFERS,
                        f"{send.where}: {what} are still referred to, likely from p.state",
                    ) from None


@pytest.mark.parametrize("end", [SendEnd, RecvEnd])
def test_cleanup_twice(multifd_method: str, end: type[SendEnd] | type[RecvEnd]) -> None:
    """Cleanup without setup, after it, and again; then the channel can be set up anew."""
    method = load_method(multifd_method)
    channel = end(method)
    try:
        channel.cleanup()
        channel.setup()
        channel.cleanup()
        channel.cleanup()
        channel.setup()
        channel.cleanup()
    except Broken as e:
        raise Broken("cleanup is harmless without setup and when called again", Section.STATE, str(e)) from e
    if channel.p.state is not None:
        raise Broken("cleanup leaves p.state None", Section.STATE, f"{channel.where}: it is {channel.p.state!r}")


@pytest.mark.parametrize("end", [SendEnd, RecvEnd])
def test_setup_fails_half_way(multifd_method: str, end: type[SendEnd] | type[RecvEnd]) -> None:
    """Setup stops at any line (here with MemoryError), cleanup follows, and nothing is left behind."""
    method = load_method(multifd_method)
    hook = method.send_setup if end is SendEnd else method.recv_setup
    end(method).setup()  # imports what it needs
    gc.collect()
    threads, files = threading.active_count(), _open_files()
    for line in range(1, 500):
        channel = end(method)
        failed = _fail_at(line, method, hook, channel.p, _inject)
        try:
            channel.cleanup()
        except Broken as e:
            raise Broken(
                "cleanup releases what a failed setup left",
                Section.STATE,
                f"{channel.where}: {hook.__name__} failed at its line event {line}: {e}",
            ) from e
        if not failed:
            break
    gc.collect()
    _check_no_more(threads, files, method, f"after {line} failed calls of {hook.__name__} and their cleanups")
    before = _memory_bytes()
    for number in range(FAILURES):
        channel = end(method)
        _fail_at(1 + number % line, method, hook, channel.p, _inject)
        channel.cleanup()
    gc.collect()
    grown = _memory_bytes() - before
    if grown > FAILURES_BYTES:
        raise Broken(
            "cleanup releases the memory of a failed setup",
            Section.STATE,
            f"method {method.name!r}: {FAILURES} failed calls of {hook.__name__} left {grown} bytes",
        )


class _Injected(MemoryError):
    """The fault that `_fail_at` injects."""


def _inject() -> None:
    raise _Injected("injected by multifd's conformance kit")


def _fail_at(line: int, method: MultifdMethods, hook: Callable[[Any], None], p: Any, act: Callable[[], None]) -> bool:
    """Run a hook, and `act` at its n-th line of the plugin's own code; whether it got that far."""
    package = type(method).__module__.rpartition(".")[0] or type(method).__module__
    left = line

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal left
        name = frame.f_globals.get("__name__", "")
        if name != type(method).__module__ and not name.startswith(package + "."):
            return None
        if event == "line":
            left -= 1
            if not left:
                act()
        return trace

    previous = sys.gettrace()
    sys.settrace(trace)
    try:
        hook(p)
    except Exception as e:  # as the plugin passes it on
        if left > 0 or (act is not _inject and not isinstance(e, _Injected)):
            raise
    finally:
        sys.settrace(previous)
    return left <= 0


def test_no_growth(multifd_method: str) -> None:
    """Thousands of channels come and go: no thread, file descriptor, object or memory stays."""
    method = load_method(multifd_method)
    data = packet("text", 1, 4096, 1)

    def churn(count: int) -> None:
        for _ in range(count):
            with SendEnd(method) as send, RecvEnd(method) as recv:
                pages = send.place(data)
                send.prepare(pages)
                payload = send.take()
                recv.receive(payload, 1)
                with contextlib.suppress(CodecError):
                    recv.receive(payload[:-1] + b"\xff\xff", 1)

    churn(SETUPS // 2)
    gc.collect()
    threads, files = threading.active_count(), _open_files()
    objects, memory = len(gc.get_objects()), _resident_bytes()
    churn(SETUPS)
    gc.collect()
    _check_no_more(threads, files, method, f"after {SETUPS} setups and cleanups")
    more, grown = len(gc.get_objects()) - objects, _resident_bytes() - memory
    if more > SETUPS // 4 or grown > GROWTH_BYTES:
        raise Broken(
            "cleanup releases everything",
            Section.STATE,
            f"method {method.name!r}: {SETUPS} setups and cleanups left {more} objects and {grown} bytes",
        )


def _check_no_more(threads: int, files: int, method: MultifdMethods, when: str) -> None:
    deadline = time.monotonic() + 2.0
    for thread in set(threading.enumerate()) - {threading.current_thread(), threading.main_thread()}:
        if threading.active_count() > threads:
            thread.join(max(0.0, deadline - time.monotonic()))
    if threading.active_count() > threads:
        names = ", ".join(sorted({t.name for t in threading.enumerate()}))
        raise Broken(
            "cleanup ends every thread of the channel",
            Section.STATE,
            f"method {method.name!r}: {threading.active_count()} threads {when}, {threads} before: {names}",
        )
    if _open_files() > files:
        raise Broken(
            "cleanup closes every file descriptor of the channel",
            Section.STATE,
            f"method {method.name!r}: {_open_files()} descriptors {when}, {files} before",
        )


def test_abort(multifd_method: str) -> None:
    """With p.abort set, before a hook or at any line of it, it comes back with an error of the contract or none."""
    method = load_method(multifd_method)
    with SendEnd(method) as send:
        payload = send.pack(packet("mixed", 2, 4096, 32))
    errors: list[tuple[str, BaseException]] = []

    def run() -> None:
        a, b = SendEnd(method), RecvEnd(method)
        a.p.abort[0] = b.p.abort[0] = 1
        a.p.pages = a.place(packet("mixed", 2, 4096, 32))
        b.p.pages = b.place(bytes(32 * 4096))
        b.p.payload = memoryview(payload)
        hooks: list[tuple[Callable[[Any], None], Any]] = [
            (method.send_setup, a.p), (method.send_prepare, a.p), (method.send_cleanup, a.p),
            (method.recv_setup, b.p), (method.recv, b.p), (method.recv_cleanup, b.p),
        ]  # fmt: skip
        for hook, p in hooks:
            try:
                hook(p)
            except Exception as e:
                if not is_refusal(e):
                    errors.append((hook.__name__, e))

    def run_late() -> None:
        for end in (SendEnd, RecvEnd):
            for line in range(1, ABORT_LINES):
                channel = end(method)
                p: Any = channel.p
                channel.setup()
                p.pages = channel.place(packet("mixed", 2, 4096, 32))
                if isinstance(channel, RecvEnd):
                    p.payload = memoryview(payload)
                hook = method.send_prepare if isinstance(channel, SendEnd) else method.recv
                reached = True
                try:
                    reached = _fail_at(line, method, hook, p, functools.partial(p.abort.__setitem__, 0, 1))
                except Exception as e:
                    if not is_refusal(e):
                        errors.append((hook.__name__, e))
                channel.cleanup()
                if not reached:
                    break

    def run_all() -> None:
        run()
        run_late()

    thread = threading.Thread(target=run_all, daemon=True)
    thread.start()
    _join([thread], method)
    for name, error in errors:
        raise Broken(
            "a hook that stops for p.abort raises an error of multifd.errors",
            Section.STATE,
            f"method {method.name!r}: {name} raised {error!r}",
        ) from error


def _join(threads: list[threading.Thread], method: MultifdMethods) -> None:
    deadline = time.monotonic() + DEADLINE_S
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    if any(t.is_alive() for t in threads):
        frames = [sys._current_frames().get(t.ident or 0) for t in threads if t.is_alive()]
        raise Broken(
            "every hook comes back, and one that can block polls p.abort",
            Section.STATE,
            f"method {method.name!r}: still at {frames[0]} after {DEADLINE_S:.0f} s",
        )


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def _memory_bytes() -> int:
    """The process's address space."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE
