"""What the kernel shows of IAA devices and their work queues, read and not judged.

Sources: Documentation/ABI/stable/sysfs-driver-dma-idxd of Linux 6.x (attributes below
``/sys/bus/dsa/devices``); PCI 8086:0cfe, Intel's In-Memory Analytics Accelerator.

Rule of this file: whatever cannot be read, or is not what the kernel's documentation says, is shown as
unknown (empty text, or None); nothing here raises.
"""

from __future__ import annotations

import mmap
import os
import stat
from dataclasses import dataclass
from pathlib import Path

_PCI_ID = ("0x8086", "0x0cfe")
_MOST_TEXT = 4096  # an attribute is at most a page


@dataclass(frozen=True)
class Queue:
    """A work queue as the kernel shows it."""

    name: str
    mode: str
    """shared or dedicated; libqpl uses shared ones only."""
    state: str
    entries: int
    threshold: int
    """Descriptors that a shared queue accepts from programs."""
    type: str
    """user, kernel or none."""
    driver: str
    """Who it is bound to: user, or the kernel's own, such as crypto; empty on kernels before 6.3."""
    group: int | None
    """-1: none."""
    engines: int | None
    """Of its group, which alone serve it; None if the kernel does not show engines."""
    block_on_fault: bool
    max_transfer_size: int
    """Bytes; 0 if unknown."""
    node: str
    """The character device."""
    has_node: bool
    is_permitted: bool
    """This process may open it for reading and writing."""


@dataclass(frozen=True)
class Device:
    """An IAA device that the idxd driver shows."""

    name: str
    state: str
    numa_node: int | None
    engines: int
    pasid_enabled: bool | None
    """Shared virtual memory, without which no program can use a queue; None if unknown."""
    queues: list[Queue]


@dataclass(frozen=True)
class PciDevice:
    """An IAA device on the PCI bus."""

    address: str
    """Such as 0000:e7:02.0."""
    driver: str
    """Whose it is: idxd, or vfio-pci of one that is passed to a virtual machine; empty if nobody's."""


def read_pci(root: Path) -> list[PciDevice]:
    """IAA devices on the PCI bus."""
    base = root / "sys/bus/pci/devices"
    found = [name for name in _names(base) if (_text(base / name / "vendor"), _text(base / name / "device")) == _PCI_ID]
    return [PciDevice(name, _link(base / name / "driver")) for name in found]


def read_devices(root: Path) -> list[Device]:
    """The IAA devices of the idxd driver, each with the queues that are configured.

    Args:
        root: where ``sys`` and ``dev`` are.
    """
    base = root / "sys/bus/dsa/devices"
    return [_read_device(root, base / name) for name in _names(base) if name.startswith("iax") and name[3:].isdigit()]


def can_map(node: str) -> bool | None:
    """Whether this process may map a queue's portal; None if that cannot be told.

    Kernels with the fix of CVE-2024-21823 (6.9.1 and what took it over) refuse it without CAP_SYS_RAWIO. The queue
    is opened and closed again; nothing is submitted.
    """
    try:
        descriptor = os.open(node, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if not stat.S_ISCHR(os.fstat(descriptor).st_mode):
            return None
        mmap.mmap(descriptor, 4096, mmap.MAP_SHARED, mmap.PROT_WRITE).close()
    except PermissionError:
        return False
    except (OSError, ValueError):
        return None
    finally:
        os.close(descriptor)
    return True


def _read_device(root: Path, path: Path) -> Device:
    number = path.name.removeprefix("iax")
    inside, beside = _names(path), _names(path.parent)
    engines = [name for name in inside if name.startswith(f"engine{number}.")]
    groups = [_number(path / name / "group_id") for name in engines]
    queues = [
        _read_queue(root, (path if name in inside else path.parent) / name, groups)
        for name in sorted({name for name in (*inside, *beside) if name.startswith(f"wq{number}.")})
    ]
    pasid = _text(path / "pasid_enabled")
    return Device(
        path.name,
        _text(path / "state") or "unknown",
        _number(path / "numa_node"),
        _number(path / "max_engines") or len(engines) or 8,
        pasid == "1" if pasid else None,
        [queue for queue in queues if queue.entries or queue.state == "enabled"],
    )


def _read_queue(root: Path, path: Path, engine_groups: list[int | None]) -> Queue:
    node, group = root / "dev/iax" / path.name, _number(path / "group_id")
    return Queue(
        path.name,
        _text(path / "mode") or "unknown",
        _text(path / "state") or "unknown",
        _number(path / "size") or 0,
        _number(path / "threshold") or 0,
        _text(path / "type") or "unknown",
        _text(path / "driver_name"),
        group,
        None if group is None or not engine_groups else engine_groups.count(group),
        _text(path / "block_on_fault") == "1",
        _number(path / "max_transfer_size") or 0,
        str(node),
        os.path.exists(node),
        os.access(node, os.R_OK | os.W_OK),
    )


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _text(path: Path) -> str:
    """An attribute; empty if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(_MOST_TEXT).decode("ascii", "replace").strip()
    except OSError:
        return ""


def _link(path: Path) -> str:
    """The name of what a link leads to; empty if there is none."""
    try:
        return os.path.basename(os.readlink(path))
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    try:
        return int(_text(path), 0)
    except ValueError:
        return None
