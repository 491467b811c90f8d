"""A guest at the source of a migration: where it is, and how it gets back to where it was."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from multifd.errors import ControlError, RamError, about
from multifd.manage.monitor import Monitor, Refused

_NO_SOURCE = {
    "inmigrate": "it waits for a migration itself",
    "postmigrate": "it was migrated away, or captured and not continued: continue it first",
    "finish-migrate": "another migration is at work",
    "save-vm": "it is being saved",
    "restore-vm": "it is being restored",
    "colo": "it is one of a COLO pair",
}
"""Run states that nothing can be captured in (RunState in qapi/run-state.json), and what is to be said of each."""
_ENDED = ("none", "completed", "failed", "cancelled")
"""States of a migration that is over (MigrationStatus in qapi/migration.json)."""
_STILL = ("postmigrate", "finish-migrate")
"""Run states that a migration leaves a guest in, and nobody else does."""
ASK_S = 0.01
"""Between two questions; the guest may stand still meanwhile."""
PATIENCE_S = 5.0
"""For QEMU to notice by itself that its connections are broken; at once, unless it waits before the switchover."""
_SETTLE_S = 60.0
"""For QEMU to end a migration that was cancelled, or whose connections broke."""


def migration(monitor: Monitor) -> dict[str, Any]:
    """query-migrate, with status none if there never was one."""
    answer: dict[str, Any] = monitor.execute("query-migrate")
    return {"status": "none", **answer}


def run_state(monitor: Monitor) -> str:
    """query-status: running, paused and so on."""
    return str(monitor.execute("query-status")["status"])


def require_capturable(monitor: Monitor) -> str:
    """The run state of a guest that can be captured.

    Raises:
        ControlError: it cannot, and why.
    """
    state = run_state(monitor)
    if state in _NO_SOURCE:
        raise ControlError(f"the guest cannot be captured in state {state}: {_NO_SOURCE[state]}")
    if (status := migration(monitor)["status"]) not in _ENDED:
        raise ControlError(f"QEMU is busy with another migration (status {status})")
    return state


def stop_migration(monitor: Monitor, *, patience_s: float = 0.0) -> None:
    """Make sure that none is at work: cancel it, unless it has ended, and wait until QEMU is done with it.

    Args:
        patience_s: how long it may end by itself first. For one whose connections are broken: QEMU 7.2 may crash if it
            is told to cancel while it finds that out.

    Raises:
        ControlError: QEMU does not come to an end.
    """
    cancel_at = time.monotonic() + patience_s
    deadline = cancel_at + _SETTLE_S
    while (status := migration(monitor)["status"]) not in _ENDED:
        if status != "cancelling" and time.monotonic() >= cancel_at:
            monitor.execute("migrate_cancel")
        if time.monotonic() > deadline:
            raise ControlError(f"QEMU does not end its migration (status {status})")
        time.sleep(ASK_S)


def bring_back(monitor: Monitor, before: str) -> None:
    """After a migration: let the guest run if it ran before.

    A guest that somebody else has stopped meanwhile, or that has stopped itself, stays so. One that did not run before
    does not, not for a moment: QEMU calls it postmigrate then, and its next ``cont`` is as ever.

    Raises:
        ControlError: it cannot run.
    """
    settled = retried(lambda: _settled(monitor), "come to rest after its migration")
    if before == "running" and settled in _STILL:
        monitor.resume()
    elif before != "running" and settled == "postmigrate":
        _take_disks_back(monitor)


def _settled(monitor: Monitor) -> str:
    # QEMU reports the end of a failed migration before it has resumed the guest.
    state = run_state(monitor)
    return state if state != "finish-migrate" else ""


def _take_disks_back(monitor: Monitor) -> None:
    """QEMU has let its disks go for a destination; up to 9.2 only ``cont`` takes them back."""
    commands = {entry["name"] for entry in monitor.execute("query-commands")}
    if "blockdev-set-active" in commands:
        monitor.execute("blockdev-set-active", active=True)


def retried(step: Callable[[], Any], what: str) -> Any:
    """Repeat a step until its answer is true: QEMU refuses some for a moment after a migration.

    Raises:
        ControlError: it never is.
    """
    deadline = time.monotonic() + _SETTLE_S
    while True:
        refused: Refused | None = None
        try:
            if answer := step():
                return answer
        except Refused as e:
            refused = e
        if time.monotonic() > deadline:
            raise refused or ControlError(f"QEMU does not {what}")
        time.sleep(ASK_S)


def disks_for(monitor: Monitor, name: str) -> list[str]:
    """What a disk snapshot `name` has to be taken of: every writable disk, by device or node name.

    Raises:
        ControlError: there is none, or one that cannot hold the snapshot, or has one of that name.
    """
    found = []
    for entry in monitor.execute("query-block"):
        medium = entry.get("inserted")
        if medium is None or medium["ro"]:
            continue
        disk = entry["device"] or medium["node-name"]
        shown = entry["device"] or entry.get("qdev") or disk
        if medium["drv"] != "qcow2":
            error = f"disk {shown} is {medium['drv']}: a snapshot inside it needs qcow2; use the storage's own"
            raise about(ControlError(error), "snapshot_disks")
        if any(s["name"] == name for s in medium.get("image", {}).get("snapshots", ())):
            raise about(ControlError(f"disk {shown} has a snapshot {name!r} already"), "snapshot_disks")
        found.append(disk)
    if not found:
        raise about(ControlError("the guest has no writable disk"), "snapshot_disks")
    return found


def take_snapshot(monitor: Monitor, name: str, disks: Sequence[str]) -> None:
    """Of all disks or of none."""
    actions = [
        {"type": "blockdev-snapshot-internal-sync", "data": {"device": disk, "name": name}} for disk in disks
    ]  # fmt: skip
    monitor.execute("transaction", actions=actions)


def delete_snapshot(monitor: Monitor, name: str, disks: Sequence[str]) -> None:
    """Where it is.

    Raises:
        RamError: of what could not be deleted.
    """
    has = {
        entry["device"] or entry["inserted"]["node-name"]: entry["inserted"].get("image", {}).get("snapshots", ())
        for entry in monitor.execute("query-block")
        if entry.get("inserted")
    }
    for disk in disks:
        if any(s["name"] == name for s in has.get(disk, ())):
            try:
                monitor.execute("blockdev-snapshot-delete-internal-sync", device=disk, name=name)
            except Refused as e:
                raise RamError(f"snapshot {name!r} of disk {disk} could not be deleted: {e}") from e
