"""A migration in virtual time: channels that share a link and processors, their sockets' buffers, and a receiver.

A fluid model: what is under way goes on at constant rates from one event to the next. Processors and the link are
shared equally among all who want them. A channel compresses a packet, copies it to its socket's buffer, and waits while
that is full; the link drains the buffers; a receiver's thread for each channel decodes what has arrived. A link that
was idle passes a burst at once, as a token bucket does, and so looks fast to the kernel's count.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from multifd.methods._adaptive import DOUBTED, SAMPLE_BYTES
from multifd.methods._adaptive_zstd import LADDER, SAMPLED
from multifd.methods.adapt import Policy, Rung
from multifd.methods.spent import Spent

PACKET = 512 * 1024
COPY_S = 0.2e-9
"""Seconds of a processor for each byte that goes into a socket, and out of it."""
BURST = 256 << 10
"""Bytes that an idle link lets pass at once."""
BURST_RATE = 4e9
"""Bytes a second of what a link's bucket lets pass."""
TICK_S = 0.004
"""Of the kernel's timer: in such steps it counts how long a link is busy."""
COLD = 2.0
"""How many times its cost a channel's first packet takes: it touches everything for the first time."""
_NEVER = math.inf


@dataclass(frozen=True)
class Pages:
    """What pages are like, as factors of the ladder's cost and saving."""

    cost: float = 1.0
    saving: float = 1.0


REAL = Pages()
NOISE = Pages(0.15, 0.0)


@dataclass(frozen=True)
class World:
    """Where a migration takes place.

    Args:
        rates: (from second, bytes each second) of the link; again from the start after `period_s`.
        ladder: what levels truly cost and save.
        channels, processors: how many.
        receiver_s: seconds of a processor for each byte of pages that were compressed; and of those as they are.
        buffer_bytes: what the kernel takes of a channel before it waits, and of all of them in the link's own queue.
        there_bytes: of a receiver's socket.
        burst_s: so much of its rate an idle link saves up, beside `BURST`.
        is_one_host: the receiver's threads take the same processors.
        others: threads of somebody else that always want a processor.
    """

    rates: tuple[tuple[float, float], ...]
    ladder: Sequence[Rung]
    period_s: float = _NEVER
    channels: int = 2
    processors: int = 2
    receiver_s: tuple[float, float] = (1.2e-9, 0.3e-9)
    buffer_bytes: tuple[float, float] = (256 << 10, 1 << 20)
    there_bytes: float = 4 << 20
    burst_s: float = 0.002
    is_one_host: bool = True
    others: int = 0


@dataclass
class _Channel:
    place: Callable[[], int]
    policy: Policy | None
    stage: str = "idle"
    left: float = 0.0  # seconds of work, or bytes to put into the buffer
    pages: Pages = REAL
    spent: Spent = field(default_factory=Spent)
    at_place: int = 0
    payload: float = 0.0
    buffered: float = 0.0
    parts: deque[tuple[float, float]] = field(default_factory=deque)  # on their way: payload bytes, seconds to decode
    arrived: float = 0.0
    decoding_s: float = 0.0
    is_warm: bool = False
    busy_s: float = 0.0  # of the link with what is its
    told_s: float = 0.0


def migrate(world: World, memory: Sequence[Pages], decide: int | None, seed: int = 0) -> tuple[float, dict[int, int]]:
    """Seconds until the last packet is decoded, and packets by place.

    Args:
        world: where.
        memory: a packet's each.
        decide: the place in the ladder that all channels stay at; None: each has a policy.
        seed: of what differs from packet to packet.
    """
    return _Migration(world, memory, decide, seed).run()


