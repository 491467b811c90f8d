"""Streams in a folder and real QEMUs: kept as a guest sends them, and given to one that takes them up."""

from __future__ import annotations

import json
from itertools import product
from typing import NamedTuple

import pytest
from interop.guest import Guest
from interop.scenario import METHODS, MIB, Route, goes_on

ROUTES = [
    Route("system", "system", "pc"),
    Route("system", "newer", "pc-q35-7.2"),
    Route("newer", "system", "pc-i440fx-7.2"),
    Route("newer", "newer", "q35"),
]
CHANNELS = [1, 4]
WAYS = ["as it is", "by another method", "squeezed"]


class Case(NamedTuple):
    """How a guest is stored and restored."""

    route: Route
    method: str
    channels: int
    return_path: bool
    way: str


EVERY = [Case(*values) for values in product(ROUTES, METHODS, CHANNELS, [False, True], WAYS)]


def test_kept_and_restored(start, qemu, cli, tmp_path, case):
    """A guest at work is kept as it comes, and goes on at a QEMU that reads what the first has said."""
    guest, folder, method, channels = Guest(), f"dir:{tmp_path}/streams", case.method, case.channels
    source = start("source", case.route.source, case.route.machine, guest)
    if source.release.version < (9, 0):
        source("stop")  # before 9.0 QEMU under TCG can forget that a page was written while its dirty bits were taken
    source.multifd(method, channels, return_path=case.return_path)
    receive = cli("receive", "tcp:127.0.0.1:0", folder, "--channels", channels, "--json")
    source("migrate", uri=receive.listening())
    source.wait_migrated()
    assert receive.json()["method"] == method
    options = []
    if case.way == "by another method":
        method = METHODS[(METHODS.index(method) + 1) % len(METHODS)]
        options = ["--method", method]
    elif case.way == "squeezed":
        kept, folder, channels = folder, f"dir:{tmp_path}/squeezed", channels + 1
        cli("send", kept, folder, "--channels", channels).wait()
    destination = qemu(
        "destination", MIB, case.route.destination, machine=case.route.machine, disk=guest.disk(), is_incoming=True
    )
    destination.multifd(method, channels)
    cli("send", folder, destination.listen("tcp:127.0.0.1:0"), *options).wait()
    destination.wait_migrated()
    assert destination.ram() == source.ram()
    goes_on(destination, guest)


@pytest.mark.parametrize("release", ["system", "newer"])
def test_a_destination_that_is_set_otherwise_is_not_told_to_have_it(start, qemu, cli, tmp_path, release):
    """A QEMU asks for no answer in its middle, so the outcome may be unknown; the words say what to look at."""
    source = start("source", release, "pc", Guest(), is_paused=True)
    source.multifd("zstd", 3, return_path=True)
    receive = cli("receive", "tcp:127.0.0.1:0", f"dir:{tmp_path}/streams", "--channels", 3)
    source("migrate", uri=receive.listening())
    source.wait_migrated()
    receive.wait()
    destination = qemu("destination", MIB, release, machine="pc", is_incoming=True)
    destination.multifd("zlib", 2)
    send = cli("send", f"dir:{tmp_path}/streams", destination.listen("tcp:127.0.0.1:0"), "--timeout", 3, "--json")
    document = json.loads(send.process.communicate()[0])
    assert (send.process.returncode, document["status"]) in [(5, "failed"), (7, "unknown")]
    assert "its multifd-compression may be another" in str(document["notes"])
