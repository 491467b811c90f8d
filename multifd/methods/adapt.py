"""Which level a channel compresses at while it goes: arithmetic alone; no clock, no thread, no codec.

What a channel minimises is the time for each byte of memory. While one packet is compressed, the kernel sends those
before it, so a byte takes about as long as the longer of the two: to compress it, or to send what it comes to. A model
of that proposes, from what packets took:

* What the pages at hand cost and save at the level that they went by, and so at the others: the ladder says how levels
  compare. Pages that do not shrink go as they are.
* How much longer than its processor time a packet takes: others want the processors, too.
* What a byte on the wire takes, if the channel waits for the link in between its hooks; if it does not, it is less than
  what it takes to make that byte, and thought to be a little less.
* What the kernel counts of the network, if it says: bytes that were acknowledged in the last round trip. Where bytes
  queue up that is the link, before anybody has waited for it. Where they do not it may be a burst that somebody's
  buffers took, so it is an invitation to try, no more. And how long the link was busy: who waits while it is idle waits
  for the receiver, or for a processor, and no level is to blame.

Where that is not enough a probe decides. If nothing is waited for, or a wait may as well be for the receiver, a cheaper
level is tried for a few packets, or pages as they are: they stay so if the memory goes faster by it, or the link holds
nothing up, and if not the link is known better. A probe that did not pay is not repeated for a while, twice as long
each time, unless the link becomes another. Where more time passes without a processor than in waiting, a wait may be
for somebody who has none either: then nothing dearer is taken.

A channel begins at a cheap level: of a slow link that costs little, and a fast one is recognised after two packets.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from multifd.methods.spent import Spent

_MIB = 1 << 20
FREE = 0.5 * _MIB
"""Payload bytes that went without a wait, and so without a limit: twice what the kernel takes before it has sent what
was before (multifd/transport/connection.py)."""
UNSEEN = 1 * _MIB
"""Payload bytes of a channel that may be on their way without its knowing, there, in routers and at the receiver: so
much after a change tells of what was before."""
JUDGED = 1 * _MIB
"""Payload bytes after that by which a probe is judged: two packets as they are."""
PAGE_MEMORY = 4 * _MIB
"""Bytes of pages whose cost and saving are remembered."""
REST = 2 * _MIB
"""Bytes of pages for which a level is kept, unless another is far better: a change costs the history."""
GAIN, FAR_BETTER, FAR_WORSE = 0.96, 0.8, 2.0
"""The time at another level over that at the present one: worth a change; worth one at once; a probe is over."""
SHARPNESS = 6.0
"""How two times that overlap add up, as the exponent of a norm: 1 is one after the other, infinite is the longer one
alone. At 6 two equal ones take 12 % longer than one, so neither is chosen to be just as long as the other."""
THRIFT = 0.05
"""What a second of compressing counts beside the time it takes: of two levels that are as fast, the cheaper."""
UNFELT = 0.85
"""What a byte takes on a link that is not waited for, over what it takes to make it: less than 1, so that a channel
comes to cheaper levels, and not much less, for it may be just as long."""
WORDS = 3
"""Of the kernel's, of which the second fastest counts: while processors are short any one may be far off."""
NO_SHRINKING = 0.97
"""Payload over pages: what is above is not worth the receiver's time."""
LOOK_SHARE = 0.05
"""Of all time, what looks may take: they are made while the link is what is slow."""
RECEIVING = 4e-9
"""Seconds of a processor for each byte of pages: a receiver of zstd takes at most half of that (an EPYC's core), so one
that is slower waits for the link."""
OTHER_LINK = 4.0
"""How many times faster or slower it has become if a probe that did not pay may well pay now."""
BAR_S = 1.0
"""Until the next probe, after one that did not pay; twice as long each time."""
WATCH_S = 0.02
"""Of the start, in which the policy is asked after each packet: as long as a call of the pump."""


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
class _Probe:
    """Of a cheaper place.

    Args:
        origin: the place before.
        before: what packets took there.
        left: payload bytes until it is over.
        spent: what packets take now; what tells more of those before is left out.
    """

    origin: int
    before: Spent
    left: float = UNSEEN + JUDGED
    spent: Spent = field(default_factory=Spent)


