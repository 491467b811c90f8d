"""What the pump must not do: take a peer's, a plugin's or a tear-down's word for what the reference would refuse."""

from __future__ import annotations

import contextlib
import mmap
import socket
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from native_methods import GoodNative, recv_hook, send_hook
from peer import packet, sync

from multifd.engine.recv_channel import RecvChannel
from multifd.engine.splice import Splice
from multifd.engine.sync import Barrier
from multifd.errors import Aborted, HookError, RamError
from multifd.live.arena import Arena, ArenaTarget
from multifd.method import NativeHook, RecvParams, SendParams
from multifd.pages import Geometry
from multifd.pump import library
from multifd.pump.library import Stop
from multifd.pump.splicing import SplicePump, Window
from multifd.ram.block import bare_machine
from multifd.ram.memory import MemoryBlock, MemorySource, MemoryTarget
from multifd.registry import load_method
from multifd.stats import ChannelStats
from multifd.transport.connection import Connection
from multifd.transport.idle import IdleTimer
from multifd.wire.packet import PRIVATE_CODE
from multifd.wire.stream import Block, Machine
from tests.pump.both_paths import PATHS, by, memory, receive, send

pytestmark = pytest.mark.skipif(bool(library.unavailable_reason()), reason=f"no pump: {library.unavailable_reason()}")

PAGE = 4096
DEADLINE_S = 60.0


@pytest.mark.parametrize("cut", [0, 5, 700, 3000])
@pytest.mark.parametrize("path", PATHS)
def test_a_tear_down_is_no_end_of_the_peer(path: str, cut: int) -> None:
    """A channel that waits while the migration is torn down is a consequence, whatever it has read."""
    ours, theirs = socket.socketpair()
    idle, started = IdleTimer(DEADLINE_S), threading.Event()
    barrier = Barrier()
    barrier.expect(1)
    barrier.end()
    connection = Connection(ours, idle, "the sender")
    buffer = memory(PAGE)
    blocks = ArenaTarget(Arena(buffer)).allocate(bare_machine(PAGE, PAGE))

    def method_of(code: int) -> Any:
        started.set()
        return load_method("none")

    channel = RecvChannel(0, connection, barrier, method_of, lambda: False, ChannelStats())
    errors: list[BaseException] = []

    def run() -> None:
        try:
            with by(path):
                channel.run(Geometry.of(PAGE), blocks, idle)
        except BaseException as e:
            errors.append(e)

    whole = packet([0], bytes(PAGE))
    thread = threading.Thread(target=run)
    with theirs, contextlib.closing(connection):
        theirs.sendall(whole + whole[:cut])
        thread.start()
        assert started.wait(DEADLINE_S)
        idle.abort.set()
        connection.shutdown()
        thread.join(DEADLINE_S)
    assert not thread.is_alive()
    assert [type(e) for e in errors] == [Aborted]


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (("a\0b", "other"), b"a\0b"),  # a header's name ends at its first NUL
        (("a", "a\0b"), b"a\0b"),
        (("a\0b", "a"), b"a\0b"),
        (("a\\xff", "other"), b"a\xff"),
        (("?", "other"), b"\xe9"),
        (("a" * 256, "other"), b"a" * 256),
        (("a" * 255, "other"), b"a" * 255),
        (("ab", "a"), b"abc"),
        (("ab", "a"), b"a"),
    ],
)
def test_a_block_is_found_by_the_same_name(names: tuple[str, ...], wanted: bytes) -> None:
    machine = Machine("none", PAGE, tuple(Block(name, PAGE) for name in names))
    wire = b"".join(packet([0], bytes([i]) * PAGE, block=b) for i, b in enumerate((b"other", wanted, wanted), 1))
    seen = []
    for path in PATHS:
        buffers = {name: memory(PAGE) for name in names}
        target = _Named(buffers)
        one = receive(path, wire + sync(), target, machine, [load_method("none")])  # type: ignore[arg-type]
        one.data = b"|".join(bytes(buffer[:8]) for buffer in buffers.values())
        seen.append(one)
    assert seen[0] == seen[1]


class _Named:
    """A target with blocks of any name: an arena's are printable."""

    def __init__(self, buffers: dict[str, mmap.mmap]) -> None:
        self._buffers = buffers

    def allocate(self, machine: Machine) -> Any:
        return {name: MemoryBlock(name, memoryview(buffer), PAGE) for name, buffer in self._buffers.items()}


