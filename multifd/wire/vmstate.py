"""A device's state out of what follows RAM, by the vmdesc's own description of it. Sans-IO.

A section has no length, but the vmdesc tells each field's size (scripts/analyze-migration.py of QEMU reads a stream
so). A section is looked for by its header, and taken only if its footer stands where the sizes say.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from multifd.wire.stream import FOOTER, FULL, SUBSECTION


@dataclass(frozen=True)
class Field:
    """A field, as the vmdesc has it."""

    size: int
    """Bytes of one element."""
    count: int
    data: bytes
    """All elements, big-endian unless the device says otherwise."""

    def numbers(self) -> tuple[int, ...]:
        """The elements as unsigned big-endian numbers."""
        return tuple(int.from_bytes(self.data[i * self.size : (i + 1) * self.size], "big") for i in range(self.count))

    @property
    def number(self) -> int:
        """The first element; 0 if there is none."""
        return int.from_bytes(self.data[: self.size], "big")


@dataclass(frozen=True)
class Section:
    """The state of one instance of a device, without its subsections."""

    name: str
    instance: int
    fields: Mapping[str, Field]
    """By name; of fields of one name the first."""


def sections(state: bytes, description: Mapping[str, Any], name: str) -> Iterator[Section]:
    """The sections of all instances of a device, in the order of the vmdesc.

    Args:
        state: what follows RAM.
        description: the vmdesc, from `multifd.wire.vmdesc.find`.
        name: as the vmdesc has it, such as ``cpu``.

    Yields:
        Only those that are found, and whose description fits their bytes.
    """
    devices = description.get("devices")
    places = _places(state, name)
    for entry in devices if isinstance(devices, list) else []:
        if isinstance(entry, dict) and entry.get("name") == name:
            instance, version = entry.get("instance_id", 0), entry.get("version", 0)
            if (shape := _shape(entry.get("fields"))) is None or not (_is_u32(instance) and _is_u32(version)):
                continue
            # An instance has one entry: what is taken out, a description that repeats itself does not find again.
            for section_id, body in places.pop((instance, version), ()):
                if (fields := _fields(state, section_id, body, shape)) is not None:
                    yield Section(name, instance, fields)
                    break


def _places(state: bytes, name: str) -> dict[tuple[int, int], list[tuple[bytes, int]]]:
    """What looks like a section's header, by instance and version: the section's id, and where its fields begin."""
    places: dict[tuple[int, int], list[tuple[bytes, int]]] = {}
    kind, named = re.escape(bytes([FULL])), re.escape(bytes([len(name)]) + name.encode())
    # Looked ahead, since one may begin within what looks like another.
    for header in re.finditer(kind + b"(?=(.{4})" + named + b"(.{8}))", state, re.DOTALL):
        instance, version = struct.unpack(">II", header[2])
        places.setdefault((instance, version), []).append((header[1], header.end(2)))
    return places


def _shape(fields: object) -> list[tuple[str, int, int]] | None:
    """Name, size and count of each field; None if the description cannot be meant."""
    if not isinstance(fields, list):
        return None
    out = []
    for field in fields:
        if not isinstance(field, dict):
            return None
        name, size, count = field.get("name"), field.get("size"), field.get("array_len", 1)
        if not isinstance(name, str) or not _is_u32(size) or not _is_u32(count):
            return None
        out.append((name, size, count))
    return out


def _fields(state: bytes, section_id: bytes, at: int, shape: list[tuple[str, int, int]]) -> dict[str, Field] | None:
    """The fields from a place on; None if the section does not end behind them."""
    end = at + sum(size * count for _, size, count in shape)
    if state[end : end + 5] != bytes([FOOTER]) + section_id and state[end : end + 1] != bytes([SUBSECTION]):
        return None
    fields: dict[str, Field] = {}
    for name, size, count in shape:
        fields.setdefault(name, Field(size, count, state[at : at + size * count]))
        at += size * count
    return fields


def _is_u32(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 32
