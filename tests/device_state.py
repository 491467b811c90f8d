"""Devices' state with a vmdesc, as QEMU writes it: sections without a length, and the description that has one."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from typing import Any

SEGMENT = 20  # bytes of target/i386/machine.c's vmstate_segment: u32 selector, u64 base, u32 limit, u32 flags


@dataclass
class Device:
    """A section: (name, bytes of an element, content) of each field."""

    name: str
    instance: int
    fields: list[tuple[str, int, bytes]]
    version: int = 12
    subsection: bytes = b""
    more: dict[str, Any] = field(default_factory=dict)

    def section(self, section_id: int) -> bytes:
        name = self.name.encode()
        head = (
            b"\4" + struct.pack(">IB", section_id, len(name)) + name + struct.pack(">II", self.instance, self.version)
        )
        body = b"".join(data for _, _, data in self.fields) + self.subsection
        return head + body + b"\x7e" + struct.pack(">I", section_id)

    def description(self) -> dict[str, Any]:
        fields = []
        for name, size, data in self.fields:
            entry: dict[str, Any] = {"name": name, "type": "uint64", "size": size}
            if len(data) != size:
                entry["array_len"] = len(data) // size
            fields.append(entry)
        return {
            "name": self.name, "instance_id": self.instance, "vmsd_name": self.name, "version": self.version,
            "fields": fields, **self.more,
        }  # fmt: skip


def build_state(devices: list[Device], page_size: int = 4096) -> bytes:
    """What follows RAM on a stream."""
    text = json.dumps({"page_size": page_size, "devices": [d.description() for d in devices]}).encode()
    sections = b"".join(d.section(number) for number, d in enumerate(devices, 5))
    return sections + b"\0\6" + struct.pack(">I", len(text)) + text


def segment(selector: int, base: int = 0, limit: int = 0xFFFF, flags: int = 0x9300) -> bytes:
    return struct.pack(">IQII", selector, base, limit, flags)


def cpu(instance: int = 0, subsection: bytes = b"") -> Device:
    """An x86-64 CPU whose registers all differ: register i of 16 is (instance + 1) * 0x100 + i."""
    n = (instance + 1) * 0x100
    segments = b"".join(segment(n + i, base=n + 0x10 + i) for i in range(6))
    u64 = [("env.eip", n + 0x20), ("env.eflags", n + 0x21)]
    control = [(f"env.cr[{i}]", n + 0x30 + i) for i in (0, 2, 3, 4)]
    return Device(
        "cpu", instance,
        [
            ("env.regs", 8, struct.pack(">16Q", *(n + i for i in range(16)))),
            *((name, 8, struct.pack(">Q", value)) for name, value in u64),
            ("env.hflags", 4, bytes(4)), ("env.segs", SEGMENT, segments),
            *((f"env.{name}", SEGMENT, segment(n + 0x40 + i)) for i, name in enumerate(("ldt", "tr", "gdt", "idt"))),
            *((name, 8, struct.pack(">Q", value)) for name, value in control),
            ("env.kernelgsbase", 8, struct.pack(">Q", n + 0x50)),
        ],
        subsection=subsection,
    )  # fmt: skip


def clock(below_4g: int, above_4g: int = 0) -> Device:
    """The clock chip, whose RAM has what QEMU tells the firmware of RAM."""
    cmos = bytearray(128)
    cmos[0x34:0x36] = ((below_4g - (16 << 20)) >> 16).to_bytes(2, "little")
    cmos[0x5B:0x5E] = (above_4g >> 16).to_bytes(3, "little")
    return Device("mc146818rtc", 0, [("cmos_data", 128, bytes(cmos)), ("cmos_index", 1, b"\0")], version=3)
