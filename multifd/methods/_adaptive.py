"""A channel whose level a `Policy` chooses while it goes, whatever the format.

The hook in native code (multifd/pump/zstd.c) does what rests; every change goes through the hook in Python.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from multifd.method import Buffer, NativeHook, SendParams
from multifd.methods._run_delay import RunDelay
from multifd.methods.adapt import Policy, Rung
from multifd.methods.spent import Spent

SAMPLE_BYTES = 32 * 1024
"""Of a packet's pages, for a look."""
DOUBTED = 2, 2, 1
"""Packets at the start by which the link is not yet believed to be fast: of the first channel, the second, each other.
What a token bucket lets pass at once looks so. Compressed, two of 512 KiB are more than that of a slow link."""
NEWS_BYTES, NEWS_NS = 4 << 20, 10_000_000
"""Of pages, or since the last time: the policy hears of what is new once it is so much, unless it wants to hear all."""
CHANGING, FRAME, RAW = range(3)
"""Stages; zstd.h has the same."""


class Encoder(Protocol):
    """An engine."""

    def open(self, level: int) -> None:
        """Begin a frame; one that is open is forgotten."""
        ...

    def compress(self, runs: Sequence[memoryview]) -> list[Buffer]:
        """All bytes of a packet's pages in whole blocks, in buffers that are valid until the next call."""
        ...

    def adaptive_hook(self, page_size: int, settle: Callable[[], None]) -> tuple[NativeHook, Any] | None:
        """A hook in native code, and its ``zstd_adaptive``; None if there is none."""
        ...


@dataclass(slots=True)
class _Meter:
    """``zstd_meter``, where there is no native code: what was spent since it was asked last."""

    left_ns: int = 0
    left_cpu_ns: int = 0
    hook_ns: int = 0
    hook_cpu_ns: int = 0
    gap_ns: int = 0
    gap_cpu_ns: int = 0
    packets: int = 0
    page_bytes: int = 0
    payload_bytes: int = 0


@dataclass(slots=True)
class _Shared:
    """``zstd_adaptive``, where there is no native code."""

    stage: int = CHANGING
    is_changing: int = 0
    meter: _Meter = field(default_factory=_Meter)


@dataclass(frozen=True, slots=True)
class Wire:
    """What a format allows a channel whose level changes.

    Args:
        name: the method's, of its counters.
        ladder: the levels.
        sampled: the place in it by which pages are looked at.
        raw: a payload of the bytes as they are; the views go into it.
        end: what follows the last payload of a level, in the same packet.
    """

    name: str
    ladder: Sequence[Rung]
    sampled: int
    raw: Callable[[Sequence[memoryview]], list[Buffer]]
    end: bytes


