"""`multifd capture` and `multifd restore` with real QEMUs: one command each, and afterwards all is as before.

The guest boots from a qcow2 disk, so that savevm, which a multifd left on would make fatal, can be tried afterwards.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from typing import Any

import pytest
from interop.guest import Guest, check, passes_printed
from interop.mapped import read_blocks
from interop.qemu import Qemu
from interop.scenario import MIB, goes_on

RELEASES = ["system", "newer"]
MACHINE = "pc-i440fx-7.2"
GUEST = Guest()
QUICK = Guest(batch=1024)
"""Dirties memory faster than `SLOWLY` moves it: a capture that does not end by itself."""
SLOWLY = ("--max-bandwidth", "1M")
UUID = "8ab8d9a2-6e4f-4ad4-8f6a-0a3b1c5d7e90"


@pytest.fixture
def vm(qemu, tmp_path):
    """Start a QEMU with a qcow2 disk and a second QMP socket; a source runs its guest."""
    if shutil.which("qemu-img") is None:
        missing = pytest.fail if os.environ.get("MULTIFD_REQUIRE_QEMU") else pytest.skip
        missing("qemu-img is missing (apt-get install qemu-utils)")

    def start(name: str, release: str, *options: str, guest: Guest = GUEST, **more: Any) -> Qemu:
        raw, disk = tmp_path / f"{name}.raw", tmp_path / f"{name}.qcow2"
        raw.write_bytes(guest.disk())
        convert = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(disk)]
        subprocess.run(convert, check=True, timeout=60)
        arguments = (
            "-drive", f"if=none,id=boot,format=qcow2,file={disk}", "-device", "ide-hd,drive=boot",
            "-debugcon", f"file:{tmp_path}/{name}.console", "-qmp", f"unix:{tmp_path}/{name}.second,server=on,wait=off",
            *options,
        )  # fmt: skip
        more = {"is_paused": False, **more}
        process: Qemu = qemu(name, MIB, release, machine=MACHINE, arguments=arguments, **more)
        if not more["is_paused"] and not more.get("is_incoming"):
            console = tmp_path / f"{name}.console"
            process.wait(lambda: console.exists() and passes_printed(process.console()) > 1, "second pass")
        return process

    return start


def settings(machine: Qemu) -> tuple[Any, Any]:
    return machine("query-migrate-capabilities"), machine("query-migrate-parameters")


def shuffle(machine: Qemu) -> None:
    """Settings that are nobody's default, some of which exclude multifd."""
    machine.set(
        {"xbzrle": True, "return-path": True, "events": True}, multifd_channels=5, multifd_compression="zlib",
        max_bandwidth=64 << 20,
    )  # fmt: skip


def hmp(machine: Qemu, line: str) -> str:
    return machine("human-monitor-command", command_line=line)


def is_as_before(machine: Qemu, before: tuple[Any, Any], guest: Guest = GUEST) -> None:
    """The same settings, a guest that runs, and a savevm that works."""
    assert settings(machine) == before
    assert machine("query-status")["status"] == "running"
    printed = passes_printed(machine.console())
    machine.wait(lambda: passes_printed(machine.console()) > printed + 1, "pass of the guest")
    assert hmp(machine, "savevm afterwards") == ""
    assert machine("query-status")["status"] == "running"
    machine("stop")
    check(machine.ram(), guest)


@pytest.mark.parametrize(
    ("source_release", "destination_release", "method"),
    [("system", "newer", "none"), ("newer", "system", "zstd:level=3"), ("system", "system", "zlib")],
)
def test_captured_continued_saved_and_restored(vm, cli, tmp_path, source_release, destination_release, method):
    out = tmp_path / "vm.ram"
    source = vm("source", source_release, "-uuid", UUID)
    shuffle(source)
    before = settings(source)
    result = cli(
        "capture", out, "--qmp", tmp_path / "source.second", "--method", method, "--channels", 3, "--snapshot-disks",
        "nightly", "--json",
    ).json()  # fmt: skip
    assert (result["status"], result["run_state"], result["snapshot"]) == ("completed", "running", "nightly")
    assert result["stood_still_ms"] >= result["downtime_ms"] > 0
    assert result["dirty_sync_count"] == source("query-migrate")["ram"]["dirty-sync-count"]
    is_as_before(source, before)
    assert {"nightly", "afterwards"} <= set(hmp(source, "info snapshots").split())
    captured = read_blocks(out)["pc.ram"]
    check(captured, GUEST)
    assert result["sidecar"] == f"{out}.sha256"
    assert "and matches vm.ram.sha256" in cli("verify", out, "--digest", "require").wait()[0]
    source.stop()

    destination = vm("destination", destination_release, is_incoming=True, is_paused=True)
    shuffle(destination)
    before = settings(destination)
    options = ("--qmp", tmp_path / "destination.second", "--method", method.split(":")[0], "--channels", 2)
    restored = cli("restore", out, *options, "--then", "stop", "--json").json()
    assert restored["run_state"] in ("paused", "prelaunch")
    assert destination.ram() == captured
    assert settings(destination) == before
    goes_on(destination, GUEST)
    assert hmp(destination, "savevm afterwards") == ""


