"""Memory between multifd and an unmodified QEMU, in both directions, byte for byte.

``-M none`` is a machine of RAM alone: one block, no devices, so a raw image is all of it.
"""

from __future__ import annotations

import itertools
import mmap
from collections.abc import Sequence

import pytest

import multifd
from multifd.methods import _adaptive
from multifd.methods.adapt import Rung, Spent
from multifd.pump import library

MIB = 8


@pytest.mark.parametrize("method", ["none", "zlib", "zstd"])
@pytest.mark.parametrize("return_path", [False, True])
def test_qemu_to_multifd(qemu, receiver, image, tmp_path, method, return_path):
    """QEMU announces nothing: the channel count is told, the method comes from its packets."""
    out = tmp_path / "out.ram"
    destination = receiver(out, channels=3)
    machine = qemu("source", MIB, machine="none", image=image)
    machine.multifd(method, 3, return_path=return_path)
    machine("migrate", uri=destination.uri)
    machine.wait_migrated()
    result = destination.join()
    assert out.read_bytes() == image
    assert result.method == method


@pytest.mark.parametrize("method", ["none", "zlib", "zlib:engine=zlib", "zstd", "zstd:engine=zstandard"])
def test_multifd_to_qemu(qemu, image, tmp_path, method):
    """A stock destination takes what we send, and answers on the return path."""
    machine = qemu("destination", MIB, machine="none", is_incoming=True)
    machine.multifd(method.partition(":")[0], 2)
    uri = machine.listen(f"unix:{tmp_path}/in")
    dialect = "7.2" if machine.release.version <= (8, 0) else "9.0"
    result = multifd.send(image, uri, method, channels=2, dialect=dialect)
    assert result.status == "completed"
    assert machine.ram() == image


class Restless:
    """A policy that goes up its ladder and down again, a place for each packet."""

    wants_look = is_watching = True

    def __init__(self, ladder: Sequence[Rung], start: int, doubted: int) -> None:
        self._places = itertools.cycle([*range(len(ladder)), *reversed(range(len(ladder)))])
        self.place = start

    def note(self, place: int, spent: Spent) -> None:
        if place == self.place:
            self.place = next(self._places)

    def look(self, *figures: float) -> None:
        pass


@pytest.mark.parametrize("release", ["system", "newer"])
@pytest.mark.parametrize("path", ["native", "libzstd", "zstandard"])
def test_every_level_in_one_migration_to_qemu(qemu, image, tmp_path, monkeypatch, release, path):
    """A stock destination takes frames that end in the packet of their last page, and frames of raw blocks."""
    monkeypatch.setattr(_adaptive, "Policy", Restless)
    if path != "native":
        monkeypatch.setattr(library, "unavailable_reason", lambda: "not wanted")
    machine = qemu("destination", MIB, release, machine="none", is_incoming=True)
    machine.multifd("zstd", 2)
    uri = machine.listen(f"unix:{tmp_path}/in")
    dialect = "7.2" if machine.release.version <= (8, 0) else "9.0"
    method = f"zstd:level=auto,engine={'zstandard' if path == 'zstandard' else 'libzstd'}"
    result = multifd.send(image, uri, method, channels=2, dialect=dialect)
    assert result.status == "completed"
    assert machine.ram() == image
    assert result.method_stats["zstd.changes"] > 4
    assert result.method_stats["zstd.raw_packets"]


@pytest.mark.parametrize("method", ["none", "zstd"])
def test_a_live_arena_into_qemu(qemu, image, tmp_path, method):
    """Rounds, PINGs between them, and pages that become zero: to QEMU it is a guest like any other."""
    memory = mmap.mmap(-1, len(image), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory[:] = image
    machine = qemu("destination", MIB, machine="none", is_incoming=True)
    machine.multifd(method, 2)
    uri = machine.listen(f"unix:{tmp_path}/in")
    dialect = "7.2" if machine.release.version <= (8, 0) else "9.0"
    wrote = []

    def write(result):
        at = len(wrote) % 256 * 4096 * 7
        memory[at : at + 4096] = bytes(4096) if len(wrote) % 2 else b"\x77" * 4096
        wrote.append(at)

    with multifd.Arena(memory) as arena:
        live = multifd.Live(
            arena, pause=lambda: write(None), resume=lambda: None, downtime_limit=1e-6, max_rounds=3,
            at_max_rounds="switch-over",
        )  # fmt: skip
        result = multifd.send(live, uri, method, dialect=dialect, max_bandwidth=8 << 20, on_progress=write)
    assert result.rounds >= 2
    assert machine.ram() == memory[:]