class Adaptive:
    """One channel's frames.

    Args:
        encoder: not open yet.
        p: the channel's.
        wire: what the encoder makes.
    """

    def __init__(self, encoder: Encoder, p: SendParams, wire: Wire) -> None:
        self._encoder, self._counters, self._wire, self._link_use = encoder, p.counters, wire, p.link_use
        self._policy = Policy(wire.ladder, wire.sampled, DOUBTED[min(p.channel, len(DOUBTED) - 1)])
        self._place = wire.sampled
        self._shared: Any = _Shared()
        self._hook_ns = self._gap_ns = 0  # until the meter began
        self._counted = 0, 0  # packets and payload bytes of the meter that are in the counters
        self._busy_s = 0.0  # of the link, so far
        self._noted_ns = 0
        self._run_delay = RunDelay()
        names = [name for rung in wire.ladder for name in self._names(rung.level)]
        p.counters.update(dict.fromkeys([*names, *map(self._name, ("changes", "encode_us", "between_us"))], 0))

    def compress(self, runs: Sequence[memoryview]) -> list[Buffer]:
        """A packet's payload; views of the pages may be in it."""
        self.settle()
        shared, meter = self._shared, self._shared.meter
        if shared.stage == CHANGING:
            self._look(runs[0][:SAMPLE_BYTES])
            self._open()
        start, start_cpu = time.monotonic_ns(), time.thread_time_ns()
        payload: list[Buffer] = self._wire.raw(runs) if shared.stage == RAW else self._encoder.compress(runs)
        meter.hook_ns += time.monotonic_ns() - start
        meter.hook_cpu_ns += time.thread_time_ns() - start_cpu
        meter.packets += 1
        meter.page_bytes += sum(map(len, runs))
        meter.payload_bytes += sum(map(len, payload))
        if shared.is_changing:
            if shared.stage == FRAME and self._wire.end:
                payload.append(self._wire.end)
            shared.stage = CHANGING
        meter.left_ns, meter.left_cpu_ns = time.monotonic_ns(), time.thread_time_ns()
        self._count()
        return payload

    def settle(self) -> None:
        """Take what was counted since the last time, and let the next packets know what the policy makes of it."""
        shared, policy, m = self._shared, self._policy, self._shared.meter
        now_ns, now_cpu_ns = time.monotonic_ns(), time.thread_time_ns()
        if not m.left_ns:
            self._run_delay.since_last_s()
            if use := self._link_use():
                self._busy_s = use.busy_s - use.receiver_s
        else:
            m.gap_ns, m.gap_cpu_ns = m.gap_ns + now_ns - m.left_ns, m.gap_cpu_ns + now_cpu_ns - m.left_cpu_ns
        m.left_ns, m.left_cpu_ns = now_ns, now_cpu_ns
        is_news = m.page_bytes >= NEWS_BYTES or now_ns - self._noted_ns >= NEWS_NS
        if not (is_news or shared.is_changing or shared.stage == CHANGING):
            self._count()
            return
        self._noted_ns = now_ns
        if m.packets:
            self._note(m)
        if shared.stage == CHANGING and not policy.wants_look:
            self._open()

    def _note(self, m: Any) -> None:
        """Tell the policy what packets took."""
        shared, policy = self._shared, self._policy
        hook_s, hook_cpu_s, gap_s, gap_cpu_s = (ns / 1e9 for ns in (m.hook_ns, m.hook_cpu_ns, m.gap_ns, m.gap_cpu_ns))
        spent = Spent(hook_s, hook_cpu_s, gap_s, gap_cpu_s, m.page_bytes, m.payload_bytes)
        spent.gap_queue_s = self._gap_queue_s(spent)
        if use := self._link_use():
            busy_s, self._busy_s = use.busy_s - use.receiver_s - self._busy_s, use.busy_s - use.receiver_s
            spent.idle_s = hook_s + gap_s - busy_s
            spent.link_s = spent.payload_bytes / use.delivery_rate if use.delivery_rate else 0.0
        self._count()
        self._begin_anew()
        policy.note(self._place, spent)
        shared.is_changing = policy.is_watching or policy.place != self._place
        if shared.stage == RAW and (shared.is_changing or policy.wants_look):
            shared.stage = CHANGING

    def _count(self) -> None:
        """Bring the counters up to the meter."""
        counters, m = self._counters, self._shared.meter
        packets_name, bytes_name = self._names(self._wire.ladder[self._place].level)
        packets, payload_bytes = self._counted
        counters[packets_name] += m.packets - packets
        counters[bytes_name] += m.payload_bytes - payload_bytes
        counters[self._name("encode_us")] = (self._hook_ns + m.hook_ns) // 1000
        counters[self._name("between_us")] = (self._gap_ns + m.gap_ns) // 1000
        self._counted = m.packets, m.payload_bytes

    def _begin_anew(self) -> None:
        """The meter, whose figures were taken."""
        m = self._shared.meter
        self._hook_ns += m.hook_ns
        self._gap_ns += m.gap_ns
        self._counted = 0, 0
        m.packets = m.hook_ns = m.hook_cpu_ns = m.gap_ns = m.gap_cpu_ns = m.page_bytes = m.payload_bytes = 0

    def _gap_queue_s(self, spent: Spent) -> float:
        """Of the time in gaps, what passed while others had the processors: told by the kernel, or guessed."""
        queue_s, in_hooks_s = self._run_delay.since_last_s(), spent.hook_s - spent.hook_cpu_s
        if queue_s is None:
            return spent.gap_cpu_s * in_hooks_s / spent.hook_cpu_s if spent.hook_cpu_s else 0.0
        return min(max(queue_s - in_hooks_s, 0.0), max(spent.gap_s - spent.gap_cpu_s, 0.0))

    def _open(self) -> None:
        """Begin what the next packets go by."""
        shared, place = self._shared, self._policy.place
        level = self._wire.ladder[place].level
        self._counters[self._name("changes")] += place != self._place
        self._place = place
        shared.is_changing = self._policy.is_watching
        shared.stage = RAW if level is None else FRAME
        if level is not None:
            self._encoder.open(level)

    def _look(self, sample: memoryview) -> None:
        """Compress a few pages, to see what pages now cost and save; not while a frame is open."""
        place = self._wire.sampled
        rung = self._wire.ladder[place]
        assert rung.level is not None
        self._encoder.open(rung.level)
        start = time.thread_time_ns()
        payload = self._encoder.compress([sample])
        took_ns = time.thread_time_ns() - start
        self._policy.look(place, took_ns / 1e9, len(sample), sum(map(len, payload)))

    def native_hook(self, page_size: int) -> NativeHook | None:
        """`compress` in native code, on the same frames; None if that was not built."""
        offer = self._encoder.adaptive_hook(page_size, self.settle)
        if offer is None:
            return None
        hook, self._shared = offer
        self._open()
        return hook

    def _name(self, word: str) -> str:
        """Of a counter."""
        return f"{self._wire.name}.{word}"

    def _names(self, level: int | None) -> tuple[str, str]:
        """Of the counters of packets and payload bytes."""
        word = "raw" if level is None else f"level_{level}"
        return self._name(f"{word}_packets"), self._name(f"{word}_bytes")
