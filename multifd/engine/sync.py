"""Where main and the channels meet: a sender's rounds, a receiver's sync points.

Rules of this file: a channel that is done wakes nobody but main, and that only if it is the last; channels that are
let go are woken one by the other, in the order in which they wait (as CPython's `Condition` has it), since all at once
would fight for the interpreter. There may be hundreds.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator

from multifd.errors import Aborted, ChannelError
from multifd.pages import Geometry, Offsets
from multifd.pump.sending import MOST_PACKETS
from multifd.ram.block import SourceBlock

Portion = tuple[SourceBlock, Offsets]
"""Pages of one block for up to `MOST_PACKETS` packets, `page_count` in each, what is left in the last: so many together
that nothing need be done for each packet in Python."""


def all_pages(blocks: Iterable[SourceBlock], geometry: Geometry) -> Iterator[Portion]:
    """Every page of every block."""
    for block in blocks:
        for offsets in block.portions(MOST_PACKETS * geometry.page_count):
            yield block, offsets


class Rounds:
    """A sender's rounds: one is handed out, used up, synced by every channel; then comes the next. Before the first,
    every channel is set up.

    Packets are numbered as they are handed out, over all channels and rounds.

    A round that was cut short is a state of its own: nobody can take it for one that is used up, so its SYNC is never
    written and its end never announced.

    Args:
        channels: how many there are.
        page_count: pages of a full packet.
    """

    def __init__(self, channels: int, page_count: int) -> None:
        self._lock = threading.Lock()
        self._next_round, self._all_synced = threading.Condition(self._lock), threading.Condition(self._lock)
        self._taking = threading.Lock()
        self._channels = channels
        self._number = 0
        self._page_count = page_count
        self._portions: Iterator[Portion] = iter(())
        self._rest: Portion | None = None
        self._packet_num = 1
        self._synced = 0
        self._is_cut = False
        self._is_over = False

    def start(self, portions: Iterable[Portion]) -> None:
        """Begin a round (caller's thread); the one before must be synced.

        Raises:
            Aborted: it was cut short.
        """
        with self._lock:
            self._check()
            self._portions, self._rest, self._synced = iter(portions), None, 0
            self._number += 1
            self._next_round.notify()

    def wait_synced(self, timeout_s: float) -> bool:
        """Whether every channel has written its SYNC, or is set up, after at most `timeout_s` (caller's thread).

        Raises:
            Aborted: the round was cut short.
        """
        with self._lock:
            self._all_synced.wait_for(lambda: self._synced == self._channels or self._is_cut, timeout_s)
            self._check()
            return self._synced == self._channels

    def cut(self) -> None:
        """Something went wrong: this round and all later ones are cut short. From any thread, again and again."""
        with self._lock:
            self._is_cut = True
            self._next_round.notify_all()
            self._all_synced.notify_all()

    def end(self) -> None:
        """There are no more rounds: channels may leave (caller's thread)."""
        with self._lock:
            self._is_over = True
            self._next_round.notify()

    def wait_next(self, number: int) -> bool:
        """Wait for round `number`; false if there is none (channel threads; `cut` and `end` end the wait).

        Raises:
            Aborted: the rounds were cut short.
        """
        with self._lock:
            self._next_round.wait_for(lambda: self._number >= number or self._is_over or self._is_cut)
            self._next_round.notify()
            self._check()
            return self._number >= number

    def take(self, most: int) -> tuple[int, Portion | None]:
        """The round's next pages, at most `most` packets of them, and the number of the first (channel threads).

        Returns:
            No pages when the round is used up; the number then is the SYNC's.

        Raises:
            Aborted: the round was cut short.
        """
        with self._taking:
            if self._is_cut:
                self._check()
            first, portion = self._packet_num, self._rest or next(self._portions, None)
            if portion is None:
                self._packet_num += 1
                return first, None
            (block, offsets), pages = portion, most * self._page_count
            self._rest = (block, offsets[pages:]) if len(offsets) > pages else None
            self._packet_num += -(-min(len(offsets), pages) // self._page_count)
            return first, (block, offsets[:pages])

    def number(self) -> int:
        """The number of a packet that has no pages (caller's thread, between rounds)."""
        with self._taking:
            self._packet_num += 1
            return self._packet_num - 1

    def synced(self) -> None:
        """This channel wrote its SYNC, or is set up (channel threads)."""
        with self._lock:
            self._synced += 1
            if self._synced == self._channels:
                self._all_synced.notify_all()

    def _check(self) -> None:
        if self._is_cut:
            raise Aborted("the round was cut short")


class Barrier:
    """A receiver's sync points: the k-th on main belongs to the k-th SYNC of every channel.

    A channel that has read a SYNC reads nothing more until main has reached the sync point, so no
    page of a later round overtakes one of an earlier.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._at_main, self._let_go = threading.Condition(self._lock), threading.Condition(self._lock)
        self._arrived: list[int] = []
        self._left: set[int] = set()
        self._released = 0
        self._is_over = False

    def expect(self, channels: int) -> None:
        """How many channels there are; sync points wait until this is known."""
        with self._lock:
            self._arrived = [0] * channels
            self._at_main.notify_all()

    @property
    def is_expecting(self) -> bool:
        """Whether the channels are known, or all is over and nobody waits for them."""
        return bool(self._arrived) or self._is_over

    def wait_expecting(self, timeout_s: float) -> bool:
        """Whether the channels are known, or all is over, after at most `timeout_s` (main thread)."""
        with self._lock:
            return self._at_main.wait_for(lambda: self.is_expecting, timeout_s)

    def arrive(self, channel: int) -> None:
        """A SYNC was read: wait for main (channel threads; `end` ends the wait)."""
        with self._lock:
            self._arrived[channel] += 1
            mine = self._arrived[channel]
            if min(self._arrived) > self._released:  # else main would go on waiting
                self._at_main.notify_all()
            self._let_go.wait_for(lambda: self._released >= mine or self._is_over)
            self._let_go.notify()

    def leave(self, channel: int) -> None:
        """The channel's connection ended at a packet boundary (channel threads)."""
        with self._lock:
            self._left.add(channel)
            self._at_main.notify_all()

    def reach(self) -> None:
        """Main is at its next sync point: wait for all channels, let them go on (main thread; `end` ends the wait).

        Raises:
            ChannelError: a channel ended without the SYNC that belongs here.
        """
        with self._lock:
            number = self._released + 1
            while not self._is_over:
                late = [i for i, arrived in enumerate(self._arrived) if arrived < number]
                if self._arrived and not late:
                    break
                if gone := self._left.intersection(late):
                    raise ChannelError(f"channel {min(gone)} ended before sync point {number}")
                self._at_main.wait()
            self._released = number
            self._let_go.notify()

    def end(self) -> None:
        """Main has ended, or all has: nobody waits any more."""
        with self._lock:
            self._is_over = True
            self._at_main.notify_all()
            self._let_go.notify()
