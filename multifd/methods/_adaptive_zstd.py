"""``zstd:level=auto``: what zstd's format allows a channel whose level changes.

The wire's rule, measured on QEMU 7.2.22 and 10.0.2: a frame may end only inside the packet that carries its last page.
One that is ended at the start of the next, or left for a new one, hangs the destination. So while a level rests its
frame is endless, as with a fixed level; a packet that is the level's last is followed, in its payload, by an empty last
block. Pages as they are go as a frame of raw blocks, whole in each packet.
"""

from __future__ import annotations

from collections.abc import Sequence

from multifd.methods._adaptive import Wire
from multifd.methods.adapt import Rung
from multifd.pages import Buffer

LADDER = (
    Rung(None, 0.10e-9, 0.0),
    Rung(-7, 1.8e-9, 0.437),
    Rung(-3, 2.45e-9, 0.526),
    Rung(-1, 2.65e-9, 0.586),
    Rung(1, 3.0e-9, 0.635),
    Rung(2, 4.7e-9, 0.668),
    Rung(3, 5.5e-9, 0.687),
    Rung(5, 9.5e-9, 0.699),
    Rung(6, 13.5e-9, 0.707),
    Rung(7, 17.5e-9, 0.710),
    Rung(9, 22e-9, 0.720),
    Rung(10, 31e-9, 0.721),
    Rung(12, 56e-9, 0.722),
)
"""zstd 1.5.7 on 32 MiB of programs and documents, two cores of an EPYC, seconds of a processor. The levels between took
as long as one beside them, or gained nothing."""
SAMPLED = next(place for place, rung in enumerate(LADDER) if rung.level == 1)
TOP = max(rung.level for rung in LADDER if rung.level is not None)
END_BLOCK = b"\x01\x00\x00"
"""RFC 8878: the last block of a frame, raw, of no bytes."""
RAW_HEADER = b"\x28\xb5\x2f\xfd\xa0"
"""RFC 8878: magic, a descriptor that promises a single segment of four bytes' size, which follows: libzstd then writes
straight into a buffer that holds it."""
MOST_BLOCK = 128 * 1024


def raw_frame(runs: Sequence[memoryview]) -> list[Buffer]:
    """A frame of the bytes as they are, in blocks as large as may be; the views go into it."""
    left = sum(map(len, runs))
    frame: list[Buffer] = [RAW_HEADER + left.to_bytes(4, "little")]
    room = 0  # in the block that is going on
    for run in runs:
        at = 0
        while at < len(run):
            if not room:
                room = min(left, MOST_BLOCK)
                frame.append((room << 3 | (room == left)).to_bytes(3, "little"))
            piece = run[at : at + room]
            frame.append(piece)
            at, room, left = at + len(piece), room - len(piece), left - len(piece)
    return frame


ZSTD = Wire("zstd", LADDER, SAMPLED, raw_frame, END_BLOCK)