def test_memory_stays_mapped_as_long_as_a_channel_may_write_to_it() -> None:
    """A thread that a hook has held up may still be at work when the arena is closed."""
    buffer = memory(2 * PAGE)
    arena = Arena(buffer)
    target = ArenaTarget(arena)
    blocks = target.allocate(bare_machine(2 * PAGE, PAGE))
    extent = blocks["ram"].extent()
    assert extent is not None
    target.discard()
    del blocks
    arena.close()
    with pytest.raises(BufferError):
        buffer.close()
    del extent
    buffer.close()


def _one_send(function: Callable[..., int], **more: Any) -> type[GoodNative]:
    class Method(GoodNative):
        def native_send(self, p: SendParams) -> NativeHook | None:
            return send_hook(function, **more)

    return Method


def _one_recv(function: Callable[..., int], **more: Any) -> type[GoodNative]:
    class Method(GoodNative):
        wire_code = PRIVATE_CODE  # as the helper looks methods up

        def native_recv(self, p: RecvParams) -> NativeHook | None:
            return recv_hook(function, **more)

    return Method


def _fail() -> None:
    raise ValueError("no counter")


@pytest.mark.parametrize(
    ("function", "more", "words"),
    [
        (lambda *_: 0, {}, "payload of 0 bytes"),
        (lambda *_: (1 << 20) + 1, {}, "payload of 1048577 bytes"),
        (lambda *_: -7, {}, "its native hook gave -7: RuntimeError('result -7')"),
        (lambda *_: -7, {"explain": lambda result: 1 // 0}, "explain raised ZeroDivisionError"),
        (lambda *_: -7, {"explain": lambda result: RamError("its own")}, "its own"),
        (lambda *_: -1, {"settle": _fail}, "settle of a native hook raised ValueError('no counter')"),
    ],
)
def test_a_senders_hook_that_breaks_the_contract(function: Any, more: dict[str, Any], words: str) -> None:
    seen = send("pump", MemorySource(memory(PAGE, b"x" * PAGE)), _one_send(function, **more)())
    assert seen.error is not None
    assert seen.error[0] is (RamError if words == "its own" else HookError)
    assert words in seen.error[1]


@pytest.mark.parametrize(
    ("function", "more", "words"),
    [
        (lambda *_: 5, {}, "its native hook gave 5, expected 0 or less"),
        (lambda *_: -7, {}, "its native hook gave -7: RuntimeError('result -7')"),
        (lambda *_: -7, {"explain": lambda result: "text"}, "its native hook gave -7: 'text'"),
        (lambda *_: 0, {"settle": _fail}, "settle of a native hook raised ValueError('no counter')"),
    ],
)
def test_a_receivers_hook_that_breaks_the_contract(function: Any, more: dict[str, Any], words: str) -> None:
    wire = send("python", MemorySource(memory(PAGE, b"x" * PAGE)), GoodNative()).data[:-1344]
    target = MemoryTarget(memory(PAGE))
    seen = receive("pump", wire + wire, target, bare_machine(PAGE, PAGE), [_one_recv(function, **more)()])
    assert seen.error is not None
    assert seen.error[0] is HookError
    assert words in seen.error[1]


@pytest.mark.parametrize("value", [0, -1, 1 << 64, 1.5, None, b"x"])
def test_what_is_no_address_is_not_called(value: Any) -> None:
    """No function at all would be a method whose payload is the pages."""

    class Method(GoodNative):
        def native_send(self, p: SendParams) -> NativeHook | None:
            return NativeHook(value, 0, RuntimeError)

    seen = send("pump", MemorySource(memory(PAGE, b"x" * PAGE)), Method())
    assert seen.error is not None
    assert seen.error[0] is HookError
    assert f"native_send gave function {value!r}, expected an address" in seen.error[1]


@pytest.mark.parametrize("at", [0, 4, 8])
def test_a_relay_does_not_wait_for_the_rest_of_what_is_no_packet(at: int) -> None:
    """Twelve bytes say what it is; whoever sends no more gets the reference's words, not the timeout's."""
    near, source = socket.socketpair()
    destination, far = socket.socketpair()
    header = bytearray(packet([0], b""))
    header[at] ^= 0x40
    buffer = np.zeros(1 << 20, np.uint8)
    with near, source, destination, far:
        near.sendall(header[:12])
        idle = IdleTimer(0.05)
        ends = Connection(source, idle, "a"), Connection(destination, idle, "b")
        pump = SplicePump(source.fileno(), destination.fileno(), Geometry.of(PAGE), bytearray(1), buffer.data, 0, 0)
        assert pump.run(Window()) is Stop.HEADER
        splice = Splice(*ends, buffer.data)
        near.sendall(header[:12])
        assert splice.peek(12) == header[:12]
