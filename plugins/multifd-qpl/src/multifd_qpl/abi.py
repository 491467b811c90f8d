"""libqpl as this plugin knows it: its functions as a table, and its statuses in words."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

INHERITED = 0xFFFFFFF0
"""Ours, no status of libqpl: a hardware job in a process that was forked after libqpl had been opened."""
DAMAGED_ACCEL_CONFIG = 0xFFFFFFF1
"""Ours: libqpl would open a libaccel-config.so.1 that is cut short, which ends the process."""

_STATUSES = {
    2: "the output does not fit",
    5: "all work queues are busy",
    7: "the job was never submitted",
    8: "the work queue's OPCFG forbids the operation",
    54: "no such path",
    101: "no memory",
    213: "invalid block type",
    214: "stored block with a wrong length",
    215: "the stream does not end properly",
    217: "a distance of more than 4096 bytes",
    218: "a reference before the start",
    219: "no progress",
    229: "verification failed",
    303: "page fault while reading",
    319: "larger than the work queue's max_transfer_size",
    431: "page fault while writing",
    500: "this kernel does not show the device's capabilities, which a second-generation device needs",
    501: "libaccel-config.so.1 is missing or too old",
    502: "libaccel-config cannot make its context",
    503: "no enabled shared IAA work queue that this process may open: none is configured, or permission "
    "on /dev/iax/wq* is missing",
}
"""libqpl's statuses that a user may meet, in words (its status.h, 1.6.0)."""

_OWN = {
    INHERITED: "libqpl was opened before this process was forked, and a device answers only the process that opened "
    "it: fork first, or start new processes",
    DAMAGED_ACCEL_CONFIG: "libaccel-config.so.1, which libqpl would open, is cut short",
}


def describe_status(status: int) -> str:
    """A status of libqpl in words; unknown ones are accepted."""
    if status in _OWN:
        return _OWN[status]
    if 201 <= status <= 218 and status not in _STATUSES:
        return f"not a deflate stream (status {status})"
    return f"{_STATUSES.get(status, 'unexpected answer')} (status {status})"


class LibraryUnavailable(Exception):
    """libqpl cannot be used; the message says why."""


@dataclass(frozen=True)
class Library:
    """libqpl, or what stands in for it."""

    table: Any
    """``mq_table *``."""
    version: str
    path: str
    """Where it came from, for messages."""
    has_crc: bool = False
    """Whether its jobs report the CRC-32 of a page's bytes: what `QplOptions.verify` needs."""
    no_hardware: int = 0
    """Not 0: the status of every hardware job, so that libqpl is not asked for one."""
    opened_by: int = field(default_factory=os.getpid)
    """The process that opened it. libqpl opens devices once, for the process that first asks."""

    def hardware_status(self) -> int:
        """Why no hardware job may be asked for in this process; 0 if one may."""
        return INHERITED if self.opened_by != os.getpid() else self.no_hardware
