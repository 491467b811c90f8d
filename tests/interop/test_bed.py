"""The test bed itself: the guest's invariant, that its checker can fail, and QEMU to QEMU without us."""

from __future__ import annotations

import struct
from itertools import product

import pytest
from interop.guest import NOTE, PAGE, BrokenGuest, Guest, State, check, passes_printed
from interop.pairwise import pairwise

GUEST = Guest(pages=64)


def dump(passes: int, page: int) -> bytearray:
    """RAM as the guest leaves it, just before it works on `page` in pass `passes`."""
    ram = bytearray(GUEST.first + 2 * GUEST.size)
    struct.pack_into("<4sI", ram, NOTE, b"mfdg", passes * GUEST.pages + page)
    for i in range(GUEST.pages):
        value = passes if i < page else passes - 1
        at = GUEST.first + i * PAGE
        struct.pack_into("<I", ram, at, value)
        struct.pack_into("<I", ram, at + PAGE - 4, value)
        struct.pack_into("<I", ram, at + GUEST.size, value if value % 2 else 0)
    return ram


@pytest.mark.parametrize("passes", [1, 2, 7])
@pytest.mark.parametrize("page", [0, 1, 63])
def test_what_the_guest_leaves_is_right(passes, page):
    assert check(dump(passes, page), GUEST) == State(passes, page)


@pytest.mark.parametrize("where", [0, PAGE - 4, GUEST.size], ids=["start", "end", "blink"])
@pytest.mark.parametrize("page", [0, 9, 31, 63])
def test_a_page_that_is_lost_stale_or_from_the_future_is_found(page, where):
    good = dump(7, 31)
    for wrong in (0, 5, 8):
        ram = bytearray(good)
        struct.pack_into("<I", ram, GUEST.first + page * PAGE + where, wrong)
        if ram != good:
            with pytest.raises(BrokenGuest, match=r"pages are wrong|in work"):
                check(ram, GUEST)


def test_a_guest_that_never_ran_is_found():
    with pytest.raises(BrokenGuest, match="has not started"):
        check(bytes(16 << 20), GUEST)


def test_what_the_guest_prints():
    assert passes_printed(b"...") == 3
    with pytest.raises(BrokenGuest):
        passes_printed(b"..!")


def test_pairwise_keeps_every_pair():
    cases = [case for case in product("ab", [1, 2, 3], "xyz", [False, True]) if case[:2] != ("a", 3)]
    chosen = pairwise(cases)
    assert len(chosen) < len(cases) / 2
    for i, j in [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]:
        assert {(c[i], c[j]) for c in chosen} == {(c[i], c[j]) for c in cases}


ROUTES = [
    ("system", "system", "pc"),
    ("newer", "newer", "q35"),
    ("system", "newer", "pc-q35-7.2"),
    ("newer", "system", "pc-i440fx-7.2"),
]


@pytest.mark.parametrize(("source", "destination", "machine"), ROUTES)
def test_qemu_to_qemu(qemu, source, destination, machine):
    """A running guest arrives whole and runs on: what the other tests expect of us, done by QEMU alone."""
    guest = Guest()
    options = {"machine": machine, "disk": guest.disk()}
    there = qemu("destination", 24, destination, is_incoming=True, **options)
    there.multifd("zstd", 2)
    here = qemu("source", 24, source, is_paused=False, **options)
    here.wait(lambda: passes_printed(here.console()) > 1, "second pass of the guest")
    here.multifd("zstd", 2)
    here("migrate", uri=there.listen("tcp:127.0.0.1:0"))
    here.wait_migrated()
    there.wait_migrated()
    state = check(here.ram(), guest)
    assert there.ram() == here.ram()
    there("cont")
    there.wait(lambda: passes_printed(there.console()) > 2, "pass of the guest at the destination")
    there("stop")
    assert check(there.ram(), guest).passes > state.passes
