"""How much of what was freed malloc keeps for itself, for a process that runs for months."""

from __future__ import annotations

import contextlib
import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of glibc's malloc.h."""
OF_A_SERVICE = 1 << 20
"""More than the buffers of a packet, which come and go all the time: with 128 KiB, glibc's initial value, a relay that
compresses by zlib took 15 % more CPU; with this, none (two runs each, glibc 2.36)."""


def keep(nbytes: int) -> None:
    """Let malloc keep so much of what is freed in each of its arenas, and nothing of what is larger.

    Left to itself glibc raises its thresholds with each large buffer that is freed, to 64 MiB at most, and keeps that
    much in each of the arenas of threads that have ended, 8 for each CPU at most. A relay of 8 MiB guests by zstd held
    65 to 77 MiB after each of 100 migrations so, and 55 to 59 with `OF_A_SERVICE`. Another libc does as it likes.

    Args:
        nbytes: of an arena.
    """
    with contextlib.suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_TRIM_THRESHOLD, nbytes)
        mallopt(_MMAP_THRESHOLD, nbytes)
