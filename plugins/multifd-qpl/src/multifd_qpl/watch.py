"""A device during a migration: what an operator is told of it, and when ``hardware=required`` is broken.

Rules of this file: whatever a device does is counted in ``method_stats``; of each sort of trouble one line is
logged for a migration, not one for each channel; a device that is merely full breaks nothing, since what happens
then is what ``busy`` says.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol

from multifd.method import MethodUnavailable, NativeHook, RecvParams, SendParams
from multifd_qpl.remedy import is_usable
from multifd_qpl.sysfs import read_devices

_LOG = logging.getLogger("multifd.qpl")  # below multifd's own, so that its handlers and levels hold

COUNTERS = ("silent", "no_device")
"""Channels whose device was given up; channels that got none although the kernel shows a usable one."""

NO_QUEUE = 503
"""libqpl's status if this thread may use no work queue; the thread's socket decides, too."""

_MUCH_PAGES = 1024
"""From here on the share of pages that a device did not take is worth a line."""
_REFUSING_PACKETS = 64
"""Packets in a row of which a device takes not one page: a full queue drains within a packet's time."""


def silence_s(timeout_s: float) -> float:
    """Seconds after which a device counts as dead: `jobs.SILENCE_S`, but well before the migration's own timeout."""
    from multifd_qpl.jobs import SILENCE_S

    return min(SILENCE_S, timeout_s / 2)


def numa_advice(root: Path = Path("/")) -> str:
    """What to do about a device on another socket, with the nodes that have one; empty if the kernel shows none."""
    devices = [device for device in read_devices(root) if any(is_usable(queue) for queue in device.queues)]
    nodes = sorted({device.numa_node for device in devices if device.numa_node is not None and device.numa_node >= 0})
    if not devices:
        return ""
    where = f"NUMA node {', '.join(map(str, nodes))}" if nodes else "an unknown NUMA node"
    node = str(nodes[0]) if nodes else "N"
    return (
        f"libqpl uses devices of a thread's own socket, and the usable ones are on {where}: start multifd by "
        f"`numactl --cpunodebind={node} --membind={node}`"
    )


