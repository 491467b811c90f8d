"""Kinds of memory, and which trackers work here."""

from __future__ import annotations

import mmap
import os

import pytest

from multifd.live.arena import Arena
from multifd.live.tracker import Unavailable
from multifd.live.write_protect import WriteProtect
from multifd.ram.mappings import PAGE

PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


PAGES = 2048


def _why_no_log() -> str:
    with Arena(mmap.mmap(-1, PAGE, flags=PRIVATE)) as arena:
        try:
            WriteProtect(arena, PAGE).close()
        except Unavailable as e:
            return str(e)
    return ""


WHY_NO_LOG = _why_no_log()


needs_log = pytest.mark.skipif(bool(WHY_NO_LOG), reason=f"write-protect log: {WHY_NO_LOG}")


TRACKERS = [pytest.param("write-protect", marks=needs_log), "comparison"]


def make_memory(kind, nbytes=PAGES * PAGE):
    if kind == "memfd":
        fd = os.memfd_create("test")
        os.ftruncate(fd, nbytes)
        memory = mmap.mmap(fd, nbytes)
        os.close(fd)
        return memory
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS if kind == "shared" else PRIVATE)
    if kind == "huge":
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
