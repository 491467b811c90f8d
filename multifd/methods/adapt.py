"""Which level a channel compresses at while it goes: arithmetic alone; no clock, no thread, no codec.

What a channel minimises is the time for each byte of memory. While one packet is compressed, the kernel sends those
before it, so a byte takes about as long as the longer of the two: to compress it, or to send what it comes to. What
is not known is learned from what packets took:

* What the pages at hand cost and save at the level that they went by, and so at the others: the ladder says how levels
  compare. Pages that do not shrink save nothing at any level, so the cheapest is taken: as they are.
* How much longer than its processor time a packet takes: other channels want the processors, too.
* What a byte on the wire takes. If a channel waits in between its hooks, it is the time over the bytes. If it does not,
  it is no more than that, and the guess sinks until a lower level is taken that waits, or none is left.

A receiver that is slower than the link looks like a link, but takes pages as they are faster than compressed ones. Only
a trial tells, and one is made where a receiver can be what is slow.

What was learned fades as bytes go by.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

_MIB = 1 << 20
LINK_MEMORY = 3 * _MIB
"""Payload bytes. A socket takes more once a third of its buffer is free, and that may have 4 MiB (tcp_wmem): what is
told of the link comes in jumps, and is added up over more than one."""
PAGE_MEMORY = 4 * _MIB
"""Bytes of pages whose cost and saving are remembered."""
JUMP = 1.5 * _MIB
"""Payload bytes that went without a wait: more than one jump's, so what was before is over."""
REST = 1 * _MIB
"""Bytes of pages for which a level is kept, unless another is far better: a change costs the history."""
GAIN, FAR_BETTER = 0.97, 0.8
"""The time at another level over that at the present one: worth a change; worth one at once."""
SHARPNESS = 6.0
"""How two times that overlap add up, as the exponent of a norm: 1 is one after the other, infinite is the longer one
alone. At 6 two equal ones take 12 % longer than one, so neither is chosen to be just as long as the other."""
WAITING = 0.08
"""Share of its time that a channel waits in between hooks if the link holds it up; less may be the scheduler's."""
SLACK, MOST_SLACK = 1.0 * _MIB, 32 * _MIB
"""Payload bytes sent without waiting after which the guess of a wire byte's time has sunk to 1/e. A buffer hides so
much; small at first, since buffers grow with the connection, doubled whenever the guess was too low."""
SINKING_S = 0.4
"""Seconds after which it has sunk so far, too, however little was sent; longer as the slack is larger."""
THRIFT = 0.05
"""What a second of compressing counts beside the time it takes: of two levels that are as fast, the cheaper."""
LOOK_SHARE = 0.015
"""Of all time, what looks may take."""
TRIAL_PACE = 4e-9
"""Seconds for each byte of pages: a receiver of zstd, uncontended, is not slower than twice that (an EPYC's core)."""
TRIAL_BYTES = 8 * _MIB
"""Payload bytes of a trial, of which the first half only empties the buffer of what was sent before."""
TRIAL_WAIT_S, TRIAL_BACKOFF = 1.0, 3.0
"""Until the next trial, and how much longer after each that did not pay."""


@dataclass(frozen=True, slots=True)
class Rung:
    """A level and what it takes, on typical pages.

    Args:
        level: the codec's; None: the pages as they are.
        cost: seconds of a processor for each byte of pages.
        saving: the share of the pages' bytes that is not sent.
    """

    level: int | None
    cost: float
    saving: float


@dataclass(slots=True)
class Spent:
    """What packets in a row at one level took, in seconds and bytes.

    Args:
        hook_s, hook_cpu_s: in the method's hook, by the clock and of a processor.
        gap_s, gap_cpu_s: from one hook to the next: sending, and whatever the engine does.
        gap_queue_s: of the gaps, what passed while others had the processors.
        page_bytes, payload_bytes: in and out.
    """

    hook_s: float = 0.0
    hook_cpu_s: float = 0.0
    gap_s: float = 0.0
    gap_cpu_s: float = 0.0
    page_bytes: float = 0.0
    payload_bytes: float = 0.0
    gap_queue_s: float = 0.0

    def add(self, news: Spent, keep: float = 1.0) -> None:
        """Add the news to so much of what is here."""
        for name in Spent.__slots__:
            setattr(self, name, getattr(self, name) * keep + getattr(news, name))


