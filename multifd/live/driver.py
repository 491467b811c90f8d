"""The driver for live memory: rounds until what is left fits the downtime, then the pause and the rest.

Rules of this file: everything runs in the caller's thread. The log is armed before the first page is read. The
source is resumed exactly once if anything fails after `pause` was called, and never once the destination may have
taken over.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from multifd.engine.fate import Custody
from multifd.engine.sender import Sender
from multifd.engine.sync import Portion
from multifd.errors import NotConverged
from multifd.live import ranges
from multifd.live.arena import Arena
from multifd.live.choose import choose
from multifd.live.precopy import Decision, Limits, Precopy
from multifd.live.ranges import Ranges
from multifd.pages import Geometry, Offsets, Pages
from multifd.pump.extent import Extent, Kind
from multifd.pump.sending import MOST_PACKETS
from multifd.ram.block import MappedPages, SourceBlock, Staging, in_order
from multifd.stats import Result
from multifd.wire.stream import Block, Machine
from multifd.wire.writer import encode_end


@dataclass(frozen=True)
class Controls:
    """What the owner of live memory lets a migration do to its writers; called in the caller's thread."""

    pause: Callable[[], object]
    """Makes everything that writes to it stand still, and returns when it does."""
    resume: Callable[[], object]
    """Lets it go on."""
    throttle: Callable[[int], object] | None = None
    """Slows it down by a percentage; 0 is full speed."""


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
        self._extent = Extent(Kind.ZERO)

    def portions(self, page_count: int) -> Iterator[Offsets]:
        return in_order(self.used_length, self._page_size, page_count)

    def extent_of(self, offsets: Offsets, *, is_verbatim: bool) -> Extent | None:
        return self._extent

    def load(self, offsets: Offsets, staging: Staging) -> Pages | None:
        return None

    def map(self, offsets: Offsets, staging: Staging) -> MappedPages | None:
        return MappedPages(np.ones(len(offsets), np.bool_), [])


class LiveDriver:
    """One live migration; use once.

    Args:
        sender: not opened yet.
        source: what it sends.
        limits: of downtime and rounds.
        controls: of the memory's writers.
    """

    def __init__(self, sender: Sender, source: LiveSource, limits: Limits, controls: Controls) -> None:
        self._sender, self._source, self._limits, self._controls = sender, source, limits, controls
        self._tracker = source.tracker
        self._geometry = Geometry.of(source.machine.page_size)
        self._throttled = 0
        self._is_paused = False

    def run(self) -> Result:
        """Send it all.

        Returns:
            The figures; the destination has confirmed that everything is in place, and the source stands still.

        Raises:
            NotConverged: after the most rounds that are allowed.
            MultifdError: what else went wrong.
            BaseException: what the controls raised.
        """
        sender = self._sender
        with sender:
            try:
                sender.open()
                dirty = self._rounds()
                sender.switch_over()
                self._is_paused = True
                self._controls.pause()
                dirty = self._look(dirty)
                sender.stats.live["dirty_pages"] = sum(map(ranges.count, dirty))
                sender.finish(self._portions(dirty))
            except BaseException as error:
                self._recover(sender.settle(error))
                raise
        return sender.result

    def _rounds(self) -> list[Ranges]:
        """Rounds while the source runs; returns what is dirty when what is left fits the downtime."""
        sender = self._sender
        sender.stats.live.update(tracker=self._tracker.name, tracker_reason=self._source.tracker_reason)
        used = self._tracker.arm()
        sender.stats.dirty_sync_count += 1
        precopy = Precopy(self._geometry.page_size, self._limits, time.monotonic())
        portions = self._everything(used)
        while True:
            sent_before, start = self._normal_pages(), time.monotonic()
            sender.round(portions)
            sender.confirm()
            scan_start = time.monotonic()
            precopy.sent(self._normal_pages() - sent_before, scan_start - start)
            dirty = self._look()
            now = time.monotonic()
            precopy.scanned(sum(map(ranges.count, dirty)), now, now - scan_start)
            self._report(precopy)
            match precopy.decide():
                case Decision.SWITCH_OVER:
                    return dirty
                case Decision.GIVE_UP:
                    raise NotConverged(
                        f"{precopy.explain()}. Slow the source down, allow more downtime or rounds, or choose a "
                        "faster method"
                    )
            self._slow_down(precopy.throttle_percent)
            portions = self._portions(dirty)

    def _look(self, before: Sequence[Ranges] = ()) -> list[Ranges]:
        """What was written since the last look, and what was dirty `before`."""
        dirty = self._tracker.scan()
        self._sender.stats.dirty_sync_count += 1
        return [ranges.union(a, b) for a, b in zip(before, dirty, strict=True)] if before else dirty

    def _slow_down(self, percent: int) -> None:
        if self._controls.throttle is not None and percent != self._throttled:
            self._throttled = percent
            self._controls.throttle(percent)

    def _recover(self, error: BaseException) -> None:
        """The source goes on as if nothing had happened, unless the destination may have taken over.

        Raises:
            BaseException: what `resume` or `throttle` raised, with a note.
        """
        if self._sender.fate.custody is not Custody.WITH_SOURCE:
            error.add_note("the source stays paused")
            return
        try:
            try:
                if self._is_paused:
                    self._is_paused = False
                    self._controls.resume()
            finally:
                self._slow_down(0)
        except BaseException as e:
            e.add_note(f"raised by resume or throttle after the migration failed: {error}. The source may stand still")
            raise

    def _report(self, precopy: Precopy) -> None:
        expected = precopy.expected_downtime_s
        self._sender.stats.live.update(
            rounds=precopy.rounds,
            dirty_pages=precopy.dirty_pages,
            dirty_pages_rate=round(precopy.dirty_pages_per_s),
            throttle_percent=precopy.throttle_percent if self._controls.throttle is not None else 0,
            expected_downtime_ms=None if expected == float("inf") else round(expected * 1e3, 3),
        )

    def _normal_pages(self) -> int:
        return sum(channel.normal_pages for channel in self._sender.stats.channels)

    def _everything(self, used: Sequence[Ranges]) -> Iterator[Portion]:
        yield from self._portions(used)
        page_size, count = self._geometry.page_size, MOST_PACKETS * self._geometry.page_count
        for block, pages in zip(self._tracker.blocks, used, strict=True):
            untouched = _Untouched(block, page_size)
            for numbers in ranges.packets(ranges.complement(pages, block.used_length // page_size), count):
                yield untouched, numbers * page_size

    def _portions(self, dirty: Sequence[Ranges]) -> Iterator[Portion]:
        for block, pages in zip(self._tracker.blocks, dirty, strict=True):
            for numbers in ranges.packets(pages, MOST_PACKETS * self._geometry.page_count):
                yield block, numbers * self._geometry.page_size
