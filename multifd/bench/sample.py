"""A sample of a source: whole packets, spread over all of RAM, and the error that follows from its size.

Packets and not pages, because a packet is what a method compresses: neighbours look alike, and a codec uses it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from multifd.pages import Geometry, Offsets
from multifd.ram.block import Source, SourceBlock, Staging

Z95 = 1.96
"""Standard errors on either side of a mean that hold the true one in 95 of 100 samples (normal distribution)."""


@dataclass(frozen=True)
class Portion:
    """One packet's pages in a block."""

    block: SourceBlock
    block_index: int
    offsets: Offsets
    """Bytes from the block's start; int64, shape (n,)."""


def portions(source: Source) -> Iterator[Portion]:
    """All packets of a source, in the order of sending."""
    geometry = Geometry.of(source.machine.page_size)
    for index, block in enumerate(source.blocks):
        for offsets in block.portions(geometry.page_count):
            yield Portion(block, index, offsets)


def spread(source: Source, most_pages: int, seed: int = 1) -> tuple[list[Portion], int]:
    """At most so many pages, in whole packets: one at random out of each of as many equal stretches of RAM.

    Args:
        source: where from.
        most_pages: at least one packet's.
        seed: of the choice.

    Returns:
        The packets in the order of sending, all of them if they are not more; and how many there are in all.
    """
    geometry = Geometry.of(source.machine.page_size)
    count = sum(1 for _ in portions(source))
    wanted = max(most_pages // geometry.page_count, 1)
    if count <= wanted:
        return list(portions(source)), count
    edges = np.linspace(0, count, wanted + 1)
    rng = np.random.default_rng(seed)
    chosen = set((edges[:-1] + rng.random(wanted) * np.diff(edges)).astype(np.int64).tolist())
    return [portion for number, portion in enumerate(portions(source)) if number in chosen], count


def load(portion: Portion, staging: Staging, out: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """A packet's pages, zero ones included.

    Args:
        portion: which.
        staging: private to the caller.
        out: at least as many pages, uint8 of shape (n, page_size); written.

    Returns:
        The part of `out` that was filled.

    Raises:
        RamError: they cannot be read.
    """
    filled = out[: len(portion.offsets)]
    pages = portion.block.load(portion.offsets, staging)
    if pages is None:
        filled[:] = 0
    else:
        filled[:] = np.frombuffer(pages.gather(), np.uint8).reshape(filled.shape)
    return filled


def error_of_mean(values: Sequence[float], of: int) -> float:
    """How far, with 95 %, the mean of all packets may be from that of a sample of them.

    Args:
        values: one for each packet of the sample.
        of: how many packets there are in all.

    Returns:
        In the values' unit; 0 if all were sampled.
    """
    n = len(values)
    if n >= of:
        return 0.0
    if n < 2:
        return math.inf
    return float(Z95 * np.std(values, ddof=1) / math.sqrt(n) * math.sqrt(1 - n / of))


def error_of_share(n: int, of: int) -> float:
    """How far, with 95 %, any share of all things may be from that among `n` of them, chosen alike likely.

    Args:
        n: sampled, at least 1.
        of: in all.
    """
    return Z95 * 0.5 / math.sqrt(n) * math.sqrt(1 - n / of) if 0 < n < of else float(n == 0)