class Policy:
    """One channel's.

    Args:
        ladder: from the cheapest to the dearest; the first is the pages as they are.
        start: the place in it to begin at.
    """

    def __init__(self, ladder: Sequence[Rung], start: int) -> None:
        self._ladder = ladder
        self.place = start
        """In the ladder: what the next packet is to go by."""
        self._dearer, self._keener = 1.0, 1.0  # the pages at hand: cost and saving as factors of the ladder's
        self._pages_known = 0.0
        self._recent = Spent()
        self._wire_s: float | None = None  # a payload byte's time, of payloads as they are now
        self._is_held_up = False  # it waits for the link, or for the receiver
        self._free = Spent()  # since it waited last
        self._slack = SLACK
        self._sunk = 1.0
        self._elapsed_s = 0.0
        self._rested = 0.0  # bytes of pages since the last change
        self._receiver = 1.0  # how much longer a compressed payload byte takes than one that is a page's
        self._trial: _Trial | None = None
        self._next_trial_s, self._trial_wait_s = 0.0, TRIAL_WAIT_S
        self._next_look_s = 0.0

    @property
    def level(self) -> int | None:
        """What the next packet is to go by; None: as it is."""
        return self._ladder[self.place].level

    def note(self, spent: Spent) -> None:
        """Learn from packets that went by `place`, at least one, and choose anew."""
        spent_s = spent.hook_s + spent.gap_s
        self._elapsed_s += spent_s
        self._receiver = 1 + (self._receiver - 1) * math.exp(-spent_s / (2 * self._trial_wait_s))
        self._rested += spent.page_bytes
        self._recent.add(spent, math.exp(-spent.payload_bytes / LINK_MEMORY))
        if self.place:
            cost, ratio = spent.hook_cpu_s / spent.page_bytes, spent.payload_bytes / spent.page_bytes
            self._weigh(self.place, cost, ratio, spent.page_bytes)
        self._note_wire(spent)
        if self._trial is None or self._is_over(self._trial, spent.payload_bytes):
            self._choose()

    @property
    def wants_look(self) -> bool:
        """Whether nothing has told for a while what pages cost and save."""
        return self.place == 0 and self._elapsed_s >= self._next_look_s

    def look(self, place: int, cpu_s: float, page_bytes: float, payload_bytes: float) -> None:
        """Learn from pages that were compressed only to see what it takes.

        Args:
            place: at which place in the ladder.
            cpu_s: of a processor.
            page_bytes, payload_bytes: in and out.
        """
        self._elapsed_s += cpu_s
        self._next_look_s = self._elapsed_s + cpu_s / LOOK_SHARE
        self._weigh(place, cpu_s / page_bytes, payload_bytes / page_bytes, PAGE_MEMORY / 4)
        if self._trial is None:
            self._choose()

    def _weigh(self, place: int, cost: float, ratio: float, page_bytes: float) -> None:
        rung = self._ladder[place]
        self._pages_known = min(self._pages_known + page_bytes, PAGE_MEMORY)
        new = 1 - math.exp(-page_bytes / self._pages_known)
        saving = max(1 - ratio, 0.0)
        self._dearer += (cost / rung.cost - self._dearer) * new
        self._keener += (saving / rung.saving - self._keener) * new

    def _note_wire(self, spent: Spent) -> None:
        if self._waits(spent):
            self._free = Spent()
        else:
            self._free.add(spent)
            if self._free.payload_bytes > JUMP:
                self._recent = replace(self._free)
        recent = self._recent
        elapsed = recent.hook_s + recent.gap_s
        if elapsed <= 0:
            return
        most = elapsed / recent.payload_bytes
        self._is_held_up = self._waits(recent)
        if self._is_held_up:
            if self._sunk < 0.7:  # it was thought of as faster than it is
                self._slack = min(2 * self._slack, MOST_SLACK)
            self._wire_s, self._sunk = most, 1.0
            return
        spent_s = spent.hook_s + spent.gap_s
        sinks = math.exp(-(spent.payload_bytes + spent_s / SINKING_S * SLACK) / self._slack)
        self._sunk *= sinks
        if self._sunk < 0.1:
            self._slack, self._sunk = SLACK, 1.0
        self._wire_s = most if self._wire_s is None else min(self._wire_s * sinks, most)

    def _waits(self, spent: Spent) -> bool:
        """Whether the link, or the receiver, held up what was spent."""
        waited = spent.gap_s - spent.gap_cpu_s - spent.gap_queue_s
        return waited >= WAITING * (spent.hook_s + spent.gap_s)

    @property
    def _contention(self) -> float:
        """Time over processor time."""
        r = self._recent
        return max(1.0, r.hook_s / r.hook_cpu_s) if r.hook_cpu_s > 0 else 1.0

    def _pace(self, place: int) -> float:
        """Seconds that a byte of pages would take."""
        rung, recent = self._ladder[place], self._recent
        cost = rung.cost * (self._dearer if place else 1.0)
        left = 1 - min(rung.saving * self._keener, 0.99)
        wire = self._wire_s or 0.0
        if self.place and not place:
            wire /= self._receiver
        elif place and not self.place:
            wire *= self._receiver
        send = recent.gap_cpu_s / recent.payload_bytes if recent.payload_bytes else 0.0
        work = self._contention * (cost + send * left)
        return float((work**SHARPNESS + (wire * left) ** SHARPNESS) ** (1 / SHARPNESS) + THRIFT * work)

    def _choose(self) -> None:
        paces = [self._pace(place) for place in range(len(self._ladder))]
        best = min(range(len(paces)), key=paces.__getitem__)
        gain = paces[best] / paces[self.place]
        if gain < FAR_BETTER or (gain < GAIN and self._rested >= REST):
            self._change(best)
        elif self.place and self._is_trial_due():
            longest_s = 2 * TRIAL_BYTES * paces[self.place]
            self._trial = _Trial(self._wire_s or 0.0, self.place, TRIAL_BYTES, self._elapsed_s + longest_s)
            self._change(0)

    def _change(self, place: int) -> None:
        if (self.place == 0) != (place == 0) and self._wire_s is not None:
            self._wire_s *= 1 / self._receiver if self.place else self._receiver
        self.place, self._rested = place, 0.0

    def _is_trial_due(self) -> bool:
        recent = self._recent
        pace = (recent.hook_s + recent.gap_s) / recent.page_bytes
        return (
            self._is_held_up
            and self._elapsed_s >= self._next_trial_s
            and self._rested >= REST
            and pace < TRIAL_PACE * self._contention
            and self._contention * (self._ladder[0].cost + recent.gap_cpu_s / recent.payload_bytes) < 0.7 * pace
        )

    def _is_over(self, trial: _Trial, payload_bytes: float) -> bool:
        """Count a trial's bytes; at its end take what it told."""
        half = trial.left > TRIAL_BYTES / 2
        trial.left -= payload_bytes
        if half and trial.left <= TRIAL_BYTES / 2:
            self._recent = Spent()
        if trial.left > 0 and self._elapsed_s < trial.until_s:
            return False
        recent, self._trial = self._recent, None
        if recent.payload_bytes:
            self._wire_s = (recent.hook_s + recent.gap_s) / recent.payload_bytes
            self._receiver = max(1.0, trial.wire_s / self._wire_s)
        pays = self._pace(0) < GAIN * self._pace(trial.place)
        self._trial_wait_s = TRIAL_WAIT_S if pays else self._trial_wait_s * TRIAL_BACKOFF
        self._next_trial_s = self._elapsed_s + self._trial_wait_s
        return True


@dataclass(slots=True)
class _Trial:
    """Of pages as they are.

    Args:
        wire_s: what a payload byte took before.
        place: what they went by before.
        left: payload bytes until it is over.
        until_s: when it is over although some are left: it does not pay.
    """

    wire_s: float
    place: int
    left: float
    until_s: float
