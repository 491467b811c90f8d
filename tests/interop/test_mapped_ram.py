"""Captures of real QEMUs: into a mapped-ram file, and out of it in each way there is.

`case` is a pairwise selection of the cross product, with --every all of it.
"""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import pytest
from interop.guest import Guest, check
from interop.mapped import read_blocks
from interop.scenario import CHANNELS, METHODS, MIB, ROUTES, Route, goes_on, listen_uri


class Case(NamedTuple):
    """One capture and replay; the replay takes the next method and the next number of channels."""

    route: Route
    method: str
    channels: int
    transport: str
    state: str
    return_path: bool


EVERY = [
    Case(*axes) for axes in product(ROUTES, METHODS, CHANNELS, ["tcp", "unix"], ["paused", "running"], [False, True])
]


def following(choices, value):
    return choices[(choices.index(value) + 1) % len(choices)]


def capture(source, cli, uri, path, *options):
    """Migrate `source` into `multifd receive`."""
    receive = cli("receive", uri, path, "--json", *options)
    source("migrate", uri=receive.listening())
    source.wait_migrated()
    result = receive.json()
    assert result["status"] == "completed"
    assert read_blocks(path)["pc.ram"] == source.ram()
    return result


def test_capture_and_replay(start, qemu, cli, tmp_path, case):
    """RAM arrives byte for byte in the file and in the second QEMU, and the guest runs on in it."""
    source_release, destination_release, machine = case.route
    guest, path = Guest(), tmp_path / "vm.ram"
    source = start("source", source_release, machine, guest, is_paused=case.state == "paused")
    source.multifd(case.method, case.channels, return_path=case.return_path)
    uri = listen_uri(case.transport, tmp_path, "capture")
    assert capture(source, cli, uri, path, "--channels", case.channels)["method"] == case.method

    method, channels = following(METHODS, case.method), following(CHANNELS, case.channels)
    destination = qemu(
        "destination", MIB, destination_release, machine=machine, disk=guest.disk(), is_incoming=True
    )  # fmt: skip
    destination.multifd(method, channels)
    uri = destination.listen(listen_uri(case.transport, tmp_path, "replay"))
    cli("send", path, uri, "--method", method, "--channels", channels).wait()
    destination.wait_migrated()
    assert destination.ram() == source.ram()
    if case.state == "running":
        goes_on(destination, guest)


@pytest.mark.parametrize("multifd", [False, True], ids=["single", "multifd"])
@pytest.mark.parametrize(
    ("release", "machine"), [("newer", "q35"), ("newer", "pc"), ("newer", "pc-q35-8.0"), ("system", "pc-i440fx-7.2")]
)
def test_qemu_loads_our_file(start, qemu, cli, tmp_path, release, machine, multifd):
    """The file is QEMU's own: a QEMU of 9.0 or later takes it with ``-incoming file:``."""
    guest, path = Guest(), tmp_path / "vm.ram"
    destination = qemu("destination", MIB, "newer", machine=machine, disk=guest.disk(), is_incoming=True)
    source = start("source", release, machine, guest)
    source.multifd("zstd", 2)
    capture(source, cli, "tcp:127.0.0.1:0", path, "--channels", 2)
    destination.set({"mapped-ram": True, "multifd": multifd})
    destination.listen(f"file:{path}")
    destination.wait_migrated()
    assert destination.ram() == source.ram()
    goes_on(destination, guest)


