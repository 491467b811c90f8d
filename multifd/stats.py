"""QEMU's figures for a migration (query-migrate), as one object that can be asked at any time.

Each channel counts into its own `ChannelStats`, written by that channel's thread alone; the
engine's main thread calls `MigrationStats.tick` and reads the sums.

Source of names and formulas: migration/migration.c of QEMU 10.0 (migration_update_counters,
migration_calculate_complete).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

_WINDOW_S = 0.1  # BUFFER_DELAY, migration/migration.c


@dataclass(slots=True)
class ChannelStats:
    """What one channel has moved."""

    normal_pages: int = 0
    zero_pages: int = 0
    counters: dict[str, int] = field(default_factory=dict)
    """The method's own, ``p.counters``."""


@dataclass(frozen=True)
class Result:
    """The figures as they stand; `as_dict` is the command line's JSON."""

    status: str
    """active, completed, failed, cancelled, or unknown (the connection died before confirmation)."""
    method: str = ""
    channels: int = 0
    total_time_ms: float = 0.0
    """From the call to the end: the stream flushed and SHUT received."""
    setup_time_ms: float = 0.0
    """Up to the end of the ram section's SETUP."""
    downtime_ms: float | None = 0.0
    """From the moment the source stands still to the end; None at a destination. Its stream marks that moment late: in
    six captures of a running pc by QEMU 7.2.22 and 10.0.2 the mark came 4 to 177 ms after query-migrate's downtime
    began."""
    mbps: float = 0.0
    """10^6 bits each second: all bytes over total time without setup time; while active, of the
    last window."""
    pages_per_second: int = 0
    """Of the last window of at least 100 ms, after completion as well."""
    normal_pages: int = 0
    zero_pages: int = 0
    transferred_bytes: int = 0
    """Bytes on the wire, main and all channels."""
    ram_bytes: int = 0
    dirty_sync_count: int | None = 0
    """How often the source was asked which pages are dirty; None at a destination. The stream does not say it: five
    streams of QEMU 7.2.22 and 10.0.2 with 3 dirty syncs have 4 to 6 ram sections, 1 to 3 sync points after SETUP."""
    method_stats: dict[str, int] = field(default_factory=dict)
    """The method's own counters, summed over channels."""
    tracker: str = ""
    """Of a live source: how its writes are found; this and what follows is empty for any other."""
    tracker_reason: str = ""
    """Why not by a better tracker."""
    rounds: int = 0
    """That were sent while the source ran."""
    dirty_pages: int = 0
    """What the last look at the dirty log left to send."""
    dirty_pages_rate: int = 0
    """Pages each second that the source wrote to, between the last two looks while it ran."""
    expected_downtime_ms: float | None = None
    """What switching over then would have taken; None until a rate is known."""
    throttle_percent: int = 0
    """How much the source was asked to slow down (QEMU's cpu-throttle-percentage)."""
    error: str | None = None
    notes: tuple[str, ...] = ()
    """What else is to be said of an error, above all where the memory is; also of a migration that completed."""

    def as_dict(self) -> dict[str, Any]:
        """A dict of plain values, in the order of the fields."""
        return asdict(self)


@dataclass(frozen=True)
class RelayResult:
    """The figures of one migration through a relay; `as_dict` is the command line's JSON."""

    status: str
    """waiting (no source has connected), active, completed, failed, cancelled, or unknown (the stream's end was passed
    on, its confirmation was not)."""
    uuid: str = ""
    """The guest's, as its channels give it; empty if they give none, or none has come."""
    in_method: str = ""
    """The source's; empty as long as no packet with pages came."""
    out_method: str = ""
    channels: int = 0
    total_time_ms: float = 0.0
    """From the source's first connection to the end of its last."""
    packets: int = 0
    """Of all kinds, over all channels."""
    normal_pages: int = 0
    zero_pages: int = 0
    """In packets, and on main as a source of older machine types sends them."""
    bytes_in: int = 0
    """From the source, main and all channels."""
    bytes_out: int = 0
    """To the destination, main and all channels."""
    sync_points: int = 0
    """On main, one for each time that every channel was brought to the same point: at least one for each dirty sync."""
    stalls: int = 0
    """How often a connection to the destination took nothing for a quarter of a second, summed over all."""
    rejected: int = 0
    """Connections that were not a migration's and were closed."""
    tls_failures: int = 0
    """Those of them that did not get through the TLS handshake, or were not authorised."""
    out_tls_failures: int = 0
    """Connections to the destination that TLS ended: it is not who was expected, or said that this side is not."""
    in_stats: dict[str, int] = field(default_factory=dict)
    out_stats: dict[str, int] = field(default_factory=dict)
    """The methods' own counters, summed over channels."""
    error: str | None = None
    notes: tuple[str, ...] = ()
    """What else is to be said of an error, above all where the memory is."""

    def as_dict(self) -> dict[str, Any]:
        """A dict of plain values, in the order of the fields."""
        return asdict(self)


