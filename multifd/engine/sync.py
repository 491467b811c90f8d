"""Where main and the channels meet: a sender's rounds, a receiver's sync points."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator
from typing import Protocol

from multifd.errors import ChannelError
from multifd.pages import Geometry, Offsets
from multifd.ram.block import SourceBlock
from multifd.stats import MigrationStats

Packet = tuple[SourceBlock, Offsets]


class Rounds:
    """Where the caller's thread and the channels' meet: a round is handed out, used up, synced."""

    def __init__(self, channels: int) -> None:
        self._changed = threading.Condition()
        self._taking = threading.Lock()
        self._channels = channels
        self._number = 0
        self._packets: Iterator[Packet] = iter(())
        self._synced = 0
        self._closed = False

    def start(self, packets: Iterable[Packet]) -> None:
        """Begin a round (caller's thread)."""
        with self._changed:
            self._packets, self._synced = iter(packets), 0
            self._number += 1
            self._changed.notify_all()

    def wait_synced(self, timeout_s: float) -> bool:
        """Whether every channel has written its SYNC, after at most `timeout_s` (caller's thread)."""
        with self._changed:
            return self._changed.wait_for(lambda: self._synced == self._channels or self._closed, timeout_s)

    def close(self) -> None:
        """No more rounds; channels end when they have used up this one."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def wait_next(self, number: int) -> bool:
        """Wait for round `number`; false if there is none (channel threads; `close` ends the wait)."""
        with self._changed:
            self._changed.wait_for(lambda: self._number >= number or self._closed)
            return not self._closed

    def take(self) -> Packet | None:
        """The round's next packet, None when it is used up (channel threads)."""
        with self._taking:
            return None if self._closed else next(self._packets, None)

    def synced(self) -> None:
        """This channel wrote its SYNC (channel threads)."""
        with self._changed:
            self._synced += 1
            self._changed.notify_all()


def all_pages(blocks: Iterable[SourceBlock], geometry: Geometry) -> Iterator[Packet]:
    """Every page of every block, a packet at a time."""
    for block in blocks:
        for offsets in block.portions(geometry.page_count):
            yield block, offsets


class Engine(Protocol):
    """What a schedule may ask of the sender, in the thread of its caller."""

    stats: MigrationStats
    is_handed_over: bool
    """The destination has the memory, or may have it; the source must not run."""

    def confirm(self) -> None:
        """Return when the destination has everything of the rounds so far in place."""
        ...

    def lift_limit(self) -> None:
        """The bandwidth limit ends."""
        ...


class Schedule(Protocol):
    """Which pages go in which round; called in the thread of the sender's caller."""

    def rounds(self, engine: Engine) -> Iterator[Iterable[Packet]]:
        """The rounds while the source runs; it is resumed when all channels have synced the one before."""
        ...

    def last(self, engine: Engine) -> Iterable[Packet]:
        """The source stands still from here on: what is left of it."""
        ...

    def recovery(self, engine: Engine) -> contextlib.AbstractContextManager[None]:
        """Around all of it: what happens to the source if it fails; the failure passes through."""
        ...


class OneRound:
    """For memory that nobody writes: everything at once.

    Args:
        blocks: what is sent.
        geometry: the migration's.
    """

    def __init__(self, blocks: Iterable[SourceBlock], geometry: Geometry) -> None:
        self._blocks, self._geometry = blocks, geometry

    def rounds(self, engine: Engine) -> Iterator[Iterable[Packet]]:
        """See `Schedule`."""
        engine.stats.dirty_sync_count += 1
        yield all_pages(self._blocks, self._geometry)

    def last(self, engine: Engine) -> Iterable[Packet]:
        """See `Schedule`."""
        engine.stats.dirty_sync_count += 1
        return ()

    def recovery(self, engine: Engine) -> contextlib.AbstractContextManager[None]:
        """See `Schedule`: the source is only read."""
        return contextlib.nullcontext()


class Barrier:
    """Sync points: the k-th on main belongs to the k-th SYNC of every channel.

    A channel that has read a SYNC reads nothing more until main has reached the sync point, so no
    page of a later round overtakes one of an earlier.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._arrived: list[int] = []
        self._left: set[int] = set()
        self._released = 0
        self._is_over = False

    def expect(self, channels: int) -> None:
        """How many channels there are; sync points wait until this is known."""
        with self._changed:
            self._arrived = [0] * channels
            self._changed.notify_all()

    def arrive(self, channel: int) -> None:
        """A SYNC was read: wait for main (channel threads)."""
        with self._changed:
            self._arrived[channel] += 1
            mine = self._arrived[channel]
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._released >= mine or self._is_over)

    def leave(self, channel: int) -> None:
        """The channel's connection ended at a packet boundary (channel threads)."""
        with self._changed:
            self._left.add(channel)
            self._changed.notify_all()

    def reach(self) -> None:
        """Main is at its next sync point: wait for all channels, let them go on (main thread).

        Raises:
            ChannelError: a channel ended without the SYNC that belongs here.
        """
        with self._changed:
            number = self._released + 1
            while not self._is_over:
                late = [i for i, arrived in enumerate(self._arrived) if arrived < number]
                if self._arrived and not late:
                    break
                if gone := self._left.intersection(late):
                    raise ChannelError(f"channel {min(gone)} ended before sync point {number}")
                self._changed.wait()
            self._released = number
            self._changed.notify_all()

    def end(self) -> None:
        """Main has ended, or all has: nobody waits any more."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()
