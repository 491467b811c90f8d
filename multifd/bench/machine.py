"""The machine that measured, as a result document describes it."""

from __future__ import annotations

import contextlib
import os
import platform
import socket
from typing import Any

_CPUINFO = "/proc/cpuinfo"


def cpus() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))


def free_memory_bytes() -> int:
    """What can be had without swapping, as the kernel estimates it; all memory where it does not say."""
    with contextlib.suppress(OSError), open("/proc/meminfo", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def name() -> str:
    """What rows call this machine."""
    return socket.gethostname() or "unnamed"


def describe() -> dict[str, Any]:
    """This machine, for a result document's ``machines``."""
    return {
        "id": name(),
        "cpu": _cpu() or platform.machine(),
        "cpus": cpus(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
    }


def _cpu() -> str:
    try:
        with open(_CPUINFO, encoding="ascii", errors="replace") as lines:
            return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    except OSError:
        return ""
