"""A relay between two real QEMUs, and a pair of them with a method that no QEMU has.

`case` is a pairwise selection of the cross product, with --every all of it.
"""

from __future__ import annotations

import json
from itertools import product
from typing import NamedTuple

import pytest
from interop.guest import Guest
from interop.scenario import CHANNELS, METHODS, MIB, ROUTES, Route, goes_on, listen_uri

from multifd import registry


class Case(NamedTuple):
    """One migration through one relay."""

    route: Route
    method_in: str
    method_out: str
    channels: int
    transport: str
    state: str
    return_path: bool


EVERY = [
    Case(*axes)
    for axes in product(ROUTES, METHODS, METHODS, CHANNELS, ["tcp", "unix"], ["paused", "running"], [False, True])
]


def test_relay(start, qemu, cli, tmp_path, case):
    """RAM is the same on both sides, and the guest runs on."""
    source_release, destination_release, machine = case.route
    guest = Guest()
    source = start("source", source_release, machine, guest, is_paused=case.state == "paused")
    destination = qemu("destination", MIB, destination_release, machine=machine, disk=guest.disk(), is_incoming=True)
    destination.multifd(case.method_out, case.channels)
    to = destination.listen(listen_uri(case.transport, tmp_path, "to"))
    uri = listen_uri(case.transport, tmp_path, "relay")
    relay = cli("relay", uri, to, "--in", case.method_in, "--out", case.method_out, "--once", "--json")
    source.multifd(case.method_in, case.channels, return_path=case.return_path)
    source("migrate", uri=relay.listening())
    source.wait_migrated()
    destination.wait_migrated()
    assert relay.json()["status"] == "completed"
    assert destination.ram() == source.ram()
    if case.state == "running":
        goes_on(destination, guest)


@pytest.mark.parametrize(
    ("source", "destination", "machine"),
    [("system", "system", "pc"), ("newer", "newer", "q35"), ("system", "newer", "pc-q35-7.2")],
)
@pytest.mark.parametrize(("method", "return_path"), [("lz4", False), ("lz4", True), ("qpl", True)])
def test_two_relays_with_a_method_that_qemu_lacks(
    start, qemu, cli, tmp_path, source, destination, machine, method, return_path
):
    """QEMU none, relay, a method that neither QEMU has, relay, none QEMU."""
    if method not in registry.installed():
        pytest.skip(f"not installed: multifd-{method}")
    guest = Guest()
    here = start("source", source, machine, guest)
    there = qemu("destination", MIB, destination, machine=machine, disk=guest.disk(), is_incoming=True)
    there.multifd("none", 3)
    to = there.listen("tcp:127.0.0.1:0")
    second = cli("relay", "tcp:127.0.0.1:0", to, "--in", method, "--out", "none", "--once", "--json")
    first = cli("relay", "tcp:127.0.0.1:0", second.listening(), "--in", "none", "--out", method, "--once", "--json")
    here.multifd("none", 3, return_path=return_path)
    here("migrate", uri=first.listening())
    here.wait_migrated()
    there.wait_migrated()
    assert [relay.json()["status"] for relay in (first, second)] == ["completed", "completed"]
    assert there.ram() == here.ram()
    goes_on(there, guest)


def test_a_relay_serves_one_migration_after_another(start, qemu, cli, tmp_path):
    """There and back again, and there: the address that it passes on to is taken by one QEMU after the other."""
    guest, to = Guest(), f"unix:{tmp_path}/to"
    relay = cli("relay", f"unix:{tmp_path}/relay", to, "--out", "zlib")
    uri, machine = relay.listening(), start("first", "system", "pc", guest)
    for name in ("second", "third"):
        following = qemu(name, MIB, machine="pc", disk=guest.disk(), is_incoming=True)
        following.multifd("zlib", 2)
        following.listen(to)
        machine.multifd("none", 2)
        machine("migrate", uri=uri)
        machine.wait_migrated()
        following.wait_migrated()
        assert following.ram() == machine.ram()
        goes_on(following, guest)
        following("cont")
        machine = following
    relay.process.terminate()
    relay.wait(143)


def test_a_destination_that_dies_fails_the_migration_at_its_source(start, qemu, cli, tmp_path):
    """The guest goes on there, and the relay takes the next migration."""
    guest, to = Guest(), f"unix:{tmp_path}/to"
    relay = cli("relay", "tcp:127.0.0.1:0", to, "--out", "zstd", "--json")
    uri, source = relay.listening(), start("source", "system", "pc", guest, is_paused=False)
    source.multifd("none", 2, return_path=True)
    source("migrate-set-parameters", max_bandwidth=1 << 20)
    first = qemu("first", MIB, machine="pc", disk=guest.disk(), is_incoming=True)
    first.multifd("zstd", 2)
    first.listen(to)
    source("migrate", uri=uri)
    source.wait(lambda: source("query-migrate").get("ram", {}).get("transferred", 0) > 1 << 20, "first MiB")
    first.stop()
    source.wait(lambda: source("query-migrate")["status"] == "failed", "failure at the source")
    assert "destination" in json.loads(relay.process.stdout.readline())["error"]

    second = qemu("second", MIB, machine="pc", disk=guest.disk(), is_incoming=True)
    second.multifd("zstd", 2)
    second.listen(to)
    source("migrate-set-parameters", max_bandwidth=1 << 34)
    source("migrate", uri=uri)
    source.wait_migrated()
    second.wait_migrated()
    assert second.ram() == source.ram()
    goes_on(second, guest)
    assert json.loads(relay.process.stdout.readline())["status"] == "completed"
    relay.process.terminate()
    relay.wait(143)
