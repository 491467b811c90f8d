"""Which QEMU release a machine type belongs to, and so what a destination of it understands.

A wrong guess is not seen on the wire and can load devices over missing RAM, so a name that is not
known for certain is an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from multifd.errors import UsageError


@dataclass(frozen=True)
class Dialect:
    """What a destination of some QEMU release understands."""

    name: str
    """The first release (machine type) that speaks it; the oldest is for all before it too."""
    flush_words: bool
    """Sync points are FLUSH words (machine type 8.1 and later), else every EOS of a ram section is
    one: property multifd-flush-after-each-section."""
    zero_pages_in_packets: bool
    """Zero pages travel in packets (9.0 and later), else as ZERO words on main."""

    @property
    def since(self) -> tuple[int, int]:
        """The first release that speaks it."""
        major, minor = self.name.split(".")
        return int(major), int(minor)


DIALECTS: Mapping[str, Dialect] = {
    d.name: d
    for d in (
        Dialect("9.0", flush_words=True, zero_pages_in_packets=True),
        Dialect("8.1", flush_words=True, zero_pages_in_packets=False),
        Dialect("7.2", flush_words=False, zero_pages_in_packets=False),
    )
}
"""By the first QEMU release (machine type) that speaks it; the first is the default."""
_UNNAMED = (2, 3)  # the last release whose types do not name themselves in the stream (hw_compat_2_3)
_UPSTREAM = re.compile(r"[a-z0-9-]+-(\d+)\.(\d+)")
_RHEL = re.compile(r"[a-z0-9-]+-rhel(\d+)\.(\d+)\.\d+")
_UBUNTU = re.compile(r"[a-z0-9-]+?-([a-z]+)(?:-hpb|-maxcpus|-v\d+)?")
_RHEL_QEMU: tuple[tuple[tuple[int, int], tuple[int, int]], ...] = (
    ((10, 0), (9, 1)),  # qemu-kvm 9.1.0
    ((9, 6), (9, 1)),  # qemu-kvm 9.1.0
    ((9, 4), (8, 2)),  # qemu-kvm 8.2.0; also the newest of RHEL 9.5
    ((0, 0), (7, 2)),  # rhel9.2.0 is the newest of RHEL 9.3, qemu-kvm 8.0: older than FLUSH words
)
"""From the type's version on: the QEMU release it was made in (packages of RHEL and CentOS Stream)."""
_UBUNTU_QEMU: Mapping[str, tuple[int, int]] = {
    "xenial": (2, 5), "yakkety": (2, 6), "zesty": (2, 8), "artful": (2, 10), "bionic": (2, 11), "cosmic": (2, 12),
    "disco": (3, 1), "eoan": (4, 0), "focal": (4, 2), "groovy": (5, 0), "hirsute": (5, 2), "impish": (6, 0),
    "jammy": (6, 2), "kinetic": (7, 0), "lunar": (7, 2), "mantic": (8, 0), "noble": (8, 2), "oracular": (9, 0),
    "plucky": (9, 2), "questing": (10, 1),
}  # fmt: skip
"""Ubuntu names its types after its releases; each has the QEMU of its release (package qemu, Launchpad)."""


def release_of(machine: str) -> tuple[int, int] | None:
    """The QEMU release that a machine type was made in, None if its name does not say.

    Args:
        machine: the full type, not an alias: ``pc-i440fx-7.2``, ``pc-q35-rhel9.4.0``, ``pc-i440fx-jammy-hpb``;
            empty if the stream has none.
    """
    if not machine:
        return _UNNAMED
    if match := _UPSTREAM.fullmatch(machine):
        return int(match[1]), int(match[2])
    if match := _RHEL.fullmatch(machine):
        version = int(match[1]), int(match[2])
        return next(qemu for first, qemu in _RHEL_QEMU if version >= first)
    if match := _UBUNTU.fullmatch(machine):
        return _UBUNTU_QEMU.get(match[1])
    return None


def dialect_of(machine: str) -> Dialect:
    """What a destination of this machine type understands, whatever its own release.

    Raises:
        UsageError: the name does not say.
    """
    release = release_of(machine)
    if release is None:
        raise UsageError(
            f"machine type {machine!r} does not tell the QEMU release it is of: pass --dialect, the destination's "
            f"({', '.join(DIALECTS)}: the newest that is not above it)"
        )
    return next((d for d in DIALECTS.values() if release >= d.since), list(DIALECTS.values())[-1])
