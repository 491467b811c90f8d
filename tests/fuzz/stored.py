"""A file that holds RAM, looked at in every way there is; for the targets of each format."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np

from multifd.errors import RamError, printable
from multifd.pages import Geometry
from multifd.ram import capture, libvirt
from multifd.ram.block import Source, Staging
from multifd.ram.image import open_source, open_stored
from multifd.ram.stored import is_stream

MOST_BYTES = 1 << 20
"""Of RAM, whose pages are all read; of a larger one only what is said of it is looked at."""


def content(source: Source) -> dict[str, bytes]:
    """The blocks, each page of which comes in exactly one portion."""
    geometry, out = Geometry.of(source.machine.page_size), {}
    staging = Staging(geometry)
    for block in source.blocks:
        pages = np.zeros((block.used_length // geometry.page_size, geometry.page_size), np.uint8)
        seen = np.zeros(len(pages), np.int64)
        for offsets in block.portions(geometry.page_count):
            assert 0 < len(offsets) <= geometry.page_count
            numbers = offsets // geometry.page_size
            seen[numbers] += 1
            loaded = block.load(offsets, staging)
            mapped = block.map(offsets, staging)
            if loaded is not None:
                pages[numbers] = np.frombuffer(loaded.gather(), np.uint8).reshape(len(offsets), -1)
            if mapped is not None:
                views = b"".join(mapped.views)
                count = len(offsets) if mapped.zero_mask is None else int((~mapped.zero_mask).sum())
                assert len(views) == count * geometry.page_size
                assert loaded is None or views == bytes(loaded.gather())[: len(views)]
        assert (seen == 1).all()
        out[block.idstr] = pages.tobytes()
    return out


def look(path: Path) -> tuple[capture.CaptureInfo, dict[str, bytes], bytes] | None:
    """What a capture says of itself, its blocks and the devices' state behind them; None if it is refused.

    Whatever is said fits a terminal and a document, and `verify` and `open_source` agree; a file without any mark is a
    raw image for the latter.
    """
    start = path.read_bytes()[:16]
    if not (is_stream(start) or libvirt.is_save_image(start)):
        return None
    try:
        with contextlib.closing(open_stored(path)) as source:
            info = capture.info(path)
            printable(json.dumps(info.as_dict())).encode()
            if sum(block.used_length for block in source.blocks) > MOST_BYTES:
                return None
            blocks, state = content(source), b"".join(source.device_state())
    except RamError:
        _is_refused(path)
        return None
    if _is_refused(path):
        return None
    return info, blocks, state


def _is_refused(path: Path) -> bool:
    words: list[str] = []
    for check in (capture.verify, lambda path: open_source(path).close()):
        try:
            check(path)
        except RamError as e:
            words.append(str(e))
    assert len(words) != 1, words
    return bool(words)