class Alarm:
    """Says each sort of trouble once; one for each migration, used by all of its channels."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._said: set[str] = set()

    def say(self, sort: str, text: str, advise: Callable[[], str]) -> None:
        """Log it, if nothing of this sort was said before.

        Args:
            sort: the trouble.
            text: what happened, with the channel.
            advise: called if it is said; what may be behind it and what to do, or nothing.
        """
        with self._lock:
            if sort in self._said:
                return
            self._said.add(sort)
        advice = advise()
        _LOG.warning("qpl: %s%s", text, f"; {advice}" if advice else "")


class Engine(Protocol):
    """What does the work of one channel and direction."""

    def compress(self, p: SendParams) -> None: ...

    def decompress(self, lengths: Sequence[int], p: RecvParams) -> None: ...

    def native_send(self, p: SendParams) -> NativeHook | None: ...

    def native_recv(self, p: RecvParams) -> NativeHook | None: ...

    def close(self) -> None: ...


class DeviceEngine(Engine, Protocol):
    """An engine that has a device."""

    @property
    def is_hardware_lost(self) -> bool: ...

    def native_send(self, p: SendParams) -> NativeHook: ...

    def native_recv(self, p: RecvParams) -> NativeHook: ...

    def settle(self, p: SendParams | RecvParams) -> tuple[int, int]: ...

    def forgive(self) -> None: ...


class WatchedEngine:
    """A channel's engine, watched.

    Args:
        engine: does the work; closed with this.
        alarm: the migration's.
        is_sound: sends a page of our own through the device, and says whether it came back.
        is_required: end the migration when the device fails, instead of going on in software.
    """

    def __init__(self, engine: DeviceEngine, alarm: Alarm, *, is_sound: Callable[[], bool], is_required: bool) -> None:
        self.engine, self._alarm, self._is_sound, self._is_required = engine, alarm, is_sound, is_required
        self._failed = self._fell_back = 0
        self._refusing_packets = self._doubtful_packets = 0

    def compress(self, p: SendParams) -> None:
        """See `multifd_qpl.jobs.BatchEngine.compress`.

        Raises:
            MethodUnavailable: the device failed, and it is required.
        """
        self.engine.compress(p)
        self._look(p, self._is_failing, len(p.pages))

    def decompress(self, lengths: Sequence[int], p: RecvParams) -> None:
        """See `multifd_qpl.jobs.BatchEngine.decompress`.

        Raises:
            MethodUnavailable: the device failed, and it is required.
        """
        try:
            self.engine.decompress(lengths, p)
        finally:
            p.counters["silent"] = int(self.engine.is_hardware_lost)
        self._look(p, self._is_failing_at_streams, len(p.pages))

    def native_send(self, p: SendParams) -> NativeHook:
        """See `multifd_qpl.jobs.BatchEngine.native_send`; settling may raise what `compress` does."""
        return replace(self.engine.native_send(p), settle=partial(self._settle, p, self._is_failing))

    def native_recv(self, p: RecvParams) -> NativeHook:
        """See `multifd_qpl.jobs.BatchEngine.native_recv`; settling may raise what `decompress` does."""
        return replace(self.engine.native_recv(p), settle=partial(self._settle, p, self._is_failing_at_streams))

    def _settle(self, p: SendParams | RecvParams, is_failing: Callable[[int, int], bool]) -> None:
        """Look at what native hooks did: packets that went well, and one after them that did not."""
        clean_packets, pages = self.engine.settle(p)
        if clean_packets:
            self._refusing_packets = 0
        if clean_packets or pages:
            self._look(p, is_failing, pages or 1)

    def close(self) -> None:
        """Close the engine."""
        self.engine.close()

    @staticmethod
    def _is_failing(failed: int, pages: int) -> bool:
        return 2 * failed > pages

    def _is_failing_at_streams(self, failed: int, pages: int) -> bool:
        """What a device does not decompress may be the sender's doing: where it matters, our own page tells, after
        the first such packet, the second, the fourth, and so on."""
        if not self._is_required or not self._is_failing(failed, pages):
            return False
        self._doubtful_packets += 1
        is_power_of_2 = self._doubtful_packets & (self._doubtful_packets - 1) == 0
        return is_power_of_2 and not self._is_sound()

    def _look(self, p: SendParams | RecvParams, is_failing: Callable[[int, int], bool], pages: int) -> None:
        """After a packet of so many pages: is the device still doing the work?"""
        counters = p.counters
        failed, fell_back = counters["failed"] - self._failed, counters["fell_back"] - self._fell_back
        self._failed, self._fell_back = counters["failed"], counters["fell_back"]
        self._refusing_packets = self._refusing_packets + 1 if fell_back >= pages else 0
        if not fell_back:
            self.engine.forgive()
        if self.engine.is_hardware_lost:
            counters["silent"] = 1
            self._trouble(p, "silent", "the IAA device answers nothing or takes nothing any more")
        elif is_failing(failed, pages):
            self._trouble(p, "failing", f"the IAA device failed {failed} of a packet's {pages} pages")
        elif self._refusing_packets >= _REFUSING_PACKETS:
            self._trouble(p, "refusing", f"the IAA device took no page of {self._refusing_packets} packets in a row")
        done = counters["completed"] + counters["software"] + counters["raw"]
        if done >= _MUCH_PAGES and 2 * counters["fell_back"] > done:
            self._alarm.say(
                "refused",
                f"channel {p.channel}: the IAA device did not do {counters['fell_back']} of {done} pages "
                f"({counters['failed']} failed), which software does: it is full (more devices, "
                "fewer channels, or qpl:busy=wait) or on another NUMA node (see numactl and `multifd-iaa status`)",
                numa_advice,
            )

    def _trouble(self, p: SendParams | RecvParams, sort: str, text: str) -> None:
        if self._is_required:
            raise MethodUnavailable(
                f"hardware=required, but on channel {p.channel} {text}; start again without hardware=required to go "
                "on in software, and see `multifd-iaa status`"
            )
        self._alarm.say(
            sort,
            f"channel {p.channel}: {text}; its pages go through software "
            "(another NUMA node? see numactl and `multifd-iaa status`)",
            numa_advice,
        )
