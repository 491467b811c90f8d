"""Whether ``qpl`` runs on an IAA device here, and if not, each reason with what mends it."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from multifd_qpl.elf import NotLoadable, is_cut_short, open_shared
from multifd_qpl.library import ACCEL_CONFIG, ENVIRONMENT, Library, LibraryUnavailable, load
from multifd_qpl.remedy import Cause, device_cause, foreign_driver_cause, is_usable, queue_problem
from multifd_qpl.sysfs import Device, PciDevice, Queue, can_map, read_devices, read_pci

__all__ = ["Device", "Queue", "Status", "read_status"]


@dataclass(frozen=True)
class Status:
    """Everything that decides whether ``qpl`` runs on an IAA device."""

    library: str | None
    """The file of the libqpl that is loaded, as the kernel maps it; None if none can be used."""
    library_version: str | None
    library_problem: str
    """Why none can be used: not found, or found and refused."""
    library_named: str | None
    """What MULTIFD_QPL_LIBRARY asks for, if anything."""
    accel_config: bool
    """Whether libaccel-config.so.1, which libqpl needs for devices, can be opened."""
    kernel: str
    pci_devices: int
    devices: list[Device]
    hardware_ready: bool
    """A page went through a device both ways, and came back with its CRC."""
    hardware_test: dict[str, Any]
    """Of that page: status (passed, failed, silent, none), reason, times in microseconds."""
    missing: list[str]
    """What stands in the way, in words."""
    commands: list[str]
    """What root can run, in this order, to mend it."""
    notes: list[str]
    """What does not stand in the way but will be wondered about."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values; each queue with its problem."""
        document = asdict(self)
        for shown, device in zip(document["devices"], self.devices, strict=True):
            for entry, queue in zip(shown["queues"], device.queues, strict=True):
                entry["problem"] = queue_problem(queue)
        return document


def read_status(root: Path = Path("/")) -> Status:
    """Look at the machine, and send a page through a device if there is one. Never raises for what is absent.

    Args:
        root: where ``sys`` and ``dev`` are.
    """
    pci, devices = read_pci(root), read_devices(root)
    library, problem = _load()
    causes = [Cause(problem)] if problem else []
    accel_config_problem = _accel_config_problem()
    if accel_config_problem:
        causes.append(
            Cause(
                f"{accel_config_problem}; libqpl needs it to find devices",
                ["apt-get install libaccel-config1 accel-config   # Debian, Ubuntu"] if pci else [],
            )
        )
    causes += _device_causes(pci, devices)
    tested: dict[str, Any] = {"status": "none", "reason": "no libqpl", "compress_us": None, "decompress_us": None}
    if library is not None:
        from multifd_qpl.selftest import check_hardware

        test = check_hardware(library)
        tested = test.as_dict()
        if not test.ok:
            causes.append(_untested(test.reason, devices))
    return Status(
        library=_file_of(library) if library else None,
        library_version=library.version if library else None,
        library_problem=problem,
        library_named=os.environ.get(ENVIRONMENT) or None,
        accel_config=not accel_config_problem,
        kernel=platform.release(),
        pci_devices=len(pci),
        devices=devices,
        hardware_ready=tested["status"] == "passed",
        hardware_test=tested,
        missing=[cause.text for cause in causes],
        commands=[command for cause in causes for command in cause.commands],
        notes=_notes(root, devices),
    )


def _load() -> tuple[Library | None, str]:
    try:
        return load(), ""
    except LibraryUnavailable as e:
        return None, str(e)


def _device_causes(pci: list[PciDevice], devices: list[Device]) -> list[Cause]:
    if devices:
        return [cause for device in devices if (cause := device_cause(device))]
    if held := [device for device in pci if device.driver not in ("", "idxd")]:
        return [foreign_driver_cause(device) for device in held]
    if not pci:
        return [Cause("this machine has no IAA device (PCI 8086:0cfe), or it is disabled in the BIOS")]
    return [
        Cause(
            f"the machine has {len(pci)} IAA devices, but the idxd driver shows none: it needs Linux 5.18 with "
            "CONFIG_INTEL_IDXD and CONFIG_INTEL_IDXD_SVM, and intel_iommu=on,sm_on on the kernel's command line",
            ["modprobe idxd"],
        )
    ]


def _untested(reason: str, devices: list[Device]) -> Cause:
    """The device's self-test did not pass; who may not map queues is told so."""
    text = f"libqpl's hardware path: {reason}"
    usable = [queue for device in devices for queue in device.queues if is_usable(queue)]
    if usable and can_map(usable[0].node) is False:
        text += (
            f"; {usable[0].node} may not be mapped: this kernel has the fix of CVE-2024-21823 and wants CAP_SYS_RAWIO "
            "for that, or libqpl 1.6, which does without"
        )
    return Cause(text)


def _notes(root: Path, devices: list[Device]) -> list[str]:
    """NUMA nodes with processors and without a usable device; queues that do not wait for page faults."""
    usable = [(device, queue) for device in devices for queue in device.queues if is_usable(queue)]
    notes = [
        f"{device.name}/{queue.name} has block_on_fault 0: pages that fault go to software"
        for device, queue in usable
        if not queue.block_on_fault
    ]
    served = {device.numa_node for device, _ in usable}
    bare = sorted(_nodes_with_processors(root) - {node for node in served if node is not None})
    if usable and bare and served.isdisjoint({None, -1}):
        node = min(node for node in served if node is not None)
        notes.append(
            f"no usable device on NUMA node {', '.join(map(str, bare))}: libqpl uses devices of the thread's own "
            f"socket only; start multifd by `numactl --cpunodebind={node} --membind={node}`"
        )
    return notes


def _nodes_with_processors(root: Path) -> set[int]:
    nodes: set[int] = set()
    base = root / "sys/devices/system/node"
    try:
        names = os.listdir(base)
    except OSError:
        return nodes
    for name in names:
        number = name.removeprefix("node")
        try:
            if number.isdigit() and (base / name / "cpulist").read_bytes().strip():
                nodes.add(int(number))
        except OSError:
            continue
    return nodes


def _accel_config_problem() -> str:
    """Why libqpl cannot open libaccel-config; empty if it can."""
    if is_cut_short(ACCEL_CONFIG):
        return f"{ACCEL_CONFIG}: cut short"
    try:
        open_shared(ACCEL_CONFIG)
    except NotLoadable as e:
        return str(e)
    return ""


def _file_of(library: Library) -> str:
    """The file that a function of the library lies in, by the kernel's table of this process's maps."""
    from multifd_qpl._batch import ffi

    address = int(ffi.cast("uintptr_t", library.table.get_job_size))
    try:
        with open("/proc/self/maps", "rb") as maps:
            for line in maps:
                first, _, last = line.split(b" ", 1)[0].partition(b"-")
                if int(first, 16) <= address < int(last, 16):
                    return os.fsdecode(line.rstrip(b"\n").split(None, 5)[5])
    except (OSError, ValueError, IndexError):
        pass
    return library.path
