"""What a source's pages are made of: zero, one byte repeated, met before, or else; how they compress; their entropy.

Rules of this file: RAM is read once, packet by packet, and only numbers of a page are kept (9 bytes each); what is
dear (compressing, entropy) is done for a sample of pages. Both have a bound, and the result says what they cover.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from multifd.bench import sample
from multifd.pages import Geometry
from multifd.ram.block import Source, Staging

MOST_READ = 1 << 20
"""Pages that are read: 4 GiB of 4 KiB ones. Reading goes at 1 to 3 GB/s here, and what is kept of them is 9 MiB."""
MOST_COMPRESSED = 4096
"""Pages that are compressed: any share is known to 1.5 %. zlib level 1 takes about 60 us a page here."""
BUCKETS = 16
CODEC = "zlib level 1, each page alone"
_ZERO, _SAME, _OTHER = 0, 1, 2


@dataclass(frozen=True)
class _Seen:
    """What is kept of the pages that were read, in their order; arrays of shape (n,)."""

    kind: npt.NDArray[np.uint8]
    digest: npt.NDArray[np.uint64]
    portions: Sequence[sample.Portion]
    starts: npt.NDArray[np.int64]
    """The number of each portion's first page; shape (portions + 1,)."""


def dissect(source: Source, on_progress: Callable[[float], None] = lambda share: None) -> dict[str, Any]:
    """The anatomy of a source, as result.schema.json has it.

    Args:
        source: the caller's.
        on_progress: called with the share that is done, 0 to 1.

    Raises:
        RamError: it cannot be read.
    """
    page_size = source.machine.page_size
    seen = _read(source, on_progress)
    is_first = np.zeros(len(seen.kind), np.bool_)
    is_first[np.unique(seen.digest, return_index=True)[1]] = True
    is_repeated = (seen.kind == _OTHER) & ~is_first
    chosen = _choose(np.flatnonzero(seen.kind == _OTHER))
    sizes, bits = _compress(seen, chosen, page_size)
    owner = np.repeat([p.block_index for p in seen.portions], np.diff(seen.starts))
    blocks = [
        _pages(
            block.idstr, block.used_length // page_size, seen.kind[owner == i], is_repeated[owner == i],
            sizes[owner[chosen] == i], bits[owner[chosen] == i], page_size,
        )
        for i, block in enumerate(source.blocks)
    ]  # fmt: skip
    of_pages = sum(block["pages"] for block in blocks)
    others = int(np.count_nonzero(seen.kind == _OTHER))
    error = max(
        sample.error_of_share(len(chosen), others) if others else 0.0,
        sample.error_of_share(len(seen.portions), sum(1 for _ in sample.portions(source))),
    )
    return {
        "page_size": page_size,
        "codec": CODEC,
        "sample": {
            "pages": len(chosen), "read_pages": len(seen.kind), "of_pages": of_pages, "error": round(error, 4)
        },
        "total": _pages("", of_pages, seen.kind, is_repeated, sizes, bits, page_size),
        "blocks": blocks,
    }  # fmt: skip


def _read(source: Source, on_progress: Callable[[float], None]) -> _Seen:
    """Look at pages: all, or whole packets of them spread over RAM."""
    geometry = Geometry.of(source.machine.page_size)
    chosen, _ = sample.spread(source, MOST_READ)
    starts = np.concatenate([[0], np.cumsum([len(p.offsets) for p in chosen], dtype=np.int64)])
    kind = np.full(int(starts[-1]), _OTHER, np.uint8)
    digest = np.zeros(int(starts[-1]), np.uint64)
    staging, buffer = Staging(geometry), np.empty((geometry.page_count, geometry.page_size), np.uint8)
    # Odd, so that pages that differ in one word never have one digest; of others one pair in 2**64, or of those that
    # differ in the upper halves of words alone one in 2**32.
    factors = np.random.default_rng().integers(0, 1 << 63, geometry.page_size // 8, dtype=np.uint64) * 2 + 1
    for portion, start, end in zip(chosen, starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        pages = sample.load(portion, staging, buffer)
        words = pages.view(np.uint64)
        digest[start:end] = np.einsum("ij,j->i", words, factors)
        # Few pages are of one word; only those that look so at three places are read whole.
        alike = np.flatnonzero((words[:, 0] == words[:, -1]) & (words[:, 0] == words[:, words.shape[1] // 2]))
        alike = alike[(pages[alike] == pages[alike, :1]).all(axis=1)]
        kind[start + alike] = np.where(pages[alike, 0] == 0, _ZERO, _SAME)
        on_progress(end / len(kind))
    return _Seen(kind, digest, chosen, starts)


def _choose(candidates: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """At most `MOST_COMPRESSED` of them, in order."""
    if len(candidates) <= MOST_COMPRESSED:
        return candidates
    return np.sort(np.random.default_rng(1).choice(candidates, MOST_COMPRESSED, replace=False))


def _compress(
    seen: _Seen, chosen: npt.NDArray[np.int64], page_size: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Bytes that each chosen page compresses to, and bits of entropy of a byte of it."""
    geometry = Geometry.of(page_size)
    staging, buffer = Staging(geometry), np.empty((geometry.page_count, page_size), np.uint8)
    sizes, bits = np.empty(len(chosen), np.int64), np.empty(len(chosen), np.float64)
    loaded, at = buffer[:0], -1
    for i, page in enumerate(chosen.tolist()):
        number = int(np.searchsorted(seen.starts, page, "right")) - 1
        if number != at:
            loaded, at = sample.load(seen.portions[number], staging, buffer), number
        data = loaded[page - int(seen.starts[number])]
        sizes[i] = len(zlib.compress(data, 1))
        counts = np.bincount(data, minlength=256)
        share = counts[counts > 0] / page_size
        bits[i] = -float((share * np.log2(share)).sum())
    return sizes, bits


def _pages(
    idstr: str,
    count: int,
    kind: npt.NDArray[np.uint8],
    is_repeated: npt.NDArray[np.bool_],
    sizes: npt.NDArray[np.int64],
    bits: npt.NDArray[np.float64],
    page_size: int,
) -> dict[str, Any]:
    """A block's part of the anatomy: see result.schema.json."""
    repeated = int(np.count_nonzero(is_repeated))
    compressed = np.clip((sizes - 1) * BUCKETS // page_size, 0, BUCKETS - 1)
    entropy = np.clip((bits * 2).astype(np.int64), 0, BUCKETS - 1)
    return {
        "idstr": idstr,
        "pages": count,
        "read_pages": len(kind),
        "zero": int(np.count_nonzero(kind == _ZERO)),
        "same": int(np.count_nonzero(kind == _SAME)),
        "repeated": repeated,
        "other": int(np.count_nonzero(kind == _OTHER)) - repeated,
        "compressed": np.bincount(compressed, minlength=BUCKETS).tolist(),
        "entropy": np.bincount(entropy, minlength=BUCKETS).tolist(),
        "ratio": round(len(sizes) * page_size / int(np.minimum(sizes, page_size).sum()), 4) if len(sizes) else None,
    }
