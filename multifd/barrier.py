"""Where the receiver's main and channels meet: sync points."""

from __future__ import annotations

import threading

from multifd.errors import ChannelError


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
