"""Which release a machine type is of, and which dialect a destination of it understands."""

from __future__ import annotations

import pytest

from multifd.errors import UsageError
from multifd.wire.dialect import DIALECTS, dialect_of, release_of

KNOWN = [
    ("", (2, 3), "7.2"),  # types that do not name themselves
    ("pc-i440fx-2.4", (2, 4), "7.2"),
    ("pc-i440fx-7.2", (7, 2), "7.2"),
    ("pc-q35-8.0", (8, 0), "7.2"),  # the last without FLUSH words
    ("pc-q35-8.1", (8, 1), "8.1"),
    ("pc-q35-8.2", (8, 2), "8.1"),  # the last with zero pages on main
    ("pc-q35-9.0", (9, 0), "9.0"),
    ("pc-q35-10.0", (10, 0), "9.0"),  # not below 9.0, as text would be
    ("pc-q35-10.1", (10, 1), "9.0"),
    ("virt-9.1", (9, 1), "9.0"),
    ("s390-ccw-virtio-8.0", (8, 0), "7.2"),
    ("pseries-8.1", (8, 1), "8.1"),
    ("pc-i440fx-rhel7.6.0", (7, 2), "7.2"),
    ("pc-q35-rhel8.6.0", (7, 2), "7.2"),
    ("pc-q35-rhel9.2.0", (7, 2), "7.2"),
    ("pc-q35-rhel9.4.0", (8, 2), "8.1"),
    ("pc-q35-rhel9.6.0", (9, 1), "9.0"),
    ("virt-rhel10.0.0", (9, 1), "9.0"),
    ("pc-i440fx-jammy", (6, 2), "7.2"),
    ("pc-i440fx-jammy-hpb", (6, 2), "7.2"),
    ("pc-q35-noble", (8, 2), "8.1"),
    ("pc-q35-noble-maxcpus", (8, 2), "8.1"),
    ("pc-q35-noble-v2", (8, 2), "8.1"),
    ("ubuntu-q35-mantic", (8, 0), "7.2"),
    ("pc-i440fx-oracular", (9, 0), "9.0"),
]
UNKNOWN = [
    "none", "pc", "q35", "microvm", "my-board", "pc-q35-9", "pc-q35-9.0.1", "pc-q35-rhel9.4", "pc-i440fx-buster",
    "PC-Q35-9.0", "pc-q35-9.0\n", "xenfv",
]  # fmt: skip


@pytest.mark.parametrize(("machine", "release", "dialect"), KNOWN)
def test_known(machine, release, dialect):
    assert release_of(machine) == release
    assert dialect_of(machine) == DIALECTS[dialect]


@pytest.mark.parametrize("machine", UNKNOWN)
def test_unknown(machine):
    """A guess can load devices over missing RAM, so there is none."""
    assert release_of(machine) is None
    with pytest.raises(UsageError, match="pass --dialect") as caught:
        dialect_of(machine)
    assert repr(machine) in str(caught.value)
