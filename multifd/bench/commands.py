"""A choice as the commands that make it: QEMU's monitor, virsh, and multifd's own.

Placeholders are in capitals: HOST, PORT, DOMAIN, PATH.
"""

from __future__ import annotations

import shlex
from typing import Any

from multifd.registry import find, parse_spec

_VIRSH_METHODS = ("zlib", "zstd")
"""What ``virsh migrate --comp-methods`` takes for parallel migration: virsh(1), libvirt 9.4 and later."""
_UNLIMITED = 1 << 40
"""Bytes each second. QEMU's own default is 128 MiB/s (migration/options.c, 10.0), and not every release takes 0."""


def takes_qemu(method: str) -> bool:
    """Whether an unmodified QEMU can be set to a method: it has its code on the wire, and no option but a level.

    Args:
        method: NAME or NAME:key=value,...
    """
    name, options = parse_spec(method)
    level = options.get("level", "0")
    # QEMU's levels are whole numbers from 0 on: multifd-*-level, qapi/migration.json, 10.0
    is_qemus = level.isascii() and level.isdecimal()
    return find(name).wire_code is not None and set(options) <= {"level"} and is_qemus


def qmp(method: str, channels: int, max_bandwidth: int = 0) -> list[dict[str, Any]]:
    """Monitor commands for a QEMU at either end, before ``migrate`` or ``migrate-incoming``.

    Args:
        method: one that `takes_qemu`.
        channels: connections besides main.
        max_bandwidth: bytes each second, the source's; 0 is unlimited.
    """
    name, options = parse_spec(method)
    parameters: dict[str, Any] = {
        "multifd-channels": channels,
        "multifd-compression": name,
        "max-bandwidth": max_bandwidth or _UNLIMITED,
    }
    if "level" in options:
        parameters[f"multifd-{name}-level"] = int(options["level"])
    capabilities = [{"capability": "multifd", "state": True}]
    return [
        {"execute": "migrate-set-capabilities", "arguments": {"capabilities": capabilities}},
        {"execute": "migrate-set-parameters", "arguments": parameters},
    ]


def virsh(method: str, channels: int) -> str | None:
    """A command for libvirt; None if it has none for this method."""
    name, options = parse_spec(method)
    words = ["virsh", "migrate", "--live", "--p2p", "--parallel", "--parallel-connections", str(channels)]
    if name in _VIRSH_METHODS:
        words += ["--comp-methods", name]
        if "level" in options:
            words += [f"--comp-{name}-level", options["level"]]
    elif not find(name).capabilities.verbatim:
        return None
    return shlex.join([*words, "DOMAIN", "qemu+ssh://HOST/system"])


def multifd(method: str, channels: int, source: str) -> dict[str, str]:
    """Both ends' commands of multifd."""
    name, _ = parse_spec(method)
    send = ["multifd", "send", source, "tcp:HOST:PORT", "--method", method, "--channels", str(channels)]
    receive = ["multifd", "receive", "tcp:HOST:PORT", "PATH", "--method", name]
    return {"send": shlex.join(send), "receive": shlex.join(receive)}
