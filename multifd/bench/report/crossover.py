"""From measured migrations to a time at any link, and to the links at which the best method becomes another.

A migration is bound by its link or by everything else: at ``L`` bits a second it takes the longer of its bytes over
``L`` and its time without a limit. Where it was measured under a limit, the line goes through what was measured: the
measured time over the calculated one is a factor, interpolated between links. Outside the links that were tried the
line is a calculation, and the page says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

_WORTH_NAMING = 1.05
_STEPS = 600


@dataclass(frozen=True)
class Curve:
    """Time against link of one method.

    Args:
        name: the method's.
        wire_bytes: what it moves.
        free_s: its time without a limit; None if that was not measured.
        at: seconds at each limit that was measured, by bits a second.
    """

    name: str
    wire_bytes: float
    free_s: float | None
    at: dict[float, float] = field(default_factory=dict)

    def knee(self) -> float:
        """Bits a second from which on the link does not matter."""
        return self.wire_bytes * 8 / self._floor()

    def covers(self, link: float) -> bool:
        """Whether anything is known of `link`: without an unlimited run only what lies between limits."""
        return self.free_s is not None or (bool(self.at) and min(self.at) <= link <= max(self.at))

    def seconds(self, link: float) -> float:
        """Total time at `link` bits a second."""
        return self._calculated(link) * self._factor(link)

    def _floor(self) -> float:
        return min(self.at.values()) if self.free_s is None else self.free_s

    def _calculated(self, link: float) -> float:
        return max(self.wire_bytes * 8 / link, self._floor())

    def _factor(self, link: float) -> float:
        known = [(limit, time / self._calculated(limit)) for limit, time in sorted(self.at.items())]
        if not known:
            return 1.0
        if self.free_s is not None:
            known.append((max(known[-1][0], self.knee()) * 10, 1.0))
        if link <= known[0][0]:
            return known[0][1]
        for (low, a), (high, b) in pairwise(known):
            if link <= high:
                share = math.log(link / low) / math.log(high / low)
                return math.exp((1 - share) * math.log(a) + share * math.log(b))
        return known[-1][1]


@dataclass(frozen=True)
class Best:
    """The fastest method between two links, in bits a second."""

    name: str
    low: float
    high: float


def span(curves: Sequence[Curve]) -> tuple[float, float]:
    """The links worth looking at, in bits a second: what was measured, and where anything is known without a limit,
    from 100 Mbit/s to where the link stops to matter."""
    links = [link for curve in curves for link in curve.at]
    knees = [curve.knee() for curve in curves if curve.free_s is not None]
    if knees:
        links += [1e8, 10 ** math.ceil(math.log10(max(*knees, 1e10)))]
    return min(links), max(links)


def ranking(curves: Sequence[Curve], low: float, high: float) -> list[Best]:
    """Who is fastest from `low` to `high`, in ascending order of links, without gaps; empty if nothing is known.

    A method is not named if the others are nowhere more than 5 per cent slower: that is what repetitions differ by.
    """
    links = [min(low * (high / low) ** (k / _STEPS), high) for k in range(_STEPS + 1)]
    times = {c.name: [c.seconds(link) if c.covers(link) else math.inf for link in links] for c in curves}
    while len(times) > 1:
        losses = {name: _loss(times, name) for name in times}
        least = min(losses, key=lambda name: losses[name])
        if losses[least] > _WORTH_NAMING:
            break
        del times[least]
    found: list[Best] = []
    for k, link in enumerate(links):
        best = min(times, key=lambda name: times[name][k], default=None)
        if best is None or times[best][k] == math.inf:
            continue
        if found and found[-1].name == best:
            found[-1] = Best(best, found[-1].low, link)
        else:
            found.append(Best(best, found[-1].high if found else link, link))
    return found


def _loss(times: Mapping[str, Sequence[float]], name: str) -> float:
    """How many times as long the best of the others takes, where that is most."""
    others = [column for other, column in times.items() if other != name]
    reached = [(k, mine) for k, mine in enumerate(times[name]) if mine < math.inf]
    return max((min(column[k] for column in others) / mine for k, mine in reached), default=0.0)