class MigrationStats:
    """Adds up a migration. Time is an argument: seconds of any monotonic clock.

    Args:
        now: the start.
    """

    def __init__(self, now: float) -> None:
        self.status = "active"
        self.method = ""
        self.ram_bytes = 0
        self.dirty_sync_count = 0
        self.is_source = True
        """Whether this end is the source: a destination leaves out what it cannot know."""
        self.channels: list[ChannelStats] = []
        self.zero_pages_on_main = 0
        """ZERO words that were received; a sender counts those of each channel in its own figures."""
        self.wire_bytes = 0
        """Bytes of all connections: init packets, headers, payload; counted by the engine before it asks."""
        self.live: dict[str, Any] = {}
        """The fields of `Result` that a live source adds; written by the thread of its caller alone."""
        self.error: str | None = None
        self.notes: tuple[str, ...] = ()
        self._start = now
        self._setup_end: float | None = None
        self._switchover: float | None = None
        self._end: float | None = None
        self._window = (now, 0, 0)
        self._mbps = 0.0
        self._pages_per_second = 0

    def add_channel(self) -> ChannelStats:
        """The counters of one more channel."""
        channel = ChannelStats()
        self.channels.append(channel)
        return channel

    def begin(self, now: float) -> None:
        """The migration began only `now`, not when this object was made: a receiver waits for its sender."""
        self._start = now
        self._window = (now, 0, 0)

    def setup_done(self, now: float) -> None:
        """SETUP is on its way."""
        self._setup_end = now

    def switchover(self, now: float) -> None:
        """The source stands still from now on."""
        self._switchover = now

    def finish(self, now: float, status: str, error: str | None = None, notes: Iterable[str] = ()) -> None:
        """The migration ended; later calls change nothing."""
        if self._end is None:
            self.tick(now)
            self._end = now
            self.status, self.error, self.notes = status, error, tuple(notes)

    def is_due(self, now: float) -> bool:
        """Whether 100 ms have passed since the last `tick`."""
        return self._end is None and now - self._window[0] >= _WINDOW_S

    def tick(self, now: float) -> bool:
        """Close the window if 100 ms have passed; returns whether it did."""
        start, window_bytes, window_pages = self._window
        if not self.is_due(now):
            return False
        moved, pages = self.wire_bytes, self._pages()
        self._mbps = (moved - window_bytes) * 8 / (now - start) / 1e6
        self._pages_per_second = round((pages - window_pages) / (now - start))
        self._window = (now, moved, pages)
        return True

    def _pages(self) -> int:
        return self.zero_pages_on_main + sum(c.normal_pages + c.zero_pages for c in self.channels)

    def _downtime_ms(self, end: float) -> float:
        return 0.0 if self._switchover is None else round((end - self._switchover) * 1e3, 3)

    def snapshot(self, now: float) -> Result:
        """The figures as of `now`, or of the end if that was earlier."""
        end = now if self._end is None else self._end
        setup = (end if self._setup_end is None else self._setup_end) - self._start
        total = end - self._start
        moved = self.wire_bytes
        mbps = self._mbps
        if self._end is not None:
            mbps = moved * 8 / (total - setup) / 1e6 if total > setup else 0.0
        method_stats: Counter[str] = Counter()
        for channel in self.channels:
            method_stats.update(dict(channel.counters))  # a copy: the channel goes on counting
        return Result(
            status=self.status,
            method=self.method,
            channels=len(self.channels),
            total_time_ms=round(total * 1e3, 3),
            setup_time_ms=round(setup * 1e3, 3),
            downtime_ms=self._downtime_ms(end) if self.is_source else None,
            mbps=round(mbps, 3),
            pages_per_second=self._pages_per_second,
            normal_pages=sum(c.normal_pages for c in self.channels),
            zero_pages=self.zero_pages_on_main + sum(c.zero_pages for c in self.channels),
            transferred_bytes=moved,
            ram_bytes=self.ram_bytes,
            dirty_sync_count=self.dirty_sync_count if self.is_source else None,
            method_stats=dict(method_stats),
            **self.live,
            error=self.error,
            notes=self.notes,
        )
