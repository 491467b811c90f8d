"""SHA-256 of RAM itself, whatever the file looks like that it is in: pages that are not present are zeros."""

from __future__ import annotations

import time
from hashlib import sha256

from multifd.ram.mapped_source import MappedRamSource
from multifd.ram.span_digests import Progress

_TICK_S = 0.1


def of_blocks(source: MappedRamSource, on_progress: Progress | None = None) -> dict[str, str]:
    """SHA-256 of each block's bytes, by name, in the order of the file: what ``sha256sum`` says of a raw export.

    Args:
        source: stays the caller's.
        on_progress: see `multifd.ram.span_digests.Progress`.

    Raises:
        RamError: the file cannot be read.
    """
    digests: dict[str, str] = {}
    total = sum(block.used_length for block in source.blocks)
    done, due = 0, time.monotonic()
    for block in source.blocks:
        digest = sha256()
        for piece in block.pieces():
            digest.update(piece)
            done += len(piece)
            if on_progress is not None and time.monotonic() >= due:
                on_progress(done, total)
                due = time.monotonic() + _TICK_S
        digests[block.idstr] = digest.hexdigest()
    return digests
