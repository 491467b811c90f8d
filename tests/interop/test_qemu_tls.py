"""Unmodified QEMUs over TLS: as source and as destination, and what each end says of the other's certificate.

`case` is a pairwise selection of the cross product, with --every all of it.
"""

from __future__ import annotations

import json
import re
import sys
from itertools import product
from pathlib import Path
from typing import NamedTuple

import pytest
from ends import ReceiverThread, RelayThread
from interop.guest import Guest
from interop.qemu import QmpError
from interop.scenario import MIB, ROUTES, Route

import multifd
from multifd import Tls
from multifd.errors import OutcomeUnknown, TlsError

RAM_MIB = 8
"""Of a machine that is nothing but RAM."""


class Case(NamedTuple):
    """One capture and its replay, both over TLS."""

    route: Route
    method: str
    channels: int
    transport: str
    return_path: bool


EVERY = [
    Case(*axes)
    for axes in product(
        ROUTES[:1] + ROUTES[3:5] + ROUTES[7:8], ["none", "zstd"], [1, 4], ["tcp", "unix"], [False, True]
    )
]


PAGE = Path(__file__).parents[2] / "docs/tls.md"


def secure(machine, folder, endpoint, **parameters):
    """Give a QEMU credentials, by the commands of the documentation's page."""
    blocks = re.findall(r"```json\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (block,) = (block for block in blocks if f'"endpoint": "{endpoint}"' in block)
    for line in block.replace("FOLDER", str(folder)).splitlines():
        command = json.loads(line)
        machine(command["execute"], **command["arguments"])
    machine("migrate-set-parameters", **parameters)


def test_capture_and_replay(start, qemu, receiver, credentials, tmp_path, case):
    """RAM is the same behind a QEMU source, a capture and a QEMU destination."""
    guest = Guest()
    source = start("source", case.route.source, case.route.machine, guest, is_paused=True)
    source.multifd(case.method, case.channels, return_path=case.return_path)
    secure(source, credentials.good, "client", tls_hostname="vm.example" if case.transport == "unix" else "")
    capture = tmp_path / "capture"
    uri = "tcp:localhost:0" if case.transport == "tcp" else f"unix:{tmp_path}/in"
    tls = Tls(credentials.good, authz=["CN=client"])
    here = receiver(capture, uri, format="mapped-ram", channels=case.channels, tls=tls)
    source("migrate", uri=here.uri)
    source.wait_migrated()
    assert here.join().status == "completed"
    destination = qemu(
        "destination", MIB, case.route.destination, machine=case.route.machine, disk=guest.disk(), is_incoming=True
    )
    destination.multifd(case.method, case.channels)
    authz = {"qom_type": "authz-simple", "id": "az", "identity": "CN=client"}
    destination("object-add", **authz)
    secure(destination, credentials.good, "server", tls_authz="az")
    to = destination.listen("tcp:127.0.0.1:0" if case.transport == "tcp" else f"unix:{tmp_path}/out")
    tls = Tls(credentials.good, hostname="vm.example" if case.transport == "unix" else "")
    sent = multifd.send(capture, to, case.method, channels=case.channels, tls=tls)
    assert sent.status == "completed"
    destination.wait_migrated()
    assert destination.ram() == source.ram()
    assert destination.process.poll() is None  # 10.0 ends itself after its own success if a channel just closes


@pytest.mark.parametrize("return_path", [False, True])
@pytest.mark.parametrize("release", ["system", "newer"])
def test_a_relay_in_the_middle(qemu, image, credentials, release, return_path):
    """TLS on both of its sides, with the same QEMU at both ends."""
    source = qemu("source", RAM_MIB, release, machine="none", image=image)
    destination = qemu("destination", RAM_MIB, release, machine="none", is_incoming=True)
    destination.multifd("zstd", 2)
    secure(destination, credentials.good, "server")
    tls = Tls(credentials.good)
    relay = RelayThread(destination.listen("tcp:127.0.0.1:0"), out_method="zstd", in_tls=tls, out_tls=tls)
    source.multifd("none", 2, return_path=return_path)
    secure(source, credentials.good, "client")
    source("migrate", uri=relay.uri)
    source.wait_migrated()
    destination.wait_migrated()
    assert relay.join().status == "completed"
    assert destination.ram() == image
    assert destination.process.poll() is None


@pytest.mark.skipif(sys.version_info < (3, 13), reason="pre-shared keys need Python 3.13")
@pytest.mark.parametrize("release", ["system", "newer"])
def test_pre_shared_keys(qemu, receiver, image, tmp_path, release):
    """tls-creds-psk on both sides of both directions."""
    folder = tmp_path / "psk"
    folder.mkdir()
    (folder / "keys.psk").write_text(f"qemu:{'deadbeef' * 8}\n")
    key = {"qom_type": "tls-creds-psk", "id": "tls0", "dir": str(folder)}
    source = qemu("source", RAM_MIB, release, machine="none", image=image)
    source.multifd("none", 2, return_path=True)
    source("object-add", **key, endpoint="client")
    source("migrate-set-parameters", tls_creds="tls0")
    into = bytearray(len(image))
    here = receiver(into, channels=2, tls=Tls(folder))
    source("migrate", uri=here.uri)
    source.wait_migrated()
    here.join()
    assert into == image
    destination = qemu("destination", RAM_MIB, release, machine="none", is_incoming=True)
    destination.multifd("none", 2)
    destination("object-add", **key, endpoint="server")
    destination("migrate-set-parameters", tls_creds="tls0")
    dialect = "7.2" if destination.release.version <= (8, 0) else "9.0"
    multifd.send(image, destination.listen("tcp:127.0.0.1:0"), dialect=dialect, tls=Tls(folder))
    assert destination.ram() == image


REFUSED = {
    "another CA": ("other", "good", "issuer|local issuer|self-signed"),
    "another name": ("elsewhere", "good", "not valid for '127.0.0.1'"),
    "no client certificate": ("good", "bare", "this side has none|may not accept|does not accept"),
    "a client of another CA": ("good", "foreign", "does not accept|unknown ca"),
}


@pytest.mark.parametrize("release", ["system", "newer"])
@pytest.mark.parametrize(("there", "here", "words"), REFUSED.values(), ids=REFUSED)
def test_a_destination_that_does_not_fit(qemu, image, credentials, release, there, here, words):
    """Each end's certificate is refused by the other: in words, and the memory stays here."""
    destination = qemu("destination", RAM_MIB, release, machine="none", is_incoming=True)
    destination.multifd("none", 2)
    secure(destination, getattr(credentials, there), "server")
    with pytest.raises(multifd.errors.ChannelError) as caught:
        multifd.send(image, destination.listen("tcp:127.0.0.1:0"), tls=Tls(getattr(credentials, here)), timeout=40)
    said = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", ())])
    assert any(word in said for word in words.split("|")), said
    assert "intact and the good copy" in said


@pytest.mark.parametrize("release", ["system", "newer"])
def test_tls_to_a_plain_destination(qemu, image, credentials, release):
    """7.2 takes the hello for main and waits, 10.0 ends itself: told, and in time."""
    destination = qemu("destination", RAM_MIB, release, machine="none", is_incoming=True)
    destination.multifd("none", 2)
    with pytest.raises(TlsError, match="does not use TLS"):
        multifd.send(
            image, destination.listen("tcp:127.0.0.1:0"), tls=Tls(credentials.good, handshake_timeout=2), timeout=40
        )


@pytest.mark.parametrize("release", ["system", "newer"])
def test_plain_to_a_destination_with_tls(qemu, image, credentials, release):
    destination = qemu("destination", RAM_MIB, release, machine="none", is_incoming=True)
    destination.multifd("none", 2)
    secure(destination, credentials.good, "server")
    with pytest.raises(multifd.errors.MultifdError) as caught:
        multifd.send(image, destination.listen("tcp:127.0.0.1:0"), timeout=40)
    assert not isinstance(caught.value, OutcomeUnknown)
    said = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", ())])
    assert "TLS" in said
    assert "intact and the good copy" in said


SOURCES = {
    "another CA here": ("other", "good", {}),
    "a name that is not ours": ("good", "good", {"tls_hostname": "nobody.example"}),
    "no certificate there": ("good", "bare", {}),
    "not authorised": ("good", "good", {}),
}


@pytest.mark.parametrize("release", ["system", "newer"])
@pytest.mark.parametrize(("here", "there", "parameters"), SOURCES.values(), ids=SOURCES)
def test_a_source_that_does_not_fit(qemu, image, credentials, tmp_path, release, here, there, parameters):
    """It fails in time and keeps its guest; nothing is written here."""
    out = tmp_path / "out.ram"
    canceller = multifd.Canceller()
    authz = ["CN=somebody else"] if not parameters and here == there == "good" else []
    source = qemu("source", RAM_MIB, release, machine="none", image=image)
    source.multifd("none", 2, return_path=True)
    secure(source, getattr(credentials, there), "client", **parameters)
    tls = Tls(getattr(credentials, here), authz=authz)
    thread = ReceiverThread(out, tls=tls, channels=2, canceller=canceller)
    try:
        source("migrate", uri=thread.uri)
        with pytest.raises(QmpError, match="failed"):
            source.wait_migrated()
    finally:
        canceller.cancel()
    with pytest.raises(multifd.errors.Cancelled):
        thread.join()
    assert not out.exists()
