"""Pages as guests have them: deterministic generators, and hypothesis strategies over them.

A generator is a function of a random.Random and the page size, so a seed repeats a page exactly.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

from hypothesis import strategies as st

PAGE_SIZES = (4096, 8192, 16384, 32768, 65536)
"""Bytes of a page on the machines that QEMU migrates."""

_WORDS = b"the page of a packet on channel block memory guest sync error 0x7f return static int void".split()
_OPCODES = b"\x48\x89\xe5", b"\x48\x8b\x45\xf8", b"\xe8\x00\x00", b"\x0f\x84", b"\xc3\x90", b"\x48\x83\xec\x10"

PageMaker = Callable[[random.Random, int], bytes]


def zero_page(rng: random.Random, page_size: int) -> bytes:
    """Nothing but zero; the engine sends these itself, but a live page can become one."""
    return bytes(page_size)


def constant_page(rng: random.Random, page_size: int) -> bytes:
    """One byte, repeated."""
    return bytes([rng.randrange(1, 256)]) * page_size


def almost_zero_page(rng: random.Random, page_size: int) -> bytes:
    """Zero but for one byte, often the first or the last."""
    page = bytearray(page_size)
    page[rng.choice((0, page_size - 1, rng.randrange(page_size)))] = rng.randrange(1, 256)
    return bytes(page)


def text_page(rng: random.Random, page_size: int) -> bytes:
    """Words."""
    return b" ".join(rng.choices(_WORDS, k=page_size // 3)).ljust(page_size, b".")[:page_size]


def pointer_page(rng: random.Random, page_size: int) -> bytes:
    """64-bit kernel pointers that share their upper half, some null."""
    base = 0xFFFF8880_00000000 | rng.getrandbits(20) << 12
    values = (base + 8 * rng.getrandbits(12) if rng.random() < 0.8 else 0 for _ in range(page_size // 8))
    return struct.pack(f"<{page_size // 8}Q", *values)


def code_page(rng: random.Random, page_size: int) -> bytes:
    """Instructions with random operands between."""
    page = bytearray()
    while len(page) < page_size:
        page += rng.choice(_OPCODES) + rng.randbytes(rng.choice((0, 0, 1, 4)))
    return bytes(page[:page_size])


def random_page(rng: random.Random, page_size: int) -> bytes:
    """What does not compress."""
    return rng.randbytes(page_size)


PAGE_KINDS: dict[str, PageMaker] = {
    "zero": zero_page,
    "constant": constant_page,
    "almost-zero": almost_zero_page,
    "text": text_page,
    "pointers": pointer_page,
    "code": code_page,
    "random": random_page,
}


def mixed_packet(rng: random.Random, page_size: int, count: int) -> bytes:
    """Pages of every kind, in random order."""
    makers = list(PAGE_KINDS.values())
    return b"".join(rng.choice(makers)(rng, page_size) for _ in range(count))


def equal_packet(rng: random.Random, page_size: int, count: int) -> bytes:
    """The same page, `count` times; it does not compress by itself."""
    return random_page(rng, page_size) * count


def one_bit_packet(rng: random.Random, page_size: int, count: int) -> bytes:
    """Pages that differ from each other in one bit."""
    page, pages = text_page(rng, page_size), []
    for _ in range(count):
        copy = bytearray(page)
        copy[rng.randrange(page_size)] ^= 1 << rng.randrange(8)
        pages.append(bytes(copy))
    return b"".join(pages)


def _uniform(maker: PageMaker) -> Callable[[random.Random, int, int], bytes]:
    return lambda rng, page_size, count: b"".join(maker(rng, page_size) for _ in range(count))


PACKET_KINDS: dict[str, Callable[[random.Random, int, int], bytes]] = {
    **{kind: _uniform(maker) for kind, maker in PAGE_KINDS.items()},
    "mixed": mixed_packet,
    "all-equal": equal_packet,
    "one-bit": one_bit_packet,
}
"""By name: the bytes of `count` pages from (rng, page_size, count)."""


def packet(kind: str, seed: int, page_size: int, count: int) -> bytes:
    """The bytes of one packet's pages; the same arguments give the same bytes."""
    return PACKET_KINDS[kind](random.Random(f"{kind} {seed}"), page_size, count)


def pages(page_size: int = 4096) -> st.SearchStrategy[bytes]:
    """A page of any kind; it shrinks towards zero pages."""
    return st.builds(
        lambda kind, seed: PAGE_KINDS[kind](random.Random(seed), page_size),
        st.sampled_from(list(PAGE_KINDS)),
        st.integers(0, 255),
    )


def packets(page_size: int = 4096, max_count: int = 8) -> st.SearchStrategy[bytes]:
    """The bytes of 1 to `max_count` pages."""
    uniform = st.builds(
        packet,
        st.sampled_from(list(PACKET_KINDS)),
        st.integers(0, 255),
        st.just(page_size),
        st.integers(1, max_count),
    )
    return uniform | st.lists(pages(page_size), min_size=1, max_size=max_count).map(b"".join)
