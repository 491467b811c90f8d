"""Pieces of a file that a digest is made of, each with what is in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from multifd.errors import printable

MOST = 1024
"""Into so many pieces of one length a file is cut, and at each border of a block or of the devices' state once more."""
_LEAST_BYTES = 16 << 10
_LONGEST_NAME = 64  # characters of a block's name in a line


@dataclass(frozen=True)
class Span:
    """Bytes of a file."""

    first: int
    nbytes: int
    what: str
    """For people: structure, devices, or pages and of which block."""


def step_for(nbytes: int) -> int:
    """Length of the pieces of a file of `nbytes`: a power of two, at least 16 KiB."""
    step = _LEAST_BYTES
    while step * MOST < nbytes:
        step *= 2
    return step


def cut(first: int, end: int, step: int, what: str) -> Iterator[Span]:
    """Spans of `step` bytes; the last one has what is left."""
    for at in range(first, end, step):
        yield Span(at, min(step, end - at), what)


def cut_block(first: int, used_length: int, step: int, idstr: str) -> Iterator[Span]:
    """Spans of a block whose pages lie in their order from the file's byte `first` on."""
    for at in range(0, used_length, step):
        yield Span(first + at, min(step, used_length - at), f"block {short(idstr)} at {at:#x}")


def short(idstr: str) -> str:
    """A block's name as it can stand in a line."""
    return printable(idstr)[:_LONGEST_NAME]