class Policy:
    """One channel's.

    Args:
        ladder: from the cheapest to the dearest; the first is the pages as they are.
        start: the place in it to begin at.
        doubted: how many packets go by that before a link is believed to be fast: a link's buffers are.
    """

    def __init__(self, ladder: Sequence[Rung], start: int, doubted: int = 0) -> None:
        self._ladder, self._doubted = ladder, doubted
        self.place = start
        """In the ladder: what the next packet is to go by."""
        self._dearer, self._keener = 1.0, 1.0  # the pages at hand: cost and saving as factors of the ladder's
        self._pages_known = 0.0
        self._recent, self._free = Spent(), Spent()  # lately; since it waited last
        self._words: deque[float] = deque(maxlen=WORDS)  # of the kernel on a payload byte's time
        self._wire_s = math.inf  # a payload byte's time
        self._rested = 0.0  # bytes of pages since the last change
        self._probe: _Probe | None = None
        self._next_probe_s, self._bar_s = 0.0, BAR_S
        self._barred_at_s = 1.0  # what a payload byte took when a probe did not pay
        self._elapsed_s = self._next_look_s = 0.0
        self._is_new = True  # nothing waited yet, and pages as they are were not tried

    @property
    def level(self) -> int | None:
        """What the next packet is to go by; None: as it is."""
        return self._ladder[self.place].level

    @property
    def is_watching(self) -> bool:
        """Whether a word after each packet is wanted: the next may go by another level."""
        return self._probe is not None or (self.place > 0 and self._elapsed_s < WATCH_S)

    def note(self, place: int, spent: Spent) -> None:
        """Learn from packets, at least one, and choose anew.

        Args:
            place: what they went by: a change may come a packet late.
            spent: what they took.
        """
        self._elapsed_s += spent.hook_s + spent.gap_s
        if place:
            # The first packet touches the codec's memory for the first time, which no other has to pay for.
            cost = spent.hook_cpu_s / spent.page_bytes if self._pages_known else self._ladder[place].cost
            self._weigh(place, cost, spent.payload_bytes / spent.page_bytes, spent.page_bytes)
        self._note_wire(place, spent)
        if place != self.place:
            return
        self._rested += spent.page_bytes
        if self._probe is None:
            if not 1 / OTHER_LINK < self._wire_s / self._barred_at_s < OTHER_LINK:
                self._next_probe_s, self._bar_s = 0.0, BAR_S
            self._doubted = max(self._doubted - 1, 0)
            self._choose()
        elif self._is_over(self._probe, spent):
            self._probe = None

    @property
    def wants_look(self) -> bool:
        """Whether nothing has told for a while what pages save, and some level would pay if they are typical."""
        is_known = self.place or self._elapsed_s < self._next_look_s
        if is_known or not self._recent.payload_bytes or not self._recent.is_held_up:
            return False
        keener = self._keener or 1.0
        best = min(self._pace(place, self._wire_s, keener) for place in range(1, len(self._ladder)))
        return best < GAIN * self._pace(0, self._wire_s, keener)

    def look(self, place: int, cpu_s: float, page_bytes: float, payload_bytes: float) -> None:
        """Learn from pages that were compressed only to see what it saves.

        Args:
            place: at which place in the ladder.
            cpu_s: what that took of a processor, which looks may take a share of. A few pages in a new frame cost more
                than others do, each, so it says nothing of these.
            page_bytes, payload_bytes: in and out.
        """
        self._elapsed_s += cpu_s
        self._next_look_s = self._elapsed_s + cpu_s / LOOK_SHARE
        self._weigh(place, self._dearer * self._ladder[place].cost, payload_bytes / page_bytes, PAGE_MEMORY / 4)
        if self._probe is None and self._recent.payload_bytes:
            self._choose()

    def _weigh(self, place: int, cost: float, ratio: float, page_bytes: float) -> None:
        if ratio > NO_SHRINKING:
            self._keener = 0.0  # and what it cost tells nothing: a codec soon gives up
            return
        rung = self._ladder[place]
        self._pages_known = min(self._pages_known + page_bytes, PAGE_MEMORY)
        new = 1 - math.exp(-page_bytes / self._pages_known)
        self._dearer += (cost / rung.cost - self._dearer) * new
        self._keener += ((1 - ratio) / rung.saving - self._keener) * (new if self._keener else 1.0)

    def _note_wire(self, place: int, spent: Spent) -> None:
        if spent.is_held_up:
            slower = not spent.is_contended and spent.wire_s > OTHER_LINK * self._wire_s
            if slower or self._is_free:
                self._recent = Spent()  # of a link that was faster
            self._recent.add(spent)
            self._free = Spent()
        else:
            self._recent.add(spent)
            self._free.add(spent)
            if self._is_free:
                self._recent = replace(self._free)
        if spent.link_s:
            self._words.append(spent.kernel_s)
        recent, kernel_s = self._recent, self._kernel_s
        self._is_new = self._is_new and place > 0 and not recent.is_held_up
        if self._is_new and kernel_s:
            self._wire_s = kernel_s
        elif recent.is_held_up:
            self._wire_s = max(recent.wire_s, kernel_s)
        elif kernel_s > recent.wire_s:
            self._wire_s = kernel_s  # what does not wait goes into buffers
        else:
            self._wire_s = UNFELT * recent.made_s

    @property
    def _kernel_s(self) -> float:
        """A payload byte's time by the kernel's word on the network; 0: it says nothing."""
        return sorted(self._words)[:2][-1] if self._words else 0.0

    @property
    def _is_free(self) -> bool:
        """Whether so much went without a wait that there is nothing to wait for."""
        return self._free.payload_bytes >= FREE

    def _left(self, place: int, keener: float) -> float:
        """Payload bytes for each byte of pages."""
        return 1 - min(self._ladder[place].saving * keener, 0.99)

    def _pace(self, place: int, wire_s: float, keener: float) -> float:
        """Seconds that a byte of pages would take, if one of payload takes `wire_s`."""
        recent, left = self._recent, self._left(place, keener)
        cost = self._ladder[place].cost * (self._dearer if place else 1.0)
        work = recent.contention * (cost + recent.gap_cpu_s / recent.payload_bytes * left)
        return float((work**SHARPNESS + (wire_s * left) ** SHARPNESS) ** (1 / SHARPNESS) + THRIFT * work)

    def _choose(self) -> None:
        """Go where the time for each byte is least."""
        recent = self._recent
        if self.place and not self._keener:
            self._go(0)
        elif self.place and self._elapsed_s >= self._next_probe_s and (probed := self._worth_probing()) is not None:
            self._begin_probe(probed)
        else:
            highest = self.place if recent.is_contended else len(self._ladder) - 1
            lowest = self.place if self._doubted else 0
            paces = {place: self._pace(place, self._wire_s, self._keener) for place in range(lowest, highest + 1)}
            best = min(paces, key=lambda place: paces[place])
            gain = paces[best] / paces[self.place]
            if gain < FAR_BETTER or (gain < GAIN and self._rested >= REST):
                if self._is_new and not best:
                    self._begin_probe(best)
                else:
                    self._go(best)

    def _worth_probing(self) -> int | None:
        """A cheaper place that may be better than the model knows: nothing holds the channel up, or perhaps it is the
        receiver, or who has its processor. None: there is none."""
        recent, kernel_s = self._recent, self._kernel_s
        if self._free.payload_bytes:
            is_worth_it = self._is_free or 0 < OTHER_LINK * kernel_s < self._wire_s
        else:
            is_doubtful = recent.is_contended or recent.pace_s < RECEIVING * recent.contention
            is_worth_it = recent.is_held_up and is_doubtful and self._rested >= REST
        if not is_worth_it or self._doubted:
            return None
        paces = [self._pace(place, kernel_s, self._keener) for place in range(self.place if kernel_s else 1)]
        best = min(range(len(paces)), key=lambda place: paces[place])
        return best if paces[best] < GAIN * recent.pace_s else None

    def _begin_probe(self, place: int) -> None:
        self._probe = _Probe(self.place, replace(self._recent))
        self._go(place)

    def _go(self, place: int) -> None:
        self.place, self._rested, self._free = place, 0.0, Spent()

    def _is_over(self, probe: _Probe, spent: Spent) -> bool:
        """Count what was spent on a probe; at its end stay, or go back."""
        probe.spent.add(spent)
        before = probe.before.pace_s
        is_unseen, probe.left = probe.left > JUDGED, probe.left - spent.payload_bytes
        kernel_s = spent.kernel_s if spent.is_busy else self._kernel_s
        here, there = (self._pace(place, kernel_s, self._keener) for place in (self.place, probe.origin))
        is_slower = kernel_s * self._left(self.place, self._keener) > before or there < FAR_BETTER * here
        is_refuted = kernel_s > 0 and is_slower
        is_hopeless = spent.is_held_up and not spent.is_contended and probe.spent.pace_s > FAR_WORSE * before
        if probe.left > 0 and not (is_refuted or is_hopeless):
            if is_unseen and probe.left <= JUDGED:
                probe.spent = Spent()
            return False
        if not is_refuted and (probe.spent.pace_s <= before or not probe.spent.is_held_up):
            self._recent, self._bar_s = probe.spent, BAR_S
            self._wire_s = probe.spent.wire_s
            return True
        self._recent = probe.before if is_refuted or probe.before.is_held_up else probe.spent
        self._wire_s = kernel_s if is_refuted else self._recent.wire_s
        self._barred_at_s, self._next_probe_s = self._wire_s, self._elapsed_s + self._bar_s
        self._bar_s *= 2
        self._go(probe.origin)
        return True
