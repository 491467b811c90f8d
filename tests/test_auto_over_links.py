"""``zstd:level=auto`` over links of known rates: which levels it takes, never how long it takes."""

from __future__ import annotations

import mmap
import random
import re
import sysconfig
from pathlib import Path

import pytest

import multifd

MIB = 1 << 20
MEGABIT = 10**6
SLOW, FAST = 20 * MEGABIT, 10_000 * MEGABIT


@pytest.fixture(scope="module")
def programs() -> bytes:
    """32 MiB of real bytes."""
    found = bytearray()
    paths = sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py"))
    while len(found) < 32 * MIB:
        for path in paths:
            found += path.read_bytes()
    return bytes(found[: 32 * MIB])


@pytest.fixture
def link(link):
    """Whose sockets do not take all of a small image at once."""
    link.limit_send_buffers(256 << 10)
    return link


def packets(result: multifd.Result) -> dict[float, int]:
    """How many packets went by each level, raw ones as minus infinity."""
    stats = result.method_stats
    found = {float(m[1]): n for key, n in stats.items() if (m := re.fullmatch(r"zstd\.level_(-?\d+)_packets", key))}
    return {float("-inf"): stats["zstd.raw_packets"], **found}


def share(result: multifd.Result, low: float, high: float) -> float:
    """Of its packets, those by the levels from `low` to `high`."""
    counts = packets(result)
    return sum(n for level, n in counts.items() if low <= level <= high) / sum(counts.values())


def migrate(link, receiver, memory: bytes, **options) -> multifd.Result:
    """Over the link by the level that follows it; what arrives is the memory."""
    into = mmap.mmap(-1, len(memory))
    with link.destination():
        destination = receiver(into, f"tcp:{link.address}:0", methods=["zstd"])
    with link.source():
        result = multifd.send(memory, destination.uri, "zstd:level=auto", **options)
    destination.join()
    assert into[:] == memory
    return result


@pytest.mark.parametrize("channels", [1, 3])
def test_a_slow_link_gets_high_levels(link, receiver, programs, channels):
    link.shape(SLOW)
    result = migrate(link, receiver, programs[: 16 * MIB], channels=channels)
    assert share(result, 2, 22) > 0.5


def test_what_does_not_shrink_goes_as_it_is(link, receiver):
    link.shape(10 * SLOW)
    result = migrate(link, receiver, random.Random(1).randbytes(32 * MIB))
    assert share(result, float("-inf"), float("-inf")) > 0.5


def test_a_link_that_changes_changes_the_level(link, receiver, programs):
    """Slow first; it becomes fast when a good part has passed."""
    link.shape(SLOW)

    def speed_up(result: multifd.Result) -> None:
        if result.transferred_bytes > 2 * MIB:
            link.shape(FAST)

    result = migrate(link, receiver, programs, on_progress=speed_up)
    assert result.method_stats["zstd.changes"] > 1
    assert share(result, 2, 22) > 0
    assert share(result, float("-inf"), 1) > 0
