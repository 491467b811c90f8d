"""A live source: which pages go in which round, when it is paused, and that a failure lets it run again.

Rules of this file: everything runs in the caller's thread. The log is armed before the first page is read. The
source is resumed exactly once if anything fails after `pause` was called, and never once the destination may have
taken over.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from multifd.engine.sync import Engine, Packet
from multifd.errors import NotConverged
from multifd.live import ranges
from multifd.live.arena import Arena
from multifd.live.choose import choose
from multifd.live.precopy import Decision, Limits, Precopy
from multifd.live.ranges import Ranges
from multifd.pages import Geometry, Offsets, Pages
from multifd.ram.block import MappedPages, SourceBlock, Staging, in_order
from multifd.wire.stream import Block, Machine
from multifd.wire.writer import encode_end


class LiveSource:
    """An arena with its tracker, as the sender sees it.

    Args:
        arena: the caller's.
        page_size: bytes.
        tracker: a name, or None for the best.
    """

    def __init__(self, arena: Arena, page_size: int, tracker: str | None) -> None:
        blocks = tuple(Block(region.idstr, region.nbytes) for region in arena.regions)
        # QEMU's machine without devices, so with one block named ram its -M none can be the destination.
        self.machine = Machine("none", page_size, blocks)
        self.tracker, self.tracker_reason = choose(arena, page_size, tracker)

    @property
    def blocks(self) -> Sequence[SourceBlock]:
        """See `multifd.ram.block.Source`."""
        return self.tracker.blocks

    def device_state(self) -> Iterator[bytes]:
        """See `multifd.ram.block.Source`: there are no devices."""
        yield encode_end(self.machine.page_size)

    def close(self) -> None:
        """See `multifd.ram.block.Source`: writes are not tracked any more."""
        self.tracker.close()


class _Untouched:
    """A block's pages that are known to be zero: nothing of them is read."""

    def __init__(self, block: SourceBlock, page_size: int) -> None:
        self.idstr, self.used_length, self._page_size = block.idstr, block.used_length, page_size

    def portions(self, page_count: int) -> Iterator[Offsets]:
        return in_order(self.used_length, self._page_size, page_count)

    def load(self, offsets: Offsets, staging: Staging) -> Pages | None:
        return None

    def map(self, offsets: Offsets, staging: Staging) -> MappedPages | None:
        return MappedPages(np.ones(len(offsets), np.bool_), [])


class LiveSchedule:
    """Rounds until what is left fits the downtime; see `multifd.engine.sync.Schedule`.

    Args:
        source: what is sent.
        limits: of downtime and rounds.
        pause: makes the source stand still.
        resume: lets it run again.
        throttle: slows it down by a percentage.
    """

    def __init__(
        self,
        source: LiveSource,
        limits: Limits,
        pause: Callable[[], object],
        resume: Callable[[], object],
        throttle: Callable[[int], object] | None,
    ) -> None:
        self._source, self._tracker, self._limits = source, source.tracker, limits
        self._pause, self._resume, self._throttle = pause, resume, throttle
        self._geometry = Geometry.of(source.machine.page_size)
        self._left: list[Ranges] = []
        self._throttled = 0
        self._must_resume = False

    def rounds(self, engine: Engine) -> Iterator[Iterable[Packet]]:
        """See `multifd.engine.sync.Schedule`.

        Raises:
            NotConverged: after the most rounds that are allowed.
        """
        stats = engine.stats
        stats.live.tracker, stats.live.tracker_reason = self._tracker.name, self._source.tracker_reason
        used = self._tracker.arm()
        stats.dirty_sync_count += 1
        precopy = Precopy(self._geometry.page_size, self._limits, time.monotonic())
        packets = self._everything(used)
        while True:
            sent_before, start = _normal_pages(engine), time.monotonic()
            yield packets
            engine.confirm()
            scan_start = time.monotonic()
            precopy.sent(_normal_pages(engine) - sent_before, scan_start - start)
            self._left = self._tracker.scan()
            stats.dirty_sync_count += 1
            now = time.monotonic()
            precopy.scanned(sum(map(ranges.count, self._left)), now, now - scan_start)
            self._report(engine, precopy)
            match precopy.decide():
                case Decision.SWITCH_OVER:
                    return
                case Decision.GIVE_UP:
                    raise NotConverged(
                        f"{precopy.explain()}. Slow the source down, allow more downtime or rounds, or choose a "
                        "faster method"
                    )
            if self._throttle is not None and precopy.throttle_percent != self._throttled:
                self._throttled = precopy.throttle_percent
                self._throttle(self._throttled)
            packets = self._packets(self._left)

    def last(self, engine: Engine) -> Iterable[Packet]:
        """See `multifd.engine.sync.Schedule`."""
        engine.lift_limit()
        self._must_resume = True
        self._pause()
        since = self._tracker.scan()
        engine.stats.dirty_sync_count += 1
        left = [ranges.union(a, b) for a, b in zip(self._left, since, strict=True)]
        engine.stats.live.dirty_pages = sum(map(ranges.count, left))
        return self._packets(left)

    @contextlib.contextmanager
    def recovery(self, engine: Engine) -> Iterator[None]:
        """See `multifd.engine.sync.Schedule`: the source goes on as if nothing had happened, before all else.

        Raises:
            BaseException: the failure; or what `resume` or `throttle` raised, with a note.
        """
        try:
            yield
        except BaseException as error:
            if engine.is_handed_over:
                error.add_note("the source stays paused")
                raise
            try:
                self._recover()
            except BaseException as e:
                e.add_note(
                    f"raised by resume or throttle after the migration failed: {error}. The source may stand still"
                )
                raise
            raise

    def _recover(self) -> None:
        try:
            if self._must_resume:
                self._must_resume = False
                self._resume()
        finally:
            if self._throttled and self._throttle is not None:
                self._throttled = 0
                self._throttle(0)

    def _report(self, engine: Engine, precopy: Precopy) -> None:
        live = engine.stats.live
        live.rounds, live.dirty_pages = precopy.rounds, precopy.dirty_pages
        live.dirty_pages_rate = round(precopy.dirty_pages_per_s)
        live.throttle_percent = precopy.throttle_percent if self._throttle is not None else 0
        expected = precopy.expected_downtime_s
        live.expected_downtime_ms = None if expected == float("inf") else round(expected * 1e3, 3)

    def _everything(self, used: Sequence[Ranges]) -> Iterator[Packet]:
        yield from self._packets(used)
        page_size, count = self._geometry.page_size, self._geometry.page_count
        for block, pages in zip(self._tracker.blocks, used, strict=True):
            untouched = _Untouched(block, page_size)
            for numbers in ranges.packets(ranges.complement(pages, block.used_length // page_size), count):
                yield untouched, numbers * page_size

    def _packets(self, dirty: Sequence[Ranges]) -> Iterator[Packet]:
        for block, pages in zip(self._tracker.blocks, dirty, strict=True):
            for numbers in ranges.packets(pages, self._geometry.page_count):
                yield block, numbers * self._geometry.page_size


def _normal_pages(engine: Engine) -> int:
    return sum(channel.normal_pages for channel in engine.stats.channels)
