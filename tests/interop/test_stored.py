"""Stored machines of other formats than a capture, against real QEMUs and, where there is one, a real libvirtd."""

from __future__ import annotations

import shutil
import subprocess
import uuid
from pathlib import Path

import pytest
from conftest import DEADLINE_S
from interop.guest import Guest
from interop.scenario import MIB, goes_on

from multifd.ram import libvirt

XML = "<domain type='qemu'><name>tiny</name></domain>"


def running(start, release, machine, guest):
    """A guest at work.

    It is stopped where QEMU under TCG, before 9.0, can forget that a page was written while its dirty bits were taken.
    """
    source = start("source", release, machine, guest)
    if source.release.version < (9, 0):
        source("stop")
    return source


@pytest.mark.parametrize(
    ("source_release", "destination_release", "machine"),
    [("system", "system", "pc"), ("newer", "newer", "q35"), ("system", "newer", "pc-i440fx-7.2")],
)
def test_a_plain_stream_is_sent(start, qemu, cli, tmp_path, source_release, destination_release, machine):
    """What `migrate exec:cat` wrote of a running guest, pages again and again, goes to a QEMU with multifd."""
    guest = Guest()
    source = running(start, source_release, machine, guest)
    source.set({})
    source("migrate", uri=f"exec:cat > {tmp_path}/stream")
    source.wait_migrated()
    cli("verify", tmp_path / "stream").wait()
    destination = qemu("destination", MIB, destination_release, machine=machine, disk=guest.disk(), is_incoming=True)
    destination.multifd("zstd", 2)
    uri = destination.listen("tcp:127.0.0.1:0")
    cli("send", tmp_path / "stream", uri, "--method", "zstd").wait()
    destination.wait_migrated()
    assert destination.ram() == source.ram()
    goes_on(destination, guest)


@pytest.mark.parametrize(("release", "machine"), [("system", "pc"), ("newer", "q35"), ("newer", "pc-i440fx-8.0")])
def test_a_plain_stream_is_written(start, qemu, cli, tmp_path, release, machine):
    """A QEMU without multifd takes what `receive` wrote of a running guest."""
    guest = Guest()
    source = running(start, release, machine, guest)
    source.multifd("none", 2)
    receive = cli("receive", "tcp:127.0.0.1:0", tmp_path / "stream", "--format", "stream")
    source("migrate", uri=receive.listening())
    source.wait_migrated()
    receive.wait()
    destination = qemu("destination", MIB, release, machine=machine, disk=guest.disk(), is_incoming=True)
    destination("migrate-incoming", uri=f"exec:cat {tmp_path}/stream")
    destination.wait_migrated()
    assert destination.ram() == source.ram()
    goes_on(destination, guest)


def test_a_sparse_save_image_is_written(start, qemu, cli, tmp_path):
    """QEMU loads it as libvirt tells it to: mapped-ram at an offset, and all places in it are the file's."""
    guest, path = Guest(), tmp_path / "saved"
    (tmp_path / "xml").write_text(XML)
    source = running(start, "newer", "q35", guest)
    source.multifd("zstd", 2)
    receive = cli(
        "receive", "tcp:127.0.0.1:0", path, "--format", "libvirt-sparse", "--xml", tmp_path / "xml"
    )  # fmt: skip
    source("migrate", uri=receive.listening())
    source.wait_migrated()
    receive.wait()
    destination = qemu("destination", MIB, "newer", machine="q35", disk=guest.disk(), is_incoming=True)
    destination.set({"mapped-ram": True})
    offset = len(libvirt.encode_header(XML.encode(), libvirt.SPARSE))
    destination("migrate-incoming", uri=f"file:{path},offset={offset}")
    destination.wait_migrated()
    assert destination.ram() == source.ram()
    goes_on(destination, guest)


def test_a_sparse_save_image_is_sent(start, qemu, cli, tmp_path):
    """As libvirt makes it: its header, and QEMU writes mapped-ram behind it."""
    guest, path = Guest(), tmp_path / "saved"
    header = libvirt.encode_header(XML.encode(), libvirt.SPARSE)
    path.write_bytes(header)
    source = running(start, "newer", "q35", guest)
    source.set({"mapped-ram": True})
    source("migrate", uri=f"file:{path},offset={len(header)}")
    source.wait_migrated()
    assert "libvirt save image (mapped-ram)" in cli("info", path).wait()[0]
    destination = qemu("destination", MIB, "newer", machine="q35", disk=guest.disk(), is_incoming=True)
    destination.multifd("zlib", 2)
    cli("send", path, destination.listen("tcp:127.0.0.1:0"), "--method", "zlib").wait()
    destination.wait_migrated()
    assert destination.ram() == source.ram()
    goes_on(destination, guest)


def virsh(*arguments: str, status: int | None = 0) -> str:
    done = subprocess.run(
        ["virsh", "-c", "qemu:///system", *arguments], capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert status is None or done.returncode == status, done.stderr
    return done.stdout.strip()


@pytest.fixture
def domain(tmp_path: Path):
    """The name of a running domain of a libvirtd, and its destruction."""
    if shutil.which("virsh") is None or not virsh("uri", status=None):
        pytest.skip("no libvirtd answers at qemu:///system (apt-get install libvirt-daemon-system)")
    name = f"multifd-test-{uuid.uuid4()}"
    (tmp_path / "domain.xml").write_text(
        f"<domain type='qemu'><name>{name}</name><memory unit='MiB'>{MIB}</memory>"
        "<os><type arch='x86_64' machine='pc'>hvm</type></os>"
        "<devices><video><model type='none'/></video><memballoon model='none'/></devices></domain>"
    )
    if name not in virsh("create", str(tmp_path / "domain.xml"), status=None):
        pytest.skip("the libvirtd at qemu:///system creates no domain of type qemu")
    yield name
    virsh("destroy", name, status=None)


def test_saved_and_restored_by_libvirt(domain, cli, tmp_path):
    """`virsh save` is read; what `receive` makes of it is what `virsh restore` takes."""
    saved, again, xml = tmp_path / "saved", tmp_path / "again", tmp_path / "migratable.xml"
    virsh("save", domain, str(saved))
    xml.write_text(virsh("save-image-dumpxml", str(saved), "--security-info"))
    assert cli("verify", saved, "--json").json()["domain"] == domain
    receive = cli("receive", "tcp:127.0.0.1:0", again, "--format", "libvirt-raw", "--xml", xml)
    cli("send", saved, receive.listening(), "--method", "zstd").wait()
    receive.wait()
    virsh("restore", str(again))
    assert virsh("domstate", domain) == "running"
