"""How long a migration takes: arithmetic on what was measured of a sample. No clock, no processes.

Rules of this file: a migration is a pipeline of three stages that work at the same time (the source's processors, the
link, the destination's processors), so its time is that of the slowest, and what it takes to begin and to end. The
processors' share is seconds that were measured in both processes, system calls included, not a codec's bare rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

SHARED, TWO_HOSTS = 1, 2
_STEPS = 60
"""Halvings of a range of bandwidths: more than a float can tell apart."""
_LEAST_BITS_PER_S, _MOST_BITS_PER_S = 1e6, 1e13


@dataclass(frozen=True)
class Setting:
    """Where a migration is to run."""

    link_bits_per_s: float
    channels: int
    cpus: int
    """That each host has for it."""
    hosts: int = SHARED
    """1: both ends share one host's processors, as `bench` measures; 2: each has its own."""


@dataclass(frozen=True)
class Cost:
    """What a migration by one method takes, whatever the link."""

    method: str
    wire_bytes: float
    source_cpu_s: float
    destination_cpu_s: float
    fixed_s: float = 0.0
    """To begin and to end."""
    stretch: float = 1.0
    """How many times longer the processors took in the trial than if their seconds were spread evenly."""

    @property
    def cpu_s(self) -> float:
        """Of both ends."""
        return self.source_cpu_s + self.destination_cpu_s

    def scaled(self, factor: float) -> Cost:
        """Of so many times as many pages; what is fixed stays."""
        return replace(
            self,
            wire_bytes=self.wire_bytes * factor,
            source_cpu_s=self.source_cpu_s * factor,
            destination_cpu_s=self.destination_cpu_s * factor,
        )


def stages(cost: Cost, setting: Setting) -> dict[str, float]:
    """Seconds that each stage needs by itself: link, source, destination, and, of one host, both ends together."""
    usable = min(setting.channels, setting.cpus)
    found = {
        "link": cost.wire_bytes * 8 / setting.link_bits_per_s,
        "source": cost.source_cpu_s * cost.stretch / usable,
        "destination": cost.destination_cpu_s * cost.stretch / usable,
    }
    if setting.hosts == SHARED:
        found["processors"] = cost.cpu_s * cost.stretch / setting.cpus
    return found


def bound(cost: Cost, setting: Setting) -> str:
    """The stage that everything waits for."""
    found = stages(cost, setting)
    return max(found, key=lambda name: found[name])


def time_s(cost: Cost, setting: Setting) -> float:
    """Seconds of the whole migration."""
    return cost.fixed_s + max(stages(cost, setting).values())


def stretch(cost: Cost, setting: Setting, total_s: float) -> float:
    """What `Cost.stretch` must be for a trial without a limit to have taken so long; at least 1.

    Args:
        cost: of the trial, with a stretch of 1.
        setting: of the trial.
        total_s: that it took.
    """
    even = max(seconds for name, seconds in stages(cost, setting).items() if name != "link")
    return max((total_s - cost.fixed_s) / even, 1.0) if even > 0 else 1.0


def filling_channels(cost: Cost, setting: Setting) -> int:
    """Channels, each with a processor, at which the link is what everything waits for."""
    link_s = stages(cost, setting)["link"]
    busiest = max(cost.source_cpu_s, cost.destination_cpu_s)
    return max(-int(-busiest // link_s), 1) if link_s > 0 else 1


def crossover_bits_per_s(plain: Cost, others: Sequence[Cost], setting: Setting) -> float | None:
    """The bandwidth above which `plain` is the fastest.

    Args:
        plain: the method that does not compress.
        others: those that do.
        setting: all but its link counts.

    Returns:
        Bits each second; 0 if it is the fastest at any, None if at none up to 10 Tbit/s.
    """

    def plain_wins(link: float) -> bool:
        at = replace(setting, link_bits_per_s=link)
        return all(time_s(plain, at) <= time_s(other, at) for other in others)

    low, high = _LEAST_BITS_PER_S, _MOST_BITS_PER_S
    if plain_wins(low):
        return 0.0
    if not plain_wins(high):
        return None
    for _ in range(_STEPS):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if plain_wins(middle) else (middle, high)
    return high
