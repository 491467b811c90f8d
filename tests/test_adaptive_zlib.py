"""``zlib:level=auto`` on its wire: one stream to any decoder, whichever compressor made which packet."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Sequence

import pytest
from one_channel import PACKETS, Receiver, Sender, expected

from multifd.methods import _adaptive
from multifd.methods._adaptive_zlib import HEAD, SYNC, wire
from multifd.methods.adapt import Rung
from multifd.registry import load_method

ENGINES = ["auto", "isal", "zlib"]


class Restless:
    """A policy that takes the whole ladder in turn, a place for two packets, and looks whenever it may."""

    wants_look = is_watching = True

    def __init__(self, ladder: Sequence[Rung], start: int, doubted: int) -> None:
        self._places = itertools.cycle(place for place in range(len(ladder)) for _ in range(2))
        self.place = start

    def note(self, *told: object) -> None:
        self.place = next(self._places)

    def look(self, *told: object) -> None:
        pass


@pytest.fixture
def restless(monkeypatch):
    monkeypatch.setattr(_adaptive, "Policy", Restless)


@pytest.mark.parametrize("engine", ENGINES)
def test_one_stream_without_end_whatever_the_level(restless, engine):
    sender, plain = Sender(load_method(f"zlib:level=auto,engine={engine}")), zlib.decompressobj()
    receivers = [Receiver(load_method(f"zlib:engine={engine}")) for engine in ENGINES]
    payloads = []
    for indexes in PACKETS * 4:
        payload = sender.packet(indexes)
        assert payload.endswith(SYNC[1:])  # three bits of it may be in the byte before
        assert plain.decompress(payload) == expected(indexes)
        assert all(receiver.packet(indexes, payload) == expected(indexes) for receiver in receivers)
        payloads.append(payload)
    assert not plain.eof
    assert [payload.startswith(HEAD) for payload in payloads] == [True] + [False] * (len(payloads) - 1)
    counters = sender.params.counters
    for rung in wire(sender.method.availability(sender.method.options).engine).ladder:
        assert counters["zlib.raw_packets" if rung.level is None else f"zlib.level_{rung.level}_packets"]
    assert sum(n for name, n in counters.items() if name.endswith("_packets")) == len(payloads)


@pytest.mark.parametrize(
    ("engine", "levels"),
    [("isal", [None, 1, 3]), ("zlib", [None, 1, 4, 5, 6]), ("isal and zlib", [None, 1, 3, 4, 5, 6])],
)
def test_the_ladder_goes_up(engine, levels):
    ladder = wire(engine).ladder
    assert [rung.level for rung in ladder] == levels
    for low, high in itertools.pairwise(ladder):
        assert (low.cost, low.saving) < (high.cost, high.saving)
        assert low.saving < high.saving


def test_all_of_the_time_is_counted(monkeypatch):
    """In hooks and between them, whether or not the policy hears of it."""

    class Clock:
        """A millisecond later each time it is asked; of a processor half of that."""

        now = 0

        def monotonic_ns(self) -> int:
            self.now += 1_000_000
            return self.now

        def thread_time_ns(self) -> int:
            return self.now // 2

    clock = Clock()
    monkeypatch.setattr(_adaptive, "time", clock)
    monkeypatch.setattr(_adaptive, "NEWS_NS", 50_000_000)
    sender = Sender(load_method("zlib:level=auto"))
    for _ in range(101):
        sender.packet([0])
    counters = sender.params.counters
    assert counters["zlib.encode_us"] == 101_000
    assert counters["zlib.between_us"] >= 100_000
