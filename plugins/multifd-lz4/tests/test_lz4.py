"""lz4 keeps every promise of the contract; what is its own is tested here."""

import re
import sys

import pytest
from multifd_lz4 import native
from multifd_lz4.method import Lz4Method, Lz4Options

from multifd.method import CodecError, Geometry, OptionError
from multifd.registry import load_method
from multifd.testing.harness import RecvEnd, SendEnd
from multifd.testing.strategies import packet
from multifd.testing.suite import *  # noqa: F403

METHODS = ["lz4", "lz4:acceleration=65537"]


def test_acceleration_costs_bytes() -> None:
    data = packet("pointers", 1, 4096, 64)
    with SendEnd(load_method("lz4")) as careful, SendEnd(load_method("lz4:acceleration=64")) as hasty:
        assert len(careful.pack(data)) < len(hasty.pack(data))


def test_pages_that_do_not_shrink_are_raw() -> None:
    data = packet("random", 1, 4096, 3)
    with SendEnd(load_method("lz4")) as send:
        assert send.pack(data) == b"\0" + data


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (b"", "begins with b''"),
        (b"\2" + bytes(4096), "expected 0 or 1"),
        (b"\0" + bytes(4095), "gives 4095 bytes"),
        (b"\1", "lz4 block of 0 bytes"),
        (b"\1\x1f\0\1\0\xff", "lz4 block of 5 bytes"),
    ],
)
def test_damage_is_named(payload: bytes, says: str) -> None:
    with RecvEnd(load_method("lz4")) as recv, pytest.raises(CodecError, match=re.escape(says)):
        recv.receive(payload, 1)


def test_without_its_compiled_part_it_runs_in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "multifd_lz4._native", None)
    monkeypatch.delattr("multifd_lz4._native", raising=False)
    native.unavailable_reason.cache_clear()
    try:
        assert native.recv_hook(Geometry.of(4096)) is None
        assert "without a C compiler" in Lz4Method.availability(Lz4Options()).reason
    finally:
        native.unavailable_reason.cache_clear()


def test_acceleration_has_limits() -> None:
    with pytest.raises(OptionError, match="from 1 to 65537"):
        load_method("lz4:acceleration=0")