class _Migration:
    def __init__(self, world: World, memory: Sequence[Pages], decide: int | None, seed: int) -> None:
        self._w, self._rng, self._now = world, random.Random(seed), 0.0
        self._memory = iter(memory)
        self._room_here = world.buffer_bytes[0] + world.buffer_bytes[1] / world.channels
        self._tokens = BURST
        self.places: dict[int, int] = {}
        self._channels = []
        for number in range(world.channels):
            policy = None if decide is not None else new_policy(number)
            place = (lambda p=policy: p.place) if policy else (lambda: decide or 0)
            self._channels.append(_Channel(place, policy))

    def run(self) -> tuple[float, dict[int, int]]:
        w = self._w
        for c in self._channels:
            self._next_packet(c)
        while True:
            busy = [c for c in self._channels if c.stage in ("compress", "copy")]
            decoding = [c for c in self._channels if c.decoding_s > 0]
            sharing = len(busy) + w.others + (len(decoding) if w.is_one_host else 0)
            speed = min(1.0, w.processors / sharing) if sharing else 1.0
            far = speed if w.is_one_host else min(1.0, w.processors / max(1, len(decoding)))
            linked = [c for c in self._channels if c.buffered > 0 and self._room_there(c) > 0]
            rate, until = self._rate()
            passing = max(BURST_RATE, rate) if self._tokens > 0 else rate
            flow = passing / len(linked) if linked else 0.0
            emptying = rate - (passing if linked else 0.0)
            filling = [c for c in self._channels if c.stage == "fill"]
            if not (busy or decoding or linked or filling):
                return self._now, self.places
            step = until - self._now
            if emptying < 0:
                step = min(step, self._tokens / -emptying)
            for c in busy:
                step = min(step, c.left / speed)
            for c in decoding:
                step = min(step, c.decoding_s / far)
            for c in linked:
                step = min(step, c.buffered / flow, self._room_there(c) / flow)
            for c in filling:
                if c in linked:
                    step = min(step, max(self._room_wanted(c) - (self._room_here - c.buffered), 0.0) / flow)
            step = max(step, 1e-9)
            self._now += step
            self._tokens = min(self._tokens + emptying * step, BURST + w.burst_s * rate)
            if self._tokens < 1.0 and emptying < 0:
                self._tokens = 0.0
            for c in self._channels:
                if c.stage in ("compress", "copy"):
                    c.left -= step * speed
                    if c.stage == "compress":
                        c.spent.hook_s += step
                        c.spent.hook_cpu_s += step * speed
                    else:
                        c.spent.gap_s += step
                        c.spent.gap_cpu_s += step * speed
                        c.spent.gap_queue_s += step * (1 - speed)
                elif c.stage == "fill":
                    c.spent.gap_s += step
            for c in decoding:
                c.decoding_s -= step * far
            for c in linked:
                c.busy_s += step
                self._deliver(c, step * flow)
            for c in self._channels:
                self._advance(c)

    def _rate(self) -> tuple[float, float]:
        w = self._w
        start = 0.0 if w.period_s == _NEVER else self._now // w.period_s * w.period_s
        current, until = w.rates[0][1], start + w.period_s
        for begin, rate in w.rates:
            if start + begin <= self._now + 1e-9:
                current = rate
            else:
                until = start + begin
                break
        return current, until if until > self._now + 1e-9 else self._now + 1e-6

    def _kernels_word(self) -> float:
        """A channel's count of the last round trip: what the bucket holds goes as fast as it is written."""
        waiting = [c.buffered for c in self._channels if c.buffered > 0]
        return (BURST_RATE if self._tokens >= sum(waiting) else self._rate()[0]) / max(len(waiting), 1)

    def _room_wanted(self, c: _Channel) -> float:
        return min(c.left, self._room_here / 3)  # the kernel wakes a sender once a third is free

    def _room_there(self, c: _Channel) -> float:
        """What the receiver takes before something changes there: the rest of a packet, or what its buffer holds."""
        return (self._w.there_bytes if c.decoding_s > 0 else c.parts[0][0]) - c.arrived

    def _deliver(self, c: _Channel, nbytes: float) -> None:
        c.buffered -= nbytes
        c.arrived += nbytes
        if c.buffered < 1e-3:
            c.buffered = 0.0

    def _advance(self, c: _Channel) -> None:
        if c.decoding_s <= 1e-12:
            c.decoding_s = 0.0
            if c.parts and c.arrived >= c.parts[0][0] - 1e-2:
                payload, c.decoding_s = c.parts.popleft()
                c.arrived = max(0.0, c.arrived - payload)
        if c.stage in ("compress", "copy") and c.left <= 1e-12:
            if c.stage == "compress":
                c.stage, c.left = "copy", COPY_S * c.payload
            else:
                c.stage, c.left = "fill", c.payload
                kind = self._w.receiver_s[0 if c.at_place else 1]
                c.parts.append((c.payload, kind * PACKET + COPY_S * c.payload))
        if c.stage == "fill":
            free = self._room_here - c.buffered
            if free >= self._room_wanted(c) - 1e-3:
                put = min(free, c.left)
                c.buffered += put
                c.left -= put
                if c.left <= 1e-3:
                    self._next_packet(c)

    def _next_packet(self, c: _Channel) -> None:
        pages = next(self._memory, None)
        if c.policy is not None:
            self._tell(c.policy, c, pages)
        c.spent = Spent()
        if pages is None:
            c.stage = "done"
            return
        c.pages, c.at_place = pages, c.place()
        self.places[c.at_place] = self.places.get(c.at_place, 0) + 1
        rung = self._w.ladder[c.at_place]
        cost = rung.cost * (pages.cost if c.at_place else 1) * self._rng.uniform(0.6, 1.4)
        c.stage, c.left = "compress", cost * PACKET * (1.0 if c.is_warm else COLD)
        c.is_warm = True
        saving = min(rung.saving * pages.saving * self._rng.uniform(0.65, 1.35), 0.95) if c.at_place else 0.0
        c.payload = PACKET * (1 - saving)

    def _tell(self, policy: Policy, c: _Channel, upcoming: Pages | None) -> None:
        """What the packet before took, and what the next one is like if that is wanted."""
        if c.payload:
            c.spent.page_bytes, c.spent.payload_bytes = PACKET, c.payload
            c.spent.link_s = c.payload / self._kernels_word()
            told_s = c.busy_s // TICK_S * TICK_S
            c.spent.idle_s, c.told_s = c.spent.hook_s + c.spent.gap_s - (told_s - c.told_s), told_s
            policy.note(c.at_place, c.spent)
        if upcoming is not None and policy.wants_look:
            rung = self._w.ladder[SAMPLED]
            cost, left = rung.cost * upcoming.cost, 1 - rung.saving * upcoming.saving
            policy.look(SAMPLED, SAMPLE_BYTES * cost, SAMPLE_BYTES, SAMPLE_BYTES * left)


def new_policy(channel: int) -> Policy:
    """As ``zstd:level=auto`` has it."""
    return Policy(LADDER, SAMPLED, DOUBTED[min(channel, len(DOUBTED) - 1)])
