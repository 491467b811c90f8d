"""Packets that are walked over: the same headers however the bytes are cut, and payloads that are not looked at."""

from __future__ import annotations

import contextlib
import itertools

import peer
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multifd.errors import RemoteWireError
from multifd.pages import Geometry
from multifd.wire.packet import decode_counts
from multifd.wire.walker import PacketWalker

GEOMETRY = Geometry.of(peer.PAGE)
DEVICE_STATE = (
    (0x11223344).to_bytes(4, "big")
    + (1).to_bytes(4, "big")
    + (0x40).to_bytes(4, "big")
    + bytes(260)
    + (7).to_bytes(4, "big")
    + b"devices"
)
STREAM = (
    peer.packet([0, 4096], b"payload " * 1000)
    + peer.packet([], zero=[8192])
    + DEVICE_STATE
    + peer.sync()
    + peer.packet([8192], b"\x11\x22\x33\x44" * 9, flags=1)
)


@given(st.lists(st.integers(1, len(STREAM) - 1), max_size=40))
def test_however_it_is_cut(cuts):
    walker, headers, edges = PacketWalker(GEOMETRY), [], [0, *sorted(cuts), len(STREAM)]
    for start, end in itertools.pairwise(edges):
        headers += walker.feed(memoryview(STREAM)[start:end])
    counts = [decode_counts(header, GEOMETRY) for header in headers]
    assert [(c.normal_pages, c.zero_pages, c.flags) for c in counts] == [(2, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1)]
    assert (walker.packets, walker.pending, walker.missing) == (5, 0, 0)


def test_payloads_are_stepped_over():
    walker, at, headers = PacketWalker(GEOMETRY), 0, 0
    while at < len(STREAM):
        step = walker.wanted()
        headers += len(list(walker.feed(memoryview(STREAM)[at : at + step])))
        at += step + walker.step_over(len(STREAM) - at - step)
    assert (at, headers, walker.packets) == (len(STREAM), 4, 5)


@pytest.mark.parametrize(("keep", "pending", "missing"), [(5, 5, 0), (700, 700, 0), (1344, 0, 8000), (1400, 0, 7944)])
def test_what_is_cut_off_shows(keep, pending, missing):
    walker = PacketWalker(GEOMETRY)
    list(walker.feed(memoryview(STREAM)[:keep]))
    assert (walker.pending, walker.missing) == (pending, missing)


@given(st.binary(min_size=1, max_size=3000))
def test_nothing_but_its_own_error_leaves(data):
    with contextlib.suppress(RemoteWireError):
        list(PacketWalker(GEOMETRY).feed(memoryview(data)))
