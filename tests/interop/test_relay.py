"""Relays between real QEMUs: RAM arrives byte for byte, and the guest runs on.

`case` is a pairwise selection of the cross product, with --every all of it.
"""

from __future__ import annotations

import json
import signal
from itertools import product
from typing import NamedTuple

import pytest
from interop.guest import Guest, passes_printed
from interop.scenario import MIB, Route, goes_on

from multifd import registry


class Form(NamedTuple):
    """The methods on the way: the source's, of each relay towards the next, the last the destination's own."""

    source: str
    relays: tuple[str, ...]


class Case(NamedTuple):
    """One migration."""

    route: Route
    form: Form
    channels: int
    transport: str
    state: str
    return_path: bool


ROUTES = [
    Route("system", "system", "pc"),
    Route("system", "newer", "pc-q35-7.2"),
    Route("newer", "system", "pc-i440fx-7.2"),
    Route("newer", "newer", "q35"),
    Route("newer", "newer", "pc-q35-8.0"),  # the last with a SYNC for each section
]
FORMS = [
    Form("none", ("none",)),
    Form("none", ("zlib",)),
    Form("none", ("zstd",)),
    Form("zstd", ("none",)),
    Form("zstd", ("zlib",)),
    Form("none", ("lz4", "none")),  # which no QEMU has
    Form("zlib", ("qpl", "zstd")),  # which neither of these has
]
EVERY = [
    Case(*axes) for axes in product(ROUTES, FORMS, [1, 2, 4], ["tcp", "unix"], ["paused", "running"], [False, True])
]


def end_to_end(source, destination, guest, *, was_running):
    """Both QEMUs say completed; RAM is equal; a guest that ran goes on."""
    source.wait_migrated()
    destination.wait_migrated()
    assert destination.ram() == source.ram()
    if was_running:
        goes_on(destination, guest)


def run(source):
    source("cont")
    source.wait(lambda: passes_printed(source.console()) > 1, "second pass of the guest")


def test_relays(qemu, cli, image, tmp_path, case):
    """One-sided, transcoding, and in pairs with a method that neither QEMU knows."""
    if missing := set(case.form.relays) - set(registry.installed()):
        pytest.skip(f"not installed: {', '.join(f'multifd-{name}' for name in missing)}")
    guest = Guest()
    options = {"machine": case.route.machine, "disk": guest.disk()}
    source = qemu("source", MIB, case.route.source, image=image, **options)
    source.multifd(case.form.source, case.channels, return_path=case.return_path)
    destination = qemu("destination", MIB, case.route.destination, is_incoming=True, **options)
    destination.multifd(case.form.relays[-1], case.channels)
    if case.state == "running":
        run(source)

    def listen(name):
        return "tcp:127.0.0.1:0" if case.transport == "tcp" else f"unix:{tmp_path}/{name}"

    uri = destination.listen(listen("in"))
    relays = []
    for number, method in reversed(list(enumerate(case.form.relays))):
        relays.append(cli("relay", listen(f"relay{number}"), uri, "--out", method, "--once", "--json"))
        uri = relays[-1].listening()
    source("migrate", uri=uri)
    end_to_end(source, destination, guest, was_running=case.state == "running")
    results = [relay.json() for relay in reversed(relays)]
    assert [r["in_method"] for r in results] == [case.form.source, *case.form.relays[:-1]]
    assert all(r["channels"] == case.channels for r in results)


def test_one_after_another(qemu, cli, tmp_path):
    """A migration whose destination dies fails at the source, which goes on; the next one is relayed."""
    guest, options = Guest(), {"machine": "pc"}
    source = qemu("source", MIB, disk=guest.disk(), **options)
    source.multifd("none", 2, return_path=True)
    run(source)
    uri = f"unix:{tmp_path}/in"
    relay = cli("relay", "tcp:127.0.0.1:0", uri, "--out", "zstd", "--json")
    to = relay.listening()

    first = qemu("first", MIB, disk=guest.disk(), is_incoming=True, **options)
    first.multifd("zstd", 2)
    first.listen(uri)
    source("migrate-set-parameters", max_bandwidth=1 << 20)
    source("migrate", uri=to)
    source.wait(lambda: source("query-migrate").get("ram", {}).get("transferred", 0) > 1 << 20, "first MiB")
    first.stop()
    source.wait(lambda: source("query-migrate")["status"] == "failed", "failure at the source")
    assert "destination" in json.loads(relay.process.stdout.readline())["error"]

    second = qemu("second", MIB, disk=guest.disk(), is_incoming=True, **options)
    second.multifd("zstd", 2)
    second.listen(uri)
    source("migrate-set-parameters", max_bandwidth=1 << 34)
    source("migrate", uri=to)
    end_to_end(source, second, guest, was_running=True)
    assert json.loads(relay.process.stdout.readline())["status"] == "completed"
    relay.signal(signal.SIGTERM)
    relay.wait(143)
