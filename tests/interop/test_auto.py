"""``level=auto`` of zstd and zlib into unmodified QEMUs: whatever the level does meanwhile, RAM is the same."""

from __future__ import annotations

import random

import pytest
from interop.guest import Guest
from interop.scenario import MIB, goes_on
from shaped_link import Changes, Phase

import multifd
from multifd.methods import _adaptive
from multifd.methods.adapt import Policy

MEGABIT = 10**6


class Restless(Policy):
    """Another level after each packet, any of the ladder."""

    rng = random.Random(1)
    is_watching = True

    def _choose(self) -> None:
        self.place = self.rng.randrange(len(self._ladder))


@pytest.fixture
def restless(monkeypatch):
    """Every channel's policy is."""
    monkeypatch.setattr(_adaptive, "Policy", Restless)


@pytest.mark.parametrize("release", ["system", "newer"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("engine", ["zstd:libzstd", "zstd:zstandard", "zlib:auto", "zlib:isal", "zlib:zlib"])
def test_a_level_for_each_packet(qemu, image, tmp_path, restless, release, channels, engine):
    machine = qemu("destination", len(image) >> 20, release, machine="none", is_incoming=True)
    name, _, engine = engine.partition(":")
    machine.multifd(name, channels)
    uri = machine.listen(f"unix:{tmp_path}/in")
    dialect = "7.2" if machine.release.version <= (8, 0) else "9.0"
    method = f"{name}:level=auto,engine={engine}"
    result = multifd.send(image, uri, method, channels=channels, dialect=dialect)
    assert machine.ram() == image
    assert result.method_stats[f"{name}.changes"] > channels


@pytest.mark.parametrize("release", ["system", "newer"])
def test_a_link_that_changes(qemu, image, link, release):
    """From tenfold to a tenth of it and back, all the time."""
    link.limit_send_buffers(256 << 10)
    with link.destination():
        machine = qemu("destination", len(image) >> 20, release, machine="none", is_incoming=True)
    machine.multifd("zstd", 2)
    uri = machine.listen(f"tcp:{link.address}:0")
    dialect = "7.2" if machine.release.version <= (8, 0) else "9.0"
    with link.source(), Changes(link, [Phase(20 * MEGABIT, 0.3), Phase(2000 * MEGABIT, 0.05)]):
        multifd.send(image, uri, "zstd:level=auto", channels=2, dialect=dialect)
    assert machine.ram() == image


@pytest.mark.parametrize(
    ("source", "destination", "machine"),
    [("system", "newer", "pc-q35-7.2"), ("newer", "system", "pc-i440fx-7.2"), ("newer", "newer", "q35")],
)
def test_a_relay_between_qemus(start, qemu, cli, link, source, destination, machine):
    """QEMU none, a relay whose level follows the link, zstd QEMU; the guest runs all the time, and goes on."""
    guest = Guest()
    with link.destination():
        there = qemu("destination", MIB, destination, machine=machine, disk=guest.disk(), is_incoming=True)
    there.multifd("zstd", 2)
    to = there.listen(f"tcp:{link.address}:0")
    with link.source():
        here = start("source", source, machine, guest)
        relay = cli("relay", "tcp:127.0.0.1:0", to, "--out", "zstd:level=auto", "--once", "--json")
        uri = relay.listening()
    here.multifd("none", 2, return_path=True)
    with Changes(link, [Phase(100 * MEGABIT, 0.2), Phase(1000 * MEGABIT, 0.2)]):
        here("migrate", uri=uri)
        here.wait_migrated()
        there.wait_migrated()
    figures = relay.json()
    assert figures["status"] == "completed"
    assert sum(n for name, n in figures["out_stats"].items() if name.endswith("_packets")) > 0
    assert there.ram() == here.ram()
    goes_on(there, guest)