@pytest.mark.parametrize("release", RELEASES)
def test_a_guest_that_stood_still_does_not_run(vm, cli, tmp_path, release):
    source = vm("source", release)
    source("stop")
    before, ram = settings(source), source.ram()
    result = cli("capture", tmp_path / "vm.ram", "--qmp", tmp_path / "source.second", "--json").json()
    assert result["run_state"] == "postmigrate"
    assert source.ram() == ram == read_blocks(tmp_path / "vm.ram")["pc.ram"]
    assert settings(source) == before
    source("cont")
    is_as_before(source, before)


def slow_capture(vm, cli, tmp_path, release):
    """A source, its settings, and a capture of it that is at work."""
    source = vm("source", release, guest=QUICK)
    shuffle(source)
    before = settings(source)
    process = cli("capture", tmp_path / "vm.ram", "--qmp", tmp_path / "source.second", *SLOWLY, "--json")

    def is_at_work():
        assert process.process.poll() is None, process.process.communicate()
        return source("query-migrate").get("status") == "active"

    source.wait(is_at_work, "migration")
    return source, before, process


def left(tmp_path):
    return [p.name for p in tmp_path.iterdir() if "vm.ram" in p.name]


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_the_guest_as_it_was(vm, cli, tmp_path, release, number, status):
    source, before, process = slow_capture(vm, cli, tmp_path, release)
    process.signal(number)
    assert process.json(status)["status"] == "cancelled"
    assert not left(tmp_path)
    is_as_before(source, before, QUICK)


@pytest.mark.parametrize("release", RELEASES)
def test_a_killed_capture_is_recovered(vm, cli, tmp_path, release):
    source, before, process = slow_capture(vm, cli, tmp_path, release)
    process.signal(signal.SIGKILL)
    process.process.communicate(timeout=60)
    assert ".vm.ram.multifd-capture" in left(tmp_path)
    again = cli("capture", tmp_path / "vm.ram", "--qmp", tmp_path / "source.second")
    again.process.communicate(timeout=60)
    assert again.process.returncode in (6, 9)  # an unfinished capture, or QEMU still busy with it
    assert cli("capture", tmp_path / "vm.ram", "--recover", "--json").json()["run_state"] == "running"
    assert not left(tmp_path)
    is_as_before(source, before, QUICK)


@pytest.mark.parametrize("release", RELEASES)
def test_qemu_that_dies_is_said_and_remembered(vm, cli, tmp_path, release):
    source, _, process = slow_capture(vm, cli, tmp_path, release)
    source.process.kill()
    process.wait(9)
    assert left(tmp_path) == [".vm.ram.multifd-capture"]


def test_a_method_that_this_qemu_does_not_have(vm, cli, tmp_path):
    source = vm("source", "system")
    before = settings(source)
    _, err = cli("capture", tmp_path / "vm.ram", "--qmp", tmp_path / "source.second", "--method", "lz4").wait(9)
    assert "does not take method lz4" in err
    assert not left(tmp_path)
    is_as_before(source, before)


def test_a_qemu_that_does_not_wait_is_not_restored_into(vm, cli, tmp_path):
    source, out = vm("source", "system"), tmp_path / "vm.ram"
    cli("capture", out, "--qmp", tmp_path / "source.second").wait()
    before = settings(source)
    _, err = cli("restore", out, "--qmp", tmp_path / "source.second").wait(9)
    assert "-incoming defer" in err
    is_as_before(source, before)


def virsh(*words: str) -> str:
    command = ["virsh", "--connect", "qemu:///system", "--quiet", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


@pytest.fixture
def domain(tmp_path):
    """A domain of libvirt's own making that runs."""
    try:
        virsh("uri")
    except (OSError, subprocess.SubprocessError) as e:
        pytest.skip(f"no libvirtd answers virsh (apt-get install libvirt-daemon-system libvirt-clients): {e}")
    name, xml = f"multifd-test-{os.getpid()}", tmp_path / "domain.xml"
    xml.write_text(
        f"<domain type='qemu'><name>{name}</name><memory unit='MiB'>{MIB}</memory>"
        "<os><type arch='x86_64'>hvm</type></os><devices><memballoon model='none'/></devices></domain>"
    )
    try:
        virsh("create", str(xml))
    except subprocess.SubprocessError as e:
        pytest.skip(f"this libvirtd starts no domain: {e}")
    yield name
    virsh("destroy", name)


def test_a_domain_of_libvirt(domain, cli, tmp_path):
    """Settings as before, the domain runs, and libvirt knows."""

    def settings() -> list[Any]:
        queries = ("query-migrate-capabilities", "query-migrate-parameters")
        return [json.loads(virsh("qemu-monitor-command", domain, f'{{"execute": "{q}"}}'))["return"] for q in queries]

    before = settings()
    options = ("--libvirt", domain, "--connect", "qemu:///system", "--method", "zstd", "--json")
    assert cli("capture", tmp_path / "vm.ram", *options).json()["run_state"] == "running"
    assert settings() == before
    assert virsh("domstate", domain) == "running"
    assert read_blocks(tmp_path / "vm.ram")["pc.ram"]