@pytest.mark.parametrize("multifd", [False, True], ids=["single", "multifd"])
@pytest.mark.parametrize(("release", "machine"), [("newer", "q35"), ("system", "pc-i440fx-7.2")])
def test_we_send_qemus_file(start, qemu, cli, tmp_path, release, machine, multifd):
    """A file that QEMU wrote goes to an older or a newer one."""
    guest, path = Guest(), tmp_path / "vm.ram"
    source = start("source", "newer", machine, guest)
    source.set({"mapped-ram": True, "multifd": multifd})
    source("migrate", uri=f"file:{path}")
    source.wait_migrated()
    assert read_blocks(path)["pc.ram"] == source.ram()  # the second opinion is right about QEMU's own

    destination = qemu("destination", MIB, release, machine=machine, disk=guest.disk(), is_incoming=True)
    destination.multifd("zlib", 3)
    uri = destination.listen("tcp:127.0.0.1:0")
    cli("send", path, uri, "--method", "zlib", "--channels", 3).wait()
    destination.wait_migrated()
    assert destination.ram() == source.ram()
    goes_on(destination, guest)


@pytest.mark.parametrize("release", ["system", "newer"])
def test_the_guest_goes_on_at_the_source(start, cli, tmp_path, release):
    guest = Guest()
    source = start("source", release, "pc", guest)
    source.multifd("none", 2, return_path=True)
    capture(source, cli, "tcp:127.0.0.1:0", tmp_path / "vm.ram", "--channels", 2)
    goes_on(source, guest)


@pytest.mark.parametrize("detection", ["none", "legacy", "multifd"])
@pytest.mark.parametrize("method", ["none", "zstd"])
def test_zero_pages_wherever_qemu_finds_them(start, cli, tmp_path, detection, method):
    """As payload, as words on the main connection, as entries of packets; pages turn to zero between rounds."""
    guest, path = Guest(), tmp_path / "vm.ram"
    source = start("source", "newer", "q35", guest)
    source.set({"multifd": True}, multifd_compression=method, zero_page_detection=detection)
    capture(source, cli, "tcp:127.0.0.1:0", path, "--channels", 2)
    check(read_blocks(path)["pc.ram"], guest)


@pytest.mark.parametrize("release", ["system", "newer"])
def test_a_guest_that_dirties_memory_faster_than_the_link(start, cli, tmp_path, release):
    """Rounds and rounds, until the link is faster."""
    guest, path = Guest(batch=1024), tmp_path / "vm.ram"
    source = start("source", release, "q35", guest)
    source.set({"multifd": True}, max_bandwidth=32 << 20, downtime_limit=1)
    receive = cli("receive", "tcp:127.0.0.1:0", path, "--json", "--channels", 2)
    source("migrate", uri=receive.listening())
    source.wait(lambda: source("query-migrate").get("ram", {}).get("dirty-sync-count", 0) >= 5, "fifth round")
    source("migrate-set-parameters", max_bandwidth=1 << 34, downtime_limit=10_000)
    source.wait_migrated()
    assert receive.json()["status"] == "completed"
    assert read_blocks(path)["pc.ram"] == source.ram()
    check(source.ram(), guest)


UUID, OTHER = "8ab8d9a2-6e4f-4ad4-8f6a-0a3b1c5d7e90", "00112233-4455-6677-8899-aabbccddeeff"


@pytest.mark.parametrize(("uuid", "option"), [(UUID, []), (OTHER, ["--uuid", OTHER])], ids=["kept", "another"])
@pytest.mark.parametrize("validate", [False, True])
def test_the_vms_uuid(start, qemu, cli, tmp_path, validate, uuid, option):
    """QEMU takes no channel of a VM with another uuid: the file keeps it, --uuid replaces it."""
    guest, path = Guest(), tmp_path / "vm.ram"
    source = start("source", "system", "pc", guest, arguments=("-uuid", UUID))
    source.set({"multifd": True, "validate-uuid": validate})
    capture(source, cli, "tcp:127.0.0.1:0", path, "--channels", 2)
    destination = qemu(
        "destination", MIB, machine="pc", disk=guest.disk(), is_incoming=True, arguments=("-uuid", uuid)
    )  # fmt: skip
    destination.multifd("none", 2)
    cli("send", path, destination.listen("tcp:127.0.0.1:0"), *option).wait()
    destination.wait_migrated()
    goes_on(destination, guest)
