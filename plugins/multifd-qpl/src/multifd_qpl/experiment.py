"""A migration on a simulated machine: how many devices, and which policy.

The method's own hooks run, with its jobs and ``_batch.c``, on a `SimulatedIaa` in lock step, so the same
arguments give the same figures. The guest is idle and has no zero pages; every channel sends one packet
more while the guest stands still. Simulated are the source's channel threads, its devices and the link.
Not simulated are the destination (decompression is several times cheaper), the setup, and what QEMU does
to the devices of the guest when it stops it.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from multifd.errors import UsageError
from multifd.method import Memory, Pages, SendParams
from multifd.pages import Geometry
from multifd.stats import ChannelStats, MigrationStats
from multifd_qpl.method import QplMethod, QplOptions
from multifd_qpl.simulator import LockStep, Machine, SimulatedIaa, Sizes

_PAGE = 4096
_HEADER_BYTES = 320 + 8 * 128  # of a packet with 128 page slots: migration/multifd.h, QEMU 9.1


@dataclass(frozen=True)
class Row:
    """One migration; the names are those of multifd's results."""

    policy: str
    devices: int
    channels: int
    total_time_ms: float
    downtime_ms: float
    mbps: float
    pages_per_second: int
    """Of QEMU's last window of at least 100 ms; 0 if the migration was shorter."""
    pages_per_second_mean: int
    hardware_pages: int
    software_pages: int
    raw_pages: int
    busy: int
    retried: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values, in the order of the fields."""
        return asdict(self)


PUBLISHED = {
    "wait": {"total_time_ms": 18381, "downtime_ms": 25, "mbps": 13698.65, "pages_per_second": 859607},
    "fallback": {"total_time_ms": 14649, "downtime_ms": 25, "mbps": 17666.57, "pages_per_second": 1509647},
}
"""4 channels, 1 device: the message of QEMU commit f6fe9fea99 (June 2024)."""

PUBLISHED_RAM = round(859607 * 18.381) * _PAGE
"""Bytes that the waiting row moved, if its rate held throughout: 60.3 GiB of a 64 GiB guest."""


class _Migration:
    """One run: what the channels share."""

    def __init__(self, machine: Machine, channels: int, options: QplOptions, page_count: int) -> None:
        self.clock = LockStep(channels)
        self.machine = machine
        self.iaa = SimulatedIaa(machine, codec=Sizes(machine), clock=self.clock)
        self.method = QplMethod(options, library=self.iaa.library)
        self.stats = MigrationStats(0.0)
        self.stats.setup_done(0.0)
        self.errors: list[BaseException] = []
        self._left = page_count
        self._link_free = 0.0
        self._geometry = Geometry.of(_PAGE)
        self._memory = Memory(memoryview(bytearray(_PAGE * self._geometry.page_count)), _PAGE)
        self._scratch = Memory(memoryview(bytearray(_PAGE * self._geometry.page_count)), _PAGE)
        self._threads = [
            threading.Thread(target=self._run_channel, args=(i, self.stats.add_channel()), daemon=True)
            for i in range(channels)
        ]

    def run(self) -> None:
        """Run to the end.

        Raises:
            Misuse: the jobs were used wrongly; a bug in this plugin.
        """
        with self.iaa:
            for thread in self._threads:
                thread.start()
            for thread in self._threads:
                thread.join()
            if self.errors:
                raise self.errors[0]

    def _take(self) -> int:
        taken = min(self._left, self._geometry.page_count)
        self._left -= taken
        return taken

    def _run_channel(self, number: int, stats: ChannelStats) -> None:
        clock, method = self.clock, self.method
        clock.enter(number)
        p = SendParams(number, self._geometry, bytearray(1), self._pages(1), counters=stats.counters)
        try:
            method.send_setup(p)
            while True:
                clock.turn()
                if not (count := self._take()):
                    break
                self._send(p, count, stats)
            clock.sync()
            self.stats.switchover(clock.now() / 1e9)
            self._send(p, self._geometry.page_count, stats)
            clock.sync()
            self.stats.finish(clock.now() / 1e9, "completed")
        except BaseException as e:
            self.errors.append(e)
            self._left = 0
        finally:
            method.send_cleanup(p)
            clock.leave()

    def _pages(self, count: int) -> Pages:
        offsets = [i * _PAGE for i in range(count)]
        return Pages(self._memory, _as_offsets(offsets), self._scratch, is_private=True)

    def _send(self, p: SendParams, count: int, stats: ChannelStats) -> None:
        p.pages = self._pages(count)
        p.iov.clear()
        clock, machine = self.clock, self.machine
        clock.advance(clock.now() + count * machine.zero_check_ns)
        self.method.send_prepare(p)
        self.iaa.raise_errors()
        clock.turn()
        nbytes = _HEADER_BYTES + sum(len(b) for b in p.iov)
        start = max(clock.now(), self._link_free)
        self._link_free = start + nbytes * machine.link_ns_per_byte
        clock.advance(start + nbytes * machine.send_ns_per_byte)
        stats.normal_pages += count
        self.stats.wire_bytes += nbytes
        self.stats.tick(clock.now() / 1e9)


def _as_offsets(offsets: list[int]) -> Any:
    import numpy as np

    return np.array(offsets, dtype=np.int64)


def simulate(
    policies: Sequence[str],
    *,
    devices: int,
    channels: int,
    ram_bytes: int,
    retries: int = 3,
    verify: str = "off",
    machine: Machine | None = None,
) -> list[Row]:
    """A migration by each policy.

    Args:
        policies: ``fallback`` and ``wait``.
        devices: IAA devices of the source.
        channels: channel threads.
        ram_bytes: RAM to move, whole pages; times are proportional to it.
        retries: of ``fallback``.
        verify: as `QplOptions.verify`; off, as in what was published. The channel thread's time for the CRC is not
            simulated.
        machine: other parameters than the sourced ones; its `devices` is ignored.

    Raises:
        UsageError: an argument that cannot be meant.
    """
    if not 1 <= channels <= 255 or devices < 1 or ram_bytes < _PAGE:
        raise UsageError("expected at least one device, 1 to 255 channels and a page of RAM")
    machine = Machine(**{**asdict(machine or Machine()), "devices": devices})
    options = [QplOptions(busy=policy, retries=retries, verify=verify) for policy in policies]
    return [_simulate(machine, channels, each, ram_bytes // _PAGE) for each in options]


def _simulate(machine: Machine, channels: int, options: QplOptions, page_count: int) -> Row:
    migration = _Migration(machine, channels, options, page_count)
    migration.run()
    result = migration.stats.snapshot(0.0)
    counters = result.method_stats
    return Row(
        policy=options.busy,
        devices=machine.devices,
        channels=channels,
        total_time_ms=result.total_time_ms,
        downtime_ms=result.downtime_ms,
        mbps=result.mbps,
        pages_per_second=result.pages_per_second,
        pages_per_second_mean=round(result.normal_pages / result.total_time_ms * 1e3),
        hardware_pages=counters["completed"],
        software_pages=counters["software"],
        raw_pages=counters["raw"],
        busy=counters["busy"],
        retried=counters["retried"],
    )


def is_published_case(row: Row) -> bool:
    """Whether `PUBLISHED` has a row beside this one."""
    return (row.devices, row.channels) == (1, 4) and row.policy in PUBLISHED
