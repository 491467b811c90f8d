"""A migration on a simulated machine: how many devices, and which policy.

The method's own hooks run, with its jobs and C code, on a `SimulatedIaa` in lock step, so the same
arguments give the same figures. The guest is idle, its zero pages are evenly spread; every channel sends one
packet more while the guest stands still. Simulated are the source's channel threads, its devices and the link.
Not simulated are the destination (decompression is several times cheaper), the setup, and what QEMU does
to the devices of the guest when it stops it.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from multifd.errors import UsageError
from multifd.method import Memory, Pages, SendParams
from multifd.pages import Geometry
from multifd.stats import ChannelStats, MigrationStats
from multifd_qpl.machine import Machine
from multifd_qpl.method import QplMethod, QplOptions
from multifd_qpl.page_codec import Sizes
from multifd_qpl.published import FALLBACK, HEADER_BYTES, NORMAL_PAGES, WAIT, Published
from multifd_qpl.simulator import SimulatedIaa
from multifd_qpl.virtual_time import LockStep

_PAGE = 4096
_RETRIES = 3  # of the published fallback: QEMU offers a page four times in all


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
    """Of QEMU's last window of at least 100 ms, zero pages too; 0 if the migration was shorter."""
    pages_per_second_mean: int
    """Over the whole migration, without zero pages."""
    hardware_pages: int
    software_pages: int
    raw_pages: int
    busy: int
    retried: int
    retries: int
    verify: str
    machine: Machine = field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, in the order of the fields; without the machine."""
        document = asdict(self)
        del document["machine"]
        return document

    @property
    def guest_ms(self) -> float:
        """The total time of the published guest (`NORMAL_PAGES`) at this row's rate."""
        return NORMAL_PAGES / self.pages_per_second_mean * 1e3


class _Migration:
    """One run: what the channels share."""

    def __init__(self, machine: Machine, channels: int, options: QplOptions, page_count: int) -> None:
        self.clock = LockStep(channels, machine.slack_ns)
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
        clock.advance(clock.now() + count * (1 + machine.zero_share) * machine.zero_check_ns)
        self.method.send_prepare(p)
        self.iaa.raise_errors()
        clock.turn()
        nbytes = HEADER_BYTES + sum(len(b) for b in p.iov)
        start = max(clock.now(), self._link_free)
        self._link_free = start + nbytes * machine.link_ns_per_byte
        clock.advance(start + nbytes * machine.send_ns_per_byte)
        stats.normal_pages += count
        stats.zero_pages = int(stats.normal_pages * machine.zero_share)
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
    retries: int = _RETRIES,
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
        machine: other parameters than those of `multifd_qpl.machine`; its `devices` is ignored.

    Raises:
        UsageError: an argument that cannot be meant.
    """
    if not 1 <= channels <= 255 or devices < 1 or ram_bytes < _PAGE:
        raise UsageError("expected at least one device, 1 to 255 channels and a page of RAM")
    machine = replace(machine or Machine(), devices=devices)
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
        downtime_ms=result.downtime_ms or 0.0,
        mbps=result.mbps,
        pages_per_second=result.pages_per_second,
        pages_per_second_mean=round(result.normal_pages / result.total_time_ms * 1e3),
        hardware_pages=counters["completed"],
        software_pages=counters["software"],
        raw_pages=counters["raw"],
        busy=counters["busy"],
        retried=counters["retried"],
        retries=options.retries,
        verify=options.verify,
        machine=machine,
    )


def published_case(row: Row) -> Published | None:
    """The published row beside this one: only where every parameter is that row's."""
    of = {"wait": WAIT, "fallback": FALLBACK}[row.policy]
    machine = Machine(devices=of.devices)
    same = (row.devices, row.channels, row.verify, row.machine) == (of.devices, of.channels, "off", machine)
    has_its_retries = row.policy == "wait" or row.retries == _RETRIES
    return of if same and has_its_retries else None
