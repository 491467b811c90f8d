"""What the kernel shows of IAA devices and their work queues, and what keeps libqpl from using them.

Sources: Documentation/ABI/stable/sysfs-driver-dma-idxd of Linux 6.x (attributes below
``/sys/bus/dsa/devices``); PCI 8086:0cfe, Intel's In-Memory Analytics Accelerator.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from multifd_qpl.library import Library, LibraryUnavailable, describe_status, load, open_shared_object

_PCI_ID = ("0x8086", "0x0cfe")
_ENTRIES = 128  # work queue entries of a device, all queues together


@dataclass(frozen=True)
class Queue:
    """A work queue as the kernel shows it."""

    name: str
    mode: str
    """shared or dedicated; libqpl uses shared ones only."""
    state: str
    entries: int
    threshold: int
    block_on_fault: bool
    max_transfer_size: int
    node: str
    """The character device."""
    is_permitted: bool
    """This process may open it for reading and writing."""

    @property
    def problem(self) -> str:
        """Why libqpl would not use it; empty if it would."""
        if self.state != "enabled":
            return f"is {self.state}"
        if self.mode != "shared":
            return f"is {self.mode}; libqpl uses shared queues only"
        if not self.is_permitted:
            return f"may not be opened by this user: permission on {self.node}"
        return ""


@dataclass(frozen=True)
class Device:
    """An IAA device that the idxd driver shows."""

    name: str
    state: str
    numa_node: int
    engines: int
    queues: list[Queue]

    def commands(self) -> list[str]:
        """The accel-config commands, for root, that give it one shared queue with all engines."""
        number = self.name.removeprefix("iax")
        queue = f"{self.name}/wq{number}.0"
        return [
            *(f"accel-config config-engine {self.name}/engine{number}.{i} --group-id=0" for i in range(self.engines)),
            f"accel-config config-wq {queue} --group-id=0 --mode=shared --wq-size={_ENTRIES} --threshold={_ENTRIES} "
            "--priority=10 --block-on-fault=1 --type=user --name=multifd --driver-name=user "
            "--max-transfer-size=2147483648",
            f"accel-config enable-device {self.name}",
            f"accel-config enable-wq {queue}",
        ]


@dataclass(frozen=True)
class Status:
    """Everything that decides whether ``qpl`` runs on an IAA device."""

    library: str | None
    """The shared object that was found."""
    library_version: str | None
    accel_config: bool
    """Whether libaccel-config.so.1, which libqpl needs for devices, can be opened."""
    pci_devices: int
    devices: list[Device]
    hardware_ready: bool
    """libqpl made a hardware job."""
    missing: list[str]
    """What stands in the way, in words."""
    commands: list[str]
    """What root can run to enable the devices that are there."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values; each queue with its problem."""
        document = asdict(self)
        for shown, device in zip(document["devices"], self.devices, strict=True):
            for entry, queue in zip(shown["queues"], device.queues, strict=True):
                entry["problem"] = queue.problem
        return document


def read_status(root: Path = Path("/")) -> Status:
    """Look at the machine. Never raises for what is absent.

    Args:
        root: where ``sys`` and ``dev`` are.
    """
    missing: list[str] = []
    name = version = None
    library: Library | None = None
    try:
        _, name, version = open_shared_object()
        library = load()
    except LibraryUnavailable as e:
        missing.append(str(e))
    accel_config = _can_open("libaccel-config.so.1")
    if not accel_config:
        missing.append("libaccel-config.so.1 cannot be opened; libqpl needs it to find devices")
    pci_devices = _count_pci(root)
    devices = _read_devices(root)
    commands = _look_at_devices(pci_devices, devices, missing)
    hardware_ready = False
    if library is not None:
        from multifd_qpl.jobs import probe

        status = probe(library)
        hardware_ready = status == 0
        if status:
            missing.append(f"libqpl makes no hardware job: {describe_status(status)}")
    return Status(name, version, accel_config, pci_devices, devices, hardware_ready, missing, commands)


def _look_at_devices(pci_devices: int, devices: list[Device], missing: list[str]) -> list[str]:
    if not devices:
        missing.append(
            f"the machine has {pci_devices} IAA devices, but the idxd driver shows none: it needs "
            "CONFIG_INTEL_IDXD and intel_iommu=on,sm_on on the kernel's command line"
            if pci_devices
            else "this machine has no IAA device (PCI 8086:0cfe)"
        )
    if any(not queue.problem for device in devices for queue in device.queues):
        return []
    commands = []
    for device in devices:
        problems = [f"{queue.name} {queue.problem}" for queue in device.queues]
        missing.append(f"{device.name} is {device.state}: {'; '.join(problems) or 'it has no work queue'}")
        if device.state != "enabled":
            commands += device.commands()
    return commands


def _can_open(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _number(path: Path) -> int:
    text = _text(path)
    try:
        return int(text, 0)
    except ValueError:
        return 0


def _count_pci(root: Path) -> int:
    found = (root / "sys/bus/pci/devices").glob("*")
    return sum((_text(path / "vendor"), _text(path / "device")) == _PCI_ID for path in found)


def _read_devices(root: Path) -> list[Device]:
    base = root / "sys/bus/dsa/devices"
    devices = []
    for path in sorted(base.glob("iax*")):
        number = path.name.removeprefix("iax")
        names = sorted({p.name for p in (*path.glob(f"wq{number}.*"), *base.glob(f"wq{number}.*"))})
        queues = [_read_queue(root, path / name if (path / name).is_dir() else base / name) for name in names]
        devices.append(
            Device(
                path.name,
                _text(path / "state") or "unknown",
                _number(path / "numa_node"),
                _number(path / "max_engines") or 8,
                [queue for queue in queues if queue.entries or queue.state == "enabled"],
            )
        )
    return devices


def _read_queue(root: Path, path: Path) -> Queue:
    node = root / "dev/iax" / path.name
    return Queue(
        path.name,
        _text(path / "mode") or "unknown",
        _text(path / "state") or "unknown",
        _number(path / "size"),
        _number(path / "threshold"),
        _text(path / "block_on_fault") == "1",
        _number(path / "max_transfer_size"),
        str(node),
        os.access(node, os.R_OK | os.W_OK),
    )
