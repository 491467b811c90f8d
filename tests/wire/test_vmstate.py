"""A device's state found and split by its description; a description that does not fit finds nothing."""

from __future__ import annotations

from typing import Any

import pytest
from device_state import Device, build_state, cpu
from hypothesis import given
from hypothesis import strategies as st

from multifd.wire import vmdesc, vmstate

STATE = build_state([Device("timer", 0, [("x", 8, bytes(8))]), cpu(0), cpu(1, subsection=b"\5\3cpu/x"), cpu(2)])
DESCRIPTION = vmdesc.find(STATE)


def found(state: bytes, description: dict[str, Any] | None, name: str = "cpu") -> list[vmstate.Section]:
    assert description is not None
    return list(vmstate.sections(state, description, name))


def test_all_instances():
    sections = found(STATE, DESCRIPTION)
    assert [s.instance for s in sections] == [0, 1, 2]
    for i, section in enumerate(sections, 1):
        assert section.fields["env.regs"].numbers() == tuple(i * 0x100 + n for n in range(16))
        assert section.fields["env.eip"].number == i * 0x100 + 0x20


def test_a_name_that_comes_before_in_other_state():
    """Its header's bytes alone are not enough: kind in front and footer behind must be right too."""
    decoy = cpu(0).section(9)[5:]
    state = build_state([Device("noise", 0, [("x", 1, decoy + b"\4\0\0\0\7" + decoy[:-5])]), cpu(0)])
    (section,) = found(state, vmdesc.find(state))
    assert section.fields["env.eip"].number == 0x120


def test_a_description_that_repeats_itself():
    """Each instance once, however often it is described: or what is hostile costs its entries times its bytes."""
    cpus = [entry for entry in DESCRIPTION["devices"] if entry["name"] == "cpu"]
    assert [s.instance for s in found(STATE, {"devices": cpus * 3})] == [0, 1, 2]


@pytest.mark.parametrize(
    "change",
    [
        {"fields": None}, {"fields": [1]}, {"fields": [{"name": "x"}]}, {"fields": [{"name": 1, "size": 4}]},
        {"fields": [{"name": "x", "size": -1}]}, {"fields": [{"name": "x", "size": 2.5}]},
        {"fields": [{"name": "x", "size": 1 << 31, "array_len": 1 << 31}]}, {"fields": [{"name": "x", "size": True}]},
        {"version": 11}, {"version": "12"}, {"instance_id": -1}, {"instance_id": None}, {"fields": []},
    ],
)  # fmt: skip
def test_a_description_that_does_not_fit(change):
    description = {"devices": [{**cpu(0).description(), **change}]}
    assert found(STATE, description) == []


@pytest.mark.parametrize("devices", [None, {}, [], [1, None], [{"name": "other"}]])
def test_no_devices(devices):
    assert found(STATE, {"devices": devices}) == []


@given(st.binary(max_size=50), st.integers(0, len(STATE)))
def test_any_state(noise, cut):
    for section in found(STATE[:cut] + noise, DESCRIPTION):
        assert all(len(f.data) == f.size * f.count for f in section.fields.values())
