"""What cases against real QEMUs are made of: where guests come from and go to, and that they go on."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from interop.guest import Guest, check, passes_printed
from interop.qemu import Qemu

MIB = 24
METHODS = ["none", "zlib", "zstd"]
CHANNELS = [1, 2, 4]


class Route(NamedTuple):
    """Where a guest is captured, where it is restored, and a machine type that both have."""

    source: str
    destination: str
    machine: str


ROUTES = [
    Route("system", "system", "pc"),
    Route("system", "system", "q35"),
    Route("system", "newer", "pc-i440fx-7.2"),
    Route("system", "newer", "pc-q35-7.1"),
    Route("newer", "system", "pc-q35-7.2"),
    Route("newer", "system", "pc-i440fx-6.2"),
    Route("newer", "newer", "pc"),
    Route("newer", "newer", "q35"),
    Route("newer", "newer", "pc-q35-8.0"),  # the last with a SYNC for each section
    Route("newer", "newer", "pc-i440fx-8.1"),  # the first with FLUSH words
    Route("newer", "newer", "pc-q35-9.0"),  # zero pages on the channels
]


def listen_uri(transport: str, folder: Path, name: str) -> str:
    """Where an end listens."""
    return "tcp:127.0.0.1:0" if transport == "tcp" else f"unix:{folder}/{name}"


def goes_on(machine: Qemu, guest: Guest) -> None:
    """The guest runs, finds RAM and CPU from one moment, and keeps its invariant."""
    before = check(machine.ram(), guest)
    printed = passes_printed(machine.console())
    machine("cont")
    machine.wait(lambda: passes_printed(machine.console()) > printed + 1, "pass of the guest")
    machine("stop")
    assert check(machine.ram(), guest).passes > before.passes
    passes_printed(machine.console())
