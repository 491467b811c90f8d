"""A method among others: over real sockets, beside those that share its code, and through any history."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from multifd import Canceller, MemoryImage, receive, send
from multifd.method import CodecError
from multifd.registry import describe, load_method, methods_of_code
from multifd.testing.harness import Broken, RecvEnd, Section, SendEnd, check_equal, promised, round_trip
from multifd.testing.strategies import PACKET_KINDS, packet, packets

DEADLINE_S = 60.0


def _migrate(memory: bytes, spec: str, uri: str, page_size: int) -> bytes:
    """The memory at the destination of a migration inside this process."""
    target, canceller = bytearray(len(memory)), Canceller()
    listening, errors = threading.Event(), list[BaseException]()

    def run() -> None:
        try:
            receive(
                uri,
                target,
                methods=(spec,),
                timeout=DEADLINE_S,
                canceller=canceller,
                on_listening=lambda _: listening.set(),
            )
        except BaseException as e:
            errors.append(e)
            listening.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    listening.wait(DEADLINE_S)
    try:
        send(MemoryImage(memory, page_size), uri, spec, channels=3, timeout=DEADLINE_S)
    except BaseException as e:
        errors.insert(0, e)
        canceller.cancel()  # the receiver need not wait for a sender that is gone
    thread.join(DEADLINE_S)
    if errors:
        raise Broken("a migration by the method succeeds", Section.BUFFERS, f"method {spec!r}: {errors}") from errors[0]
    return bytes(target)


@pytest.mark.parametrize("page_size", [4096, 65536])
def test_migration_after_migration(multifd_method: str, page_size: int, tmp_path: Path) -> None:
    """Memory that goes from host to host, each time by another method, stays the same memory."""
    memory = b"".join(packet(kind, 1, page_size, (3 << 18) // page_size) for kind in PACKET_KINDS)
    others = [info.name for info in describe() if info.status == "ok" and info.name != multifd_method][:4]
    route = [multifd_method]
    for other in others:
        route += [other, multifd_method]
    arrived = memory
    for number, spec in enumerate(route):
        arrived = _migrate(arrived, spec, f"unix:{tmp_path}/{number}", page_size)
        check_equal(memory, arrived, page_size, f"migration {number} of {' > '.join(route)}, by {spec}")


def test_shared_wire_code(multifd_method: str) -> None:
    """Methods with the same code on the wire decode each other, both ways."""
    method = load_method(multifd_method)
    promised(method.wire_code is not None, "a wire code")
    assert method.wire_code is not None
    for name in methods_of_code(method.wire_code):
        other = load_method(name)
        for a, b in ((method, other), (other, method)):
            with SendEnd(a) as source, RecvEnd(b) as target:
                for kind in PACKET_KINDS:
                    try:
                        round_trip(source, target, packet(kind, 4, 4096, 20))
                    except Broken as e:
                        raise Broken(
                            "methods that share a wire code decode each other",
                            Section.WIRE,
                            f"{multifd_method!r} and {name!r}, from {a.name!r}: {e}",
                        ) from e


class _Channel(RuleBasedStateMachine):
    """One channel through whatever an engine may do to it."""

    spec: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.method = load_method(self.spec)
        self.flight: list[tuple[bytes, bytes]] = []

    @initialize()
    def setup(self) -> None:
        self.send, self.recv = SendEnd(self.method), RecvEnd(self.method)
        self.flight.clear()
        self.send.setup()
        self.recv.setup()

    @rule(data=packets(), layout=st.sampled_from(["contiguous", "scattered"]))
    def prepare(self, data: bytes, layout: Any) -> None:
        self.flight.append((data, self.send.pack(data, layout)))

    @precondition(lambda self: self.flight)
    @rule()
    def deliver(self) -> None:
        data, payload = self.flight.pop(0)
        check_equal(data, self.recv.unpack(payload, len(data) // 4096), 4096, self.recv.where)

    @rule()
    def sync(self) -> None:
        while self.flight:
            self.deliver()

    @rule(garbage=st.binary(max_size=64))
    def fail(self, garbage: bytes) -> None:
        """The peer breaks the protocol: the migration ends, another begins with the same method."""
        with contextlib.suppress(CodecError):
            self.recv.receive(garbage, 2)
        self.cleanup()

    @rule()
    def cleanup(self) -> None:
        for end in (self.send, self.recv, self.send, self.recv):
            end.cleanup()
        self.setup()

    def teardown(self) -> None:
        """The migration ends as every one does."""
        self.send.cleanup()
        self.recv.cleanup()


def test_any_history(multifd_method: str) -> None:
    """A state machine: setup, prepare, recv, sync, fail and cleanup in any order that an engine may take."""
    run_state_machine_as_test(
        type("Channel", (_Channel,), {"spec": multifd_method}),
        settings=settings(
            max_examples=25,
            stateful_step_count=20,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
