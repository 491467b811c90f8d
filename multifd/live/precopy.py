"""When a live migration does another round, when it switches over, when it gives up: arithmetic only.

Rules of this file: no I/O and no clock; time comes in as an argument. What counts is guest bytes,
the pages themselves, never bytes on the wire: what is left to send is guest bytes too, and a rate of
compressed bytes would make the downtime look longer by the ratio (QEMU 8.2 to 10.0 divides so,
migration/migration.c migration_update_counters).
"""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass

from multifd.errors import UsageError

WINDOW_S = 0.1
"""The least time a rate is taken over: BUFFER_DELAY, migration/migration.c, QEMU 10.0."""
TRIGGER_PERCENT = 50
THROTTLE_INITIAL = 20
THROTTLE_INCREMENT = 10
THROTTLE_MAX = 99
"""Auto-converge: the DEFAULT_MIGRATE_..._THROTTLE_... values, migration/options.c, QEMU 10.0."""
_TRIGGER_ROUNDS = 2  # dirty_rate_high_cnt in migration_trigger_throttle, migration/ram.c, QEMU 10.0


class Decision(enum.Enum):
    """What follows a look at the dirty log."""

    SWITCH_OVER = "switch over"
    ANOTHER_ROUND = "another round"
    GIVE_UP = "give up"


@dataclass(frozen=True)
class Limits:
    """What the user allows."""

    downtime_limit_s: float = 0.3
    """QEMU's DEFAULT_MIGRATE_SET_DOWNTIME, migration/options.c: 300 ms."""
    max_rounds: int = 30
    """QEMU has no such limit: it goes on until it is cancelled."""
    at_max_rounds: Decision = Decision.GIVE_UP
    """Or `Decision.SWITCH_OVER`: stand still for as long as it takes."""

    def __post_init__(self) -> None:
        if not 0 < self.downtime_limit_s <= 2000:  # MAX_MIGRATE_DOWNTIME_SECONDS, migration/options.c
            raise UsageError(f"downtime limit of {self.downtime_limit_s:g} s, expected above 0 and at most 2000")
        if self.max_rounds < 1:
            raise UsageError(f"max_rounds: got {self.max_rounds}, expected at least 1")


class Precopy:
    """The figures of one live migration; use once.

    Args:
        page_size: bytes.
        limits: what the user allows.
        now: seconds of a monotonic clock, when the dirty log was armed.
    """

    def __init__(self, page_size: int, limits: Limits, now: float) -> None:
        self._page_size, self._limits = page_size, limits
        self._moved: deque[tuple[int, float]] = deque()
        self._scanned_at = now
        self._high_count = 0
        self.rounds = 0
        """Rounds that are done."""
        self.dirty_pages = 0
        """What the last look found: what is left to send."""
        self.dirty_pages_per_s = 0.0
        """Over the time between the last two looks."""
        self.scan_s = 0.0
        """How long the last look took; another one falls into the downtime."""
        self.throttle_percent = 0
        """By how much the writers are asked to slow down."""

    def sent(self, pages: int, seconds: float) -> None:
        """A round is done.

        Args:
            pages: normal pages; zero pages cost next to nothing and would flatter the rate.
            seconds: until the destination had them in place.
        """
        self.rounds += 1
        self._moved.append((pages * self._page_size, seconds))
        while len(self._moved) > 1 and sum(s for _, s in self._moved) - self._moved[0][1] >= WINDOW_S:
            self._moved.popleft()

    def scanned(self, dirty_pages: int, now: float, scan_s: float) -> None:
        """The dirty log was read.

        Args:
            dirty_pages: what it found.
            now: when, on the clock of the constructor.
            scan_s: how long it took.
        """
        period = now - self._scanned_at
        self._scanned_at, self.dirty_pages, self.scan_s = now, dirty_pages, scan_s
        self.dirty_pages_per_s = dirty_pages / period if period > 0 else 0.0
        moved = self._moved[-1][0] if self._moved else 0
        if dirty_pages * self._page_size * 100 > moved * TRIGGER_PERCENT:
            self._high_count += 1
            if self._high_count >= _TRIGGER_ROUNDS:
                self._high_count = 0
                step = THROTTLE_INCREMENT if self.throttle_percent else THROTTLE_INITIAL
                self.throttle_percent = min(self.throttle_percent + step, THROTTLE_MAX)

    @property
    def bandwidth_bytes_per_s(self) -> float:
        """Guest bytes each second, of the last rounds that make up 100 ms; 0 until pages were sent."""
        seconds = sum(s for _, s in self._moved)
        return sum(b for b, _ in self._moved) / seconds if seconds > 0 else 0.0

    @property
    def expected_downtime_s(self) -> float:
        """What switching over now would take; infinite until a rate is known.

        That is the last look, what this one found, and what was written while it was taken.
        """
        left = (self.dirty_pages + self.dirty_pages_per_s * self.scan_s) * self._page_size
        if not left:
            return self.scan_s
        rate = self.bandwidth_bytes_per_s
        return left / rate + self.scan_s if rate else float("inf")

    def decide(self) -> Decision:
        """What to do after `scanned`."""
        if self.expected_downtime_s <= self._limits.downtime_limit_s:
            return Decision.SWITCH_OVER
        if self.rounds >= self._limits.max_rounds:
            return self._limits.at_max_rounds
        return Decision.ANOTHER_ROUND

    def explain(self) -> str:
        """Why it does not converge, in figures."""
        dirty_rate = self.dirty_pages_per_s * self._page_size
        return (
            f"after {self.rounds} rounds {_mib(self.dirty_pages * self._page_size)} MiB are still dirty: the source "
            f"writes to {_mib(dirty_rate)} MiB/s, {_mib(self.bandwidth_bytes_per_s)} MiB/s reach the destination; it "
            f"would stand still for {self.expected_downtime_s * 1e3:.0f} ms, {self.scan_s * 1e3:.0f} of them to look "
            f"for what is dirty, and {self._limits.downtime_limit_s * 1e3:.0f} are allowed"
        )


def _mib(nbytes: float) -> str:
    return f"{nbytes / (1 << 20):.4g}"
