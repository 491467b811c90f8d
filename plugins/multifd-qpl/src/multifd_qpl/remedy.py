"""What keeps libqpl from a device, cause by cause, and the commands that mend it.

Each command is for root, and each list is meant to be run in its order. accel-config configures a device only
while it is disabled, and a device ends only after its queues: so what is enabled is disabled first.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from multifd_qpl.sysfs import Device, PciDevice, Queue

_ENTRIES = 128  # work queue entries of a device, all queues together
_LARGEST_PAGE = 65536

GROUP = "iaa"
"""The group that may use queues, in the commands and in the documentation."""
UDEV_RULE = f'SUBSYSTEM=="dsa", KERNEL=="iax*wq*", GROUP="{GROUP}", MODE="0660"'
UDEV_FILE = "/etc/udev/rules.d/60-iaa.rules"


@dataclass(frozen=True)
class Cause:
    """Why something cannot be used."""

    text: str
    commands: list[str] = field(default_factory=list)


def queue_problem(queue: Queue) -> str:
    """Why libqpl would not use a queue; empty if it would. The first of several, in the order of mending."""
    if queue.type not in ("user", "unknown"):
        by = f" (driver {queue.driver})" if queue.driver else ""
        return f"is of type {queue.type}{by}; programs need type user, and what uses it in the kernel would lose it"
    if queue.mode != "shared":
        return f"is {queue.mode}; libqpl uses shared queues only"
    if queue.driver not in ("user", ""):
        return f"is bound to the driver {queue.driver}; programs need driver_name user"
    if queue.group is not None and queue.group < 0:
        return "is in no group, so no engine serves it"
    if queue.engines == 0:
        return f"is in group {queue.group}, which has no engine, so none serves it"
    if not queue.threshold:
        return "has threshold 0: it accepts nothing from programs"
    if 0 < queue.max_transfer_size < _LARGEST_PAGE:
        return f"takes at most {queue.max_transfer_size} bytes (max_transfer_size); pages have up to {_LARGEST_PAGE}"
    if queue.state != "enabled":
        return f"is {queue.state}"
    if not queue.has_node:
        return f"has no node: {queue.node} does not exist (in a container: it was not passed in)"
    if not queue.is_permitted:
        return f"may not be opened by this user: permission on {queue.node}"
    return ""


def is_usable(queue: Queue) -> bool:
    """Whether libqpl would use it, as far as the kernel shows."""
    return not queue_problem(queue)


def foreign_driver_cause(device: PciDevice) -> Cause:
    """A device that another driver has taken, as one that is passed to a virtual machine, and how idxd gets it."""
    return Cause(
        f"the IAA device {device.address} is bound to {device.driver}, not to idxd: it is passed to a virtual machine, "
        "or was; whatever uses it there would lose it",
        [
            f"echo {device.address} > /sys/bus/pci/drivers/{device.driver}/unbind",
            f"echo > /sys/bus/pci/devices/{device.address}/driver_override",
            "modprobe idxd",
            f"echo {device.address} > /sys/bus/pci/drivers/idxd/bind",
        ],
    )


def device_cause(device: Device) -> Cause | None:
    """Why a device gives libqpl no queue, and what mends it; None if it gives one."""
    if device.pasid_enabled is False:
        return Cause(
            f"{device.name} has pasid_enabled 0: no program can use it without shared virtual memory: the kernel's "
            "command line needs intel_iommu=on,sm_on, the BIOS VT-d; then reboot"
        )
    if any(is_usable(queue) for queue in device.queues):
        return None
    problems = "; ".join(f"{queue.name} {queue_problem(queue)}" for queue in device.queues)
    text = f"{device.name} is {device.state}: {problems or 'it has no work queue'}"
    return Cause(text, _mend(device))


def _mend(device: Device) -> list[str]:
    """The shortest way to one usable queue."""
    if device.state == "enabled":
        for queue in device.queues:
            name = f"{device.name}/{queue.name}"
            problem = queue_problem(queue)
            if problem == f"is {queue.state}":
                return [f"accel-config enable-wq {name}"]
            if not queue.has_node and "no node" in problem:
                return [f"accel-config disable-wq {name}", f"accel-config enable-wq {name}"]
            if "permission" in problem:
                return [
                    f"groupadd --system --force {GROUP}",
                    f"usermod --append --groups {GROUP} USER   # whoever runs multifd; then a new login",
                    f"echo '{UDEV_RULE}' > {UDEV_FILE}",
                    "udevadm control --reload",
                    f"chgrp {GROUP} {queue.node}",
                    f"chmod 0660 {queue.node}",
                ]
    return _configure(device)


def _configure(device: Device) -> list[str]:
    """One shared queue with all engines and entries, whatever was there before."""
    number = device.name.removeprefix("iax")
    queue = f"{device.name}/wq{number}.0"
    return [
        *(f"accel-config disable-wq {device.name}/{q.name}" for q in device.queues if q.state == "enabled"),
        *([f"accel-config disable-device {device.name}"] if device.state == "enabled" else []),
        *(
            f"accel-config config-wq {device.name}/{q.name} --wq-size=0"
            for q in device.queues
            if q.entries and q.name != f"wq{number}.0"
        ),
        *(f"accel-config config-engine {device.name}/engine{number}.{i} --group-id=0" for i in range(device.engines)),
        f"accel-config config-wq {queue} --group-id=0 --mode=shared --wq-size={_ENTRIES} --threshold={_ENTRIES} "
        "--priority=10 --block-on-fault=1 --type=user --name=multifd --driver-name=user "
        "--max-transfer-size=2147483648",
        f"accel-config enable-device {device.name}",
        f"accel-config enable-wq {queue}",
    ]
