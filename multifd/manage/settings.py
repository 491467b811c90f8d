"""QEMU's migration capabilities and parameters: which a migration here needs, and as they were before.

Rule of this file: a capability that is left on can kill QEMU later (multifd: at the next savevm, 7.2 and 10.0), so
what is put back is also looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from multifd.errors import ControlError, UsageError, about
from multifd.manage.monitor import Monitor, Refused
from multifd.registry import parse_spec

_UNLIMITED = 1 << 40
"""Bytes per second; QEMU's own default is 128 MiB/s, and not every release takes 0 for none."""
_NOT_HERE = (
    "background-snapshot",
    "compress",
    "dirty-bitmaps",
    "mapped-ram",
    "pause-before-switchover",
    "postcopy-ram",
    "rdma-pin-all",
    "return-path",
    "x-colo",
    "x-ignore-shared",
    "xbzrle",
    "zero-copy-send",
)
"""Capabilities that change the stream, forbid multifd, or make QEMU wait for somebody (qapi/migration.json, 7.2 to
10.0). Without return-path the guest need not stand still until a file is durable."""


@dataclass(frozen=True)
class Settings:
    """Some capabilities and parameters of a QEMU, by QEMU's names."""

    capabilities: dict[str, bool]
    parameters: dict[str, Any]

    def apply(self, monitor: Monitor) -> None:
        """Make QEMU have these.

        Raises:
            ControlError: it does not take one.
        """
        self._set_capabilities(monitor)
        self._set_parameters(monitor)

    def put_back(self, monitor: Monitor) -> None:
        """Make QEMU have these again, and look whether it does. Twice is harmless.

        Raises:
            ControlError: it does not; names them.
        """
        self._set_parameters(monitor)
        self._set_capabilities(monitor)
        now = read(monitor)
        differ = [
            f"{name} is {of.get(name)!r}, was {value!r}"
            for of, was in ((now.capabilities, self.capabilities), (now.parameters, self.parameters))
            for name, value in was.items()
            if of.get(name) != value
        ]
        if differ:
            raise ControlError(f"QEMU's settings are not as they were: {', '.join(differ)}")

    def _set_capabilities(self, monitor: Monitor) -> None:
        if self.capabilities:
            states = [{"capability": name, "state": state} for name, state in self.capabilities.items()]
            monitor.execute("migrate-set-capabilities", capabilities=states)

    def _set_parameters(self, monitor: Monitor) -> None:
        if self.parameters:
            monitor.execute("migrate-set-parameters", **self.parameters)


def read(monitor: Monitor) -> Settings:
    """All of them, as they are."""
    capabilities = monitor.execute("query-migrate-capabilities")
    return Settings(
        {entry["capability"]: entry["state"] for entry in capabilities}, monitor.execute("query-migrate-parameters")
    )


def plan(
    before: Settings, method: str, channels: int, *, max_bandwidth: int = 0, pause: bool = False
) -> tuple[Settings, Settings]:
    """What must be set for a multifd migration, and the same settings as they were.

    Args:
        before: all of them.
        method: a method's name with options, as QEMU names it; a level is that of a QEMU that sends.
        channels: 1 to 255.
        max_bandwidth: bytes per second; 0 is unlimited.
        pause: QEMU is to wait before the switchover, when the guest stands still and its disks are still its own.

    Raises:
        ControlError: this QEMU has no multifd, or cannot pause.
        UsageError: the level is none of QEMU's.
    """
    name, options = parse_spec(method)
    capabilities = {"multifd": True, **{c: False for c in _NOT_HERE if before.capabilities.get(c)}}
    if pause:
        capabilities["pause-before-switchover"] = True
    if missing := [c for c in capabilities if c not in before.capabilities]:
        raise ControlError(f"this QEMU has no migration capability {missing[0]}, expected 7.2 or later")
    parameters: dict[str, Any] = {
        "multifd-channels": channels, "multifd-compression": name, "max-bandwidth": max_bandwidth or _UNLIMITED
    }  # fmt: skip
    level = f"multifd-{name}-level"
    if "level" in options and level in before.parameters:
        parameters[level] = _level(method, options["level"])
    if before.parameters.get("tls-creds"):
        parameters["tls-creds"] = ""
    if before.parameters.get("mode", "normal") != "normal":
        parameters["mode"] = "normal"
    wanted_capabilities = {c: on for c, on in capabilities.items() if before.capabilities[c] != on}
    wanted_parameters = {p: value for p, value in parameters.items() if before.parameters.get(p) != value}
    if unknown := [p for p in wanted_parameters if p not in before.parameters]:
        raise ControlError(f"this QEMU has no migration parameter {unknown[0]}, expected 7.2 or later")
    return Settings(wanted_capabilities, wanted_parameters), Settings(
        {c: before.capabilities[c] for c in wanted_capabilities}, {p: before.parameters[p] for p in wanted_parameters}
    )


def _level(method: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise about(
            UsageError(
                f"method {method!r}: QEMU has no level {text!r}, expected a whole number; a relay beside QEMU has it: "
                f"multifd relay --out {method}"
            ),
            "method",
        ) from None


def apply_method(monitor: Monitor, wanted: Settings, method: str) -> None:
    """`Settings.apply`, with a word for a method that this QEMU does not have.

    Raises:
        ControlError: QEMU does not take a setting.
    """
    try:
        wanted.apply(monitor)
    except Refused as e:
        name, _ = parse_spec(method)
        if name in str(e):
            raise about(Refused(f"this QEMU does not take method {name}: {e}"), "method") from e
        raise
