"""``multifd-iaa status`` on trees of files as the idxd driver shows them: each cause, and that its commands mend it."""

from __future__ import annotations

import ctypes
import json
import os
from pathlib import Path

import pytest
from accel_config import AccelConfig
from click.testing import CliRunner
from multifd_qpl import library, remedy
from multifd_qpl.cli import main
from multifd_qpl.devices import Status, read_status
from multifd_qpl.sysfs import can_map
from multifd_qpl.watch import numa_advice

QUEUE = {
    "mode": "shared",
    "state": "enabled",
    "size": "128",
    "threshold": "128",
    "type": "user",
    "driver_name": "user",
    "name": "multifd",
    "block_on_fault": "1",
    "max_transfer_size": "2147483648",
    "group_id": "0",
}
DEVICE = {"state": "enabled", "numa_node": "0", "max_engines": "8", "pasid_enabled": "1"}


def write(folder: Path, attributes: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in attributes.items():
        (folder / name).write_text(value + "\n")


def plant(
    root: Path, name: str = "iax1", *, device: dict[str, str] | None = None, node: bool = True, **queue: str
) -> Path:
    """A device with engines in group 0 and one queue; its folder."""
    number = name[3:]
    write(root / f"sys/bus/pci/devices/0000:e7:{int(number):02x}.0", {"vendor": "0x8086", "device": "0x0cfe"})
    folder = root / "sys/bus/dsa/devices" / name
    write(folder, DEVICE | (device or {}))
    for i in range(8):
        write(folder / f"engine{number}.{i}", {"group_id": "0"})
    write(folder / f"wq{number}.0", QUEUE | queue)
    if node:
        (root / "dev/iax").mkdir(parents=True, exist_ok=True)
        (root / f"dev/iax/wq{number}.0").touch()
    return folder


def of_device(status: Status, name: str = "iax1") -> list[str]:
    return [reason for reason in status.missing if name in reason]


CASES = {
    "dedicated": ({"mode": "dedicated", "threshold": "0"}, {}, True),
    "kernel": ({"type": "kernel", "driver_name": "crypto"}, {}, False),
    "driver": ({"driver_name": "crypto"}, {}, False),
    "no group": ({"group_id": "-1"}, {}, True),
    "threshold 0": ({"threshold": "0"}, {}, True),
    "max_transfer_size": ({"max_transfer_size": "4096"}, {}, True),
    "wq1.0 is disabled": ({"state": "disabled"}, {}, False),
    "does not exist": ({}, {}, False),
    "iax1 is disabled": ({"state": "disabled"}, {"state": "disabled"}, False),
}


@pytest.mark.parametrize("word", CASES)
def test_each_cause_is_named_and_its_commands_mend_it(tmp_path: Path, word: str) -> None:
    queue, device, node = CASES[word]
    plant(tmp_path, device=device, node=node, **queue)
    found = of_device(read_status(tmp_path))
    assert len(found) == 1
    assert word in found[0]
    accel_config = AccelConfig(tmp_path)
    for command in read_status(tmp_path).commands:
        if "iax1" in command:
            accel_config.run(command)
    assert of_device(read_status(tmp_path)) == []


def test_several_queues_give_way_to_one(tmp_path: Path) -> None:
    """Whatever holds the entries is emptied first."""
    folder = plant(tmp_path, mode="dedicated", size="64")
    write(folder / "wq1.3", QUEUE | {"type": "kernel", "size": "64"})
    status = read_status(tmp_path)
    assert "dedicated" in of_device(status)[0]
    assert "kernel" in of_device(status)[0]
    for command in status.commands:
        if "iax1" in command:
            AccelConfig(tmp_path).run(command)
    assert of_device(read_status(tmp_path)) == []


@pytest.mark.parametrize("group", ["-1", "1"])
def test_engines_of_another_group(tmp_path: Path, group: str) -> None:
    """Of none, or of one that has no queue."""
    folder = plant(tmp_path)
    for i in range(8):
        write(folder / f"engine1.{i}", {"group_id": group})
    status = read_status(tmp_path)
    assert "wq1.0 is in group 0, which has no engine" in of_device(status)[0]
    for command in status.commands:
        if "iax1" in command:
            AccelConfig(tmp_path).run(command)
    assert of_device(read_status(tmp_path)) == []


def test_a_device_that_another_driver_has(tmp_path: Path) -> None:
    """As one that is passed to a virtual machine: idxd shows none, and to load it helps nothing."""
    pci = tmp_path / "sys/bus/pci/devices/0000:e7:02.0"
    write(pci, {"vendor": "0x8086", "device": "0x0cfe"})
    (pci / "driver").symlink_to("../../../bus/pci/drivers/vfio-pci")
    status = read_status(tmp_path)
    assert any("0000:e7:02.0 is bound to vfio-pci" in reason for reason in status.missing)
    assert "echo 0000:e7:02.0 > /sys/bus/pci/drivers/vfio-pci/unbind" in status.commands


def test_a_node_that_leads_nowhere(tmp_path: Path) -> None:
    """As in a container whose /dev was copied: that is no matter of permission."""
    plant(tmp_path, node=False)
    (tmp_path / "dev/iax").mkdir(parents=True)
    (tmp_path / "dev/iax/wq1.0").symlink_to("/nonexistent")
    assert "does not exist" in of_device(read_status(tmp_path))[0]


def test_without_pasid_no_command_helps(tmp_path: Path) -> None:
    plant(tmp_path, device={"pasid_enabled": "0"})
    status = read_status(tmp_path)
    assert "pasid_enabled 0" in of_device(status)[0]
    assert "intel_iommu=on,sm_on" in of_device(status)[0]
    assert not any("iax1" in command for command in status.commands)


def test_permission_is_mended_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a group and a udev rule, which outlive a reboot, and at once by chgrp."""
    plant(tmp_path)
    monkeypatch.setattr(os, "access", lambda *_: False)
    status = read_status(tmp_path)
    assert "permission on" in of_device(status)[0]
    text = "\n".join(status.commands)
    assert remedy.UDEV_RULE in text
    assert f"chgrp {remedy.GROUP} {tmp_path}/dev/iax/wq1.0" in text
    assert "accel-config enable" not in text


def test_kernels_that_know_no_driver_name(tmp_path: Path) -> None:
    plant(tmp_path, driver_name="")
    assert of_device(read_status(tmp_path)) == []


def test_a_good_device_beside_a_bad_one(tmp_path: Path) -> None:
    """The bad one is named all the same; the good one gets no command."""
    plant(tmp_path, "iax1", mode="dedicated")
    plant(tmp_path, "iax3")
    status = read_status(tmp_path)
    assert of_device(status)
    assert not of_device(status, "iax3")
    assert not any("iax3" in command for command in status.commands)


def test_machines_without(tmp_path: Path) -> None:
    assert any("no IAA device" in reason for reason in read_status(tmp_path).missing)
    write(tmp_path / "sys/bus/pci/devices/0000:6a:02.0", {"vendor": "0x8086", "device": "0x0cfe"})
    status = read_status(tmp_path)
    assert any("idxd" in reason for reason in status.missing)
    write(tmp_path / "sys/bus/dsa/devices/iax1", DEVICE)
    assert "no work queue" in of_device(read_status(tmp_path))[0]


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"", b"many", b"9" * 10000])
def test_every_read_is_guarded(tmp_path: Path, content: bytes) -> None:
    """Attributes that hold anything, or that cannot be read at all."""
    folder = plant(tmp_path)
    (tmp_path / "sys/bus/dsa/devices/iaxes").mkdir()
    (tmp_path / "sys/devices/system/node").mkdir(parents=True)
    (tmp_path / "sys/devices/system/node/node0").touch()
    files = [path for path in (*folder.rglob("*"), *(tmp_path / "sys/bus/pci").rglob("*")) if path.is_file()]
    for path in files:
        kept = path.read_bytes()
        path.write_bytes(content)
        read_status(tmp_path).as_dict()
        path.unlink()
        read_status(tmp_path).as_dict()
        path.mkdir()
        read_status(tmp_path).as_dict()
        path.rmdir()
        path.write_bytes(kept)
    assert of_device(read_status(tmp_path)) == []


def test_notes_name_numa_and_numactl(tmp_path: Path) -> None:
    plant(tmp_path, block_on_fault="0", device={"numa_node": "0"})
    for node, processors in ((0, "0-7"), (1, "8-15"), (2, "")):
        write(tmp_path / f"sys/devices/system/node/node{node}", {"cpulist": processors})
    notes = read_status(tmp_path).notes
    assert any("block_on_fault 0" in note for note in notes)
    assert any("node 1:" in note and "numactl --cpunodebind=0" in note for note in notes)


def test_advice_about_numa_names_the_nodes_that_have_a_device(tmp_path: Path) -> None:
    assert numa_advice(tmp_path) == ""
    plant(tmp_path, "iax1", device={"numa_node": "1"})
    plant(tmp_path, "iax3", device={"numa_node": "0"}, mode="dedicated")
    assert "NUMA node 1:" in numa_advice(tmp_path)
    assert "numactl --cpunodebind=1 --membind=1" in numa_advice(tmp_path)
    plant(tmp_path, "iax1", device={"numa_node": "-1"})
    assert "unknown NUMA node" in numa_advice(tmp_path)


def test_who_may_not_map_a_queue_is_told_of_rawio(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, standin_library: ctypes.CDLL
) -> None:
    """The fix of CVE-2024-21823: the queue is fine, the process may open it, and libqpl answers 503."""
    plant(tmp_path)
    standin_library.standin_set_hardware(503)
    assert can_map(str(tmp_path / "dev/iax/wq1.0")) is None  # a plain file, no portal
    assert can_map(str(tmp_path / "absent")) is None
    assert not any("RAWIO" in reason for reason in read_status(tmp_path).missing)
    monkeypatch.setattr("multifd_qpl.devices.can_map", lambda _node: False)
    found = [reason for reason in read_status(tmp_path).missing if "CAP_SYS_RAWIO" in reason]
    assert len(found) == 1
    assert "libqpl 1.6" in found[0]


def test_a_refused_map_is_told_from_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a character device that anybody may open."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "not permitted")

    monkeypatch.setattr("mmap.mmap", refuse)
    assert can_map("/dev/null") is False


def status_by_command(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["status", *arguments], catch_exceptions=False)
    return result.exit_code, result.output


def test_shows_the_library_that_is_loaded(libqpl: str, tmp_path: Path) -> None:
    status = read_status(tmp_path)
    assert status.library is not None
    assert os.path.isabs(status.library)
    if os.path.isabs(libqpl):
        assert os.path.samefile(status.library, libqpl)
    _, text = status_by_command()
    assert f"loaded from {status.library}" in text


def test_shows_why_a_library_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found and refused is told from not found."""
    for name, text in (("text.so", "not ELF"), ("absent.so", None)):
        if text:
            (tmp_path / name).write_text(text)
        monkeypatch.setenv(library.ENVIRONMENT, str(tmp_path / name))
        code, shown = status_by_command()
        assert code == 3
        assert "none can be used" in shown
        assert name in shown


def test_node_check(standin_library: ctypes.CDLL) -> None:
    """Exit status 0 only if a page went through a device and came back."""
    code, text = status_by_command("--json")
    document = json.loads(text)
    assert code == 3
    assert document["hardware_ready"] is False
    assert document["hardware_test"]["status"] == "none"
    standin_library.standin_set_hardware(0)
    code, text = status_by_command("--json")
    document = json.loads(text)
    assert code == 0
    assert document["hardware_test"]["status"] == "passed"
    assert document["hardware_test"]["has_crc"] is True
    assert document["hardware_test"]["compress_us"] > 0
    code, text = status_by_command()
    assert code == 0
    assert "a page went through it" in text
    standin_library.standin_set_damage(1)
    code, text = status_by_command("--json")
    assert code == 3
    assert json.loads(text)["hardware_test"]["status"] == "failed"
