"""The vmdesc: QEMU's own description, in JSON, of the device state that comes before it.

It is the last thing on a main stream, ``06``, u32 length and the text, after the EOF byte; a
destination does not need it. It is how the stream's end is recognised without understanding
devices, and how their state can be listed (migration/savevm.c, QEMU 7.2 and 10.0: keys page_size,
devices, and since 8.2 configuration).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any

UNMARKED = (
    "all of RAM is here, but the end of the devices' state was not seen: machine types up to 2.2 and those with "
    "suppress-vmdesc=on do not mark it; switch capability return-path off at the source"
)
"""What to say of a stream with a return path whose end does not come: its source waits for an answer then."""
CUT = (
    "nothing says that the stream was complete: somebody on the way may have cut it. Machine types up to 2.2 and those "
    "with suppress-vmdesc=on do not mark the end of the devices' state, and over TLS no QEMU says that main has ended"
)
"""What to say of an encrypted stream without a mark at its end that ended without close_notify."""
_EOF, _END, _FULL, _VMDESC, _FOOTER = 0x00, 0x03, 0x04, 0x06, 0x7E


def find(tail: bytes | bytearray) -> dict[str, Any] | None:
    """The vmdesc with which `tail` ends, None if it does not end with one."""
    return next(_candidates(tail), None)


def ends(tail: bytes | bytearray) -> bool:
    """Whether the stream is complete: `tail` ends with a vmdesc."""
    return find(tail) is not None


def may_end(tail: bytes | bytearray, *, has_footers: bool) -> bool:
    """Whether devices' state that nothing follows can be complete: with a vmdesc, or with the EOF item.

    Most of the state's bytes are NUL, as the EOF item is. That one follows the footer of the last section, whose start
    is in `tail` too.

    Args:
        tail: from the end of ram on, or the last MiBs of that.
        has_footers: whether sections have them: machine types from 2.4 on.
    """
    if not has_footers or tail == bytes([_EOF]):
        return tail.endswith(bytes([_EOF])) or ends(tail)
    section_id = bytes(tail[-5:-1])
    is_eof = tail.endswith(bytes([_FOOTER]) + section_id + bytes([_EOF]))
    return (is_eof and any(bytes([kind]) + section_id in tail for kind in (_END, _FULL))) or ends(tail)


def _candidates(tail: bytes | bytearray) -> Iterator[dict[str, Any]]:
    if not tail.endswith(b"}"):
        return
    # JSON holds no NUL: the last one belongs to the EOF byte or the length before the text.
    last = tail.rfind(0)
    for at in range(max(last - 5, 0), last + 1):
        body = at + 6
        expected = struct.pack(">BBI", _EOF, _VMDESC, len(tail) - body) if body <= len(tail) else b""
        if tail[at:body] != expected:
            continue
        try:
            description = json.loads(tail[body:])
        except (ValueError, RecursionError):
            continue
        if isinstance(description, dict) and {"page_size", "devices"} <= description.keys():
            yield description


def encode(page_size: int) -> bytes:
    """The vmdesc of a machine without devices."""
    text = json.dumps({"page_size": page_size, "devices": []}).encode()
    return struct.pack(">BI", _VMDESC, len(text)) + text


def devices(description: dict[str, Any]) -> list[str]:
    """The devices as ``name instance``, in the order of their state; whatever has no name is left out."""
    entries = description.get("devices")
    if not isinstance(entries, list):
        return []
    named = (e for e in entries if isinstance(e, dict) and isinstance(e.get("name"), str))
    return [f"{e['name']} {e.get('instance_id', 0)}" for e in named]
