"""Virtual time for a simulation: one time for all threads, or each its own in lock step.

Rules of this file: times are nanoseconds and never go back; no clock reads the real one, but for the
deadline after which a simulation that stands still is given up.
"""

from __future__ import annotations

import heapq
import threading
from typing import Protocol


class Clock(Protocol):
    """Virtual time as the calling thread sees it."""

    def now(self) -> float: ...

    def advance(self, until_ns: float) -> None:
        """Let the thread's time pass, if it is not that late already."""
        ...

    def turn(self) -> None:
        """Return when no other thread can act earlier than this one."""
        ...


class SharedClock:
    """One time for all threads: for tests, where only its passing matters."""

    def __init__(self) -> None:
        self._now = 0.0

    def now(self) -> float:
        """The time."""
        return self._now

    def advance(self, until_ns: float) -> None:
        """Let time pass."""
        self._now = max(self._now, until_ns)

    def turn(self) -> None:
        """Threads come as they come."""


class LockStep:
    """A time for each thread; exactly one runs, the one with the lowest time (ties: lowest number).

    Args:
        threads: how many; each calls `enter` first and `leave` last.
        slack_ns: how far a thread may run ahead of the others before it hands over. A hand-over costs 20 us of
            real time, a submission 0.3 us of virtual time: without slack half of a simulation is hand-overs.
    """

    _DEADLINE_S = 300.0

    def __init__(self, threads: int, slack_ns: float) -> None:
        self._slack_ns = slack_ns
        self._times = [0.0] * threads
        self._gates = [threading.Lock() for _ in range(threads)]
        for gate in self._gates:
            gate.acquire()
        self._running = 0
        self._ready: list[tuple[float, int]] = []
        self._synced: list[int] = []
        self._inside = threads
        self._entering = threading.Lock()

    def enter(self, number: int) -> None:
        """Take part as thread `number`; returns when it is its turn."""
        with self._entering:
            heapq.heappush(self._ready, (0.0, number))
            is_last = len(self._ready) == len(self._times)
        if is_last:
            self._pass_on()
        self._wait(number)

    def leave(self) -> None:
        """Take part no longer."""
        self._inside -= 1
        self._release_synced()
        self._pass_on()

    def sync(self) -> None:
        """Wait for all threads; all go on at the time of the last."""
        number = self._running
        self._synced.append(number)
        self._release_synced()
        self._pass_on()
        self._wait(number)

    def _release_synced(self) -> None:
        if self._synced and len(self._synced) == self._inside:
            latest = max(self._times[i] for i in self._synced)
            for i in self._synced:
                self._times[i] = latest
                heapq.heappush(self._ready, (latest, i))
            self._synced.clear()

    def now(self) -> float:
        """The calling thread's time."""
        return self._times[self._running]

    def advance(self, until_ns: float) -> None:
        """Let the calling thread's time pass."""
        if until_ns > self._times[self._running]:
            self._times[self._running] = until_ns

    def turn(self) -> None:
        """Wait until the calling thread is the one with the lowest time, but for the slack."""
        number = self._running
        now = self._times[number]
        if self._ready and self._ready[0] < (now - self._slack_ns, number):
            _, other = heapq.heapreplace(self._ready, (now, number))
            self._gates[other].release()
            self._wait(number)

    def _pass_on(self) -> None:
        if self._ready:
            self._gates[heapq.heappop(self._ready)[1]].release()

    def _wait(self, number: int) -> None:
        if not self._gates[number].acquire(timeout=self._DEADLINE_S):
            raise TimeoutError("the simulation stands still")
        self._running = number
