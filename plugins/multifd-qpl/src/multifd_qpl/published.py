"""Published migrations with IAA, as rows; the figures are others' measurements, none is ours.

Rule of this file: a row is either `CALIBRATION`, which `multifd_qpl.machine` may use, or scored against the
simulation. No row is both.
"""

from __future__ import annotations

from dataclasses import dataclass

_PAGE = 4096
HEADER_BYTES = 320 + 8 * 128
"""Of a packet with 128 page slots: migration/multifd.h, QEMU 9.1."""


@dataclass(frozen=True)
class Published:
    """A row of somebody's table."""

    what: str
    policy: str
    """What the source did when queues were full: wait, fallback, or empty where it is not said or has no meaning."""
    devices: int
    """IAA devices of each side."""
    channels: int
    total_time_ms: int
    downtime_ms: int
    mbps: float
    pages_per_second: int
    """Of QEMU's last window of at least 100 ms: not a mean."""

    @property
    def wire_bytes(self) -> float:
        """All bytes: QEMU's mbps is a mean over the whole migration."""
        return self.mbps * 1e6 / 8 * self.total_time_ms / 1e3

    @property
    def thread_ns(self) -> float:
        """The channel threads' time, all together."""
        return self.total_time_ms * 1e6 * self.channels


def _letter(what: str, devices: int, channels: int, *figures: float) -> Published:
    total, down, mbps, pages = figures
    return Published(f"QPL v8, {what}", "", devices, channels, int(total), int(down), mbps, int(pages))


NONE_2 = _letter("none", 0, 2, 7493, 64, 66782, 2549993)
NONE_4 = _letter("none", 0, 4, 5901, 49, 84832, 5289304)
NONE_8 = _letter("none", 0, 8, 5789, 58, 86488, 4674351)
IAA_2 = _letter("IAA", 4, 2, 7330, 23, 34537, 5261385)
SOFTWARE_4 = _letter("software", 0, 4, 37299, 27, 7668, 1637228)
CALIBRATION = (NONE_2, NONE_4, NONE_8, IAA_2, SOFTWARE_4)
"""Cover letter of QEMU's QPL series v8 (qemu-devel, 10 June 2024): 64 GiB guest, 16 vCPU, no bandwidth limit. Used
by `multifd_qpl.machine`, and so no test of it."""

GUEST_PAGES = 64 * 2**30 // _PAGE
"""The letter's guest has 64 GiB."""

NORMAL_PAGES = NONE_4.wire_bytes / (_PAGE + HEADER_BYTES / 128)
"""Those of its pages that are not zero, by the row of none at 4 channels: 15.24 million. The rows at 2 and 8
channels give the same within 0.1 %."""

WAIT = Published("f6fe9fea99, wait", "wait", 1, 4, 18381, 25, 13698.65, 859607)
FALLBACK = Published("f6fe9fea99, fallback", "fallback", 1, 4, 14649, 25, 17666.57, 1509647)
IAA_4 = _letter("IAA", 4, 4, 5219, 31, 48899, 6498718)
IAA_8 = _letter("IAA", 4, 8, 5250, 22, 49073, 5578875)
OLD_2 = Published("QPL v4 to v6, IAA", "", 4, 2, 8413, 34, 30067, 1732411)
OLD_4 = Published("QPL v4 to v6, IAA", "", 4, 4, 6559, 32, 38804, 1689954)
OLD_8 = Published("QPL v4 to v6, IAA", "", 4, 8, 6623, 37, 38745, 1566507)
SCORED = (WAIT, FALLBACK, IAA_4, IAA_8, OLD_2, OLD_4, OLD_8)
"""The message of QEMU commit f6fe9fea99 (June 2024), the letter's rows at 4 and 8 channels, and the letters of the
series' older versions (March to May 2024), whose code differs. No parameter comes from any of them."""
