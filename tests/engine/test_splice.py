"""What goes from one connection on to another: the same bytes but for what was changed or taken out."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multifd.engine.splice import Splice
from multifd.errors import ChannelError
from multifd.transport.connection import Connection
from multifd.transport.idle import IdleTimer

DEADLINE_S = 30
AHEAD = 64


@dataclass
class Ends:
    """A passage, and who sends into it and reads from it."""

    source: Connection
    passage: Splice
    destination: Connection


@contextlib.contextmanager
def make_ends() -> Iterator[Ends]:
    with contextlib.ExitStack() as stack:
        sockets = [*socket.socketpair(), *socket.socketpair()]
        near, into, out, far = (Connection(s, IdleTimer(DEADLINE_S), n) for s, n in zip(sockets, "aboz", strict=True))
        for connection in (near, into, out, far):
            stack.callback(connection.close)
        yield Ends(near, Splice(into, out, memoryview(bytearray(AHEAD))), far)


@pytest.fixture
def ends() -> Iterator[Ends]:
    with make_ends() as made:
        yield made


@given(st.data())
def test_any_steps_through_bytes_that_come_in_any_pieces(data: st.DataObject) -> None:
    draw = data.draw
    sent, expected, steps = b"", b"", []
    for number in range(draw(st.integers(0, 12), "steps")):
        kind = draw(st.sampled_from(["peek", "pass", "replace", "send"]))
        nbytes = draw(st.integers(1, AHEAD if kind == "peek" else 3 * AHEAD))
        piece = bytes((number + i) % 251 for i in range(nbytes)) if kind != "send" else b""
        sent += piece
        expected += {"peek": b"!" + piece[1:], "pass": piece, "replace": b"<%d>" % nbytes, "send": b""}[kind]
        steps.append((kind, piece))
    cuts = sorted(draw(st.lists(st.integers(0, len(sent)), max_size=5), "cuts"))
    with make_ends() as ends:

        def feed() -> None:
            for a, b in zip([0, *cuts], [*cuts, len(sent)], strict=True):
                ends.source.send([sent[a:b]])
            ends.source.shutdown_write()

        feeder = threading.Thread(target=feed)
        feeder.start()
        passage = ends.passage
        for kind, piece in steps:
            match kind:
                case "peek":
                    view = passage.peek(len(piece))
                    assert view == piece
                    view[:1] = b"!"
                    passage.pass_on(len(piece))
                case "pass":
                    passage.pass_on(len(piece))
                case "replace":
                    halves = bytearray(len(piece) // 2), bytearray(len(piece) - len(piece) // 2)
                    passage.recv_exactly([memoryview(half) for half in halves])
                    assert b"".join(halves) == piece
                    passage.send([b"<%d>" % len(piece)])
                case "send":
                    passage.send()
        assert not passage.peek(1)
        feeder.join(DEADLINE_S)
        if expected:  # all of it was sent: nobody waits with anything in hand
            got = memoryview(bytearray(len(expected)))
            ends.destination.recv_exactly([got])
            assert got == expected


def test_what_may_go_on_does_not_wait_for_what_follows(ends: Ends) -> None:
    ends.source.send([b"head", b"payload, the fi"])

    def run() -> None:
        assert ends.passage.peek(4) == b"head"
        ends.passage.pass_on(4 + len(b"payload, the first part and the rest"))
        ends.passage.send()

    runner = threading.Thread(target=run)
    runner.start()
    got = memoryview(bytearray(100))
    ends.destination.recv_exactly([got[:19]])
    assert got[:19] == b"headpayload, the fi"
    ends.source.send([b"rst part and the rest"])
    ends.destination.recv_exactly([got[:21]])
    runner.join(DEADLINE_S)
    assert got[:21] == b"rst part and the rest"


@pytest.fixture
def cut_short(ends: Ends) -> Ends:
    """Three bytes were passed on, three are left, then the source has closed."""
    ends.source.send([b"abcdef"])
    ends.source.shutdown_write()
    assert ends.passage.peek(3) == b"abc"
    ends.passage.pass_on(3)
    return ends


def test_the_end_between_two_packets_and_in_the_middle_of_one(cut_short: Ends) -> None:
    with pytest.raises(ChannelError, match="after 3 of 4 bytes"):
        cut_short.passage.peek(4)
    with pytest.raises(ChannelError, match="in the middle of a packet"):
        cut_short.passage.pass_on(4)
    assert not cut_short.passage.peek(1)


def test_a_payload_that_is_cut_short(cut_short: Ends) -> None:
    with pytest.raises(ChannelError, match="closed the connection in the middle of a packet"):
        cut_short.passage.recv_exactly([memoryview(bytearray(4))])


def test_a_destination_that_is_gone(ends: Ends) -> None:
    ends.destination.close()
    ends.source.send([b"abc"])
    ends.passage.pass_on(3)
    with pytest.raises(ChannelError, match="closed by the peer"):
        ends.passage.send()
