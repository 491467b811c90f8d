"""The live guest: a process that rewrites every second page of a shared file while the kit compresses it.

``python -m multifd.testing.writer PATH PAGE_SIZE ARENA_PAGES``. The file is a control page, the arena, and the
palette that pages are rewritten from. It ends when the control page says so, or when its parent is gone.
"""

from __future__ import annotations

import mmap
import os
import random
import sys

import numpy as np

GENERATION, STOP = 0, 1
"""Words of the control page: how many writes there were, and whether to end."""


def main(path: str, page_size: int, arena_pages: int) -> None:
    """Rewrite odd pages of the arena until told to stop."""
    fd = os.open(path, os.O_RDWR)
    shared = np.frombuffer(mmap.mmap(fd, 0), np.uint8).reshape(-1, page_size)
    control = shared[0].view(np.uint64)
    arena, palette = shared[1 : 1 + arena_pages], shared[1 + arena_pages :]
    rng, parent = random.Random(5), os.getppid()
    print("ready", flush=True)
    while not control[STOP] and os.getppid() == parent:
        for _ in range(200):
            page, source, cut = 2 * rng.randrange(arena_pages // 2) + 1, rng.randrange(len(palette)), rng.random()
            middle = int(page_size * cut)
            arena[page, middle:] = palette[source, middle:]
            arena[page, :middle] = palette[source - 1, page_size - middle :]
            control[GENERATION] += 1


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
