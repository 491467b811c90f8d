"""A device that does not answer keeps what it was given, and was given nothing of anybody else's."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
from multifd_qpl import memory
from multifd_qpl._batch import ffi, lib
from multifd_qpl.method import QplMethod, QplOptions
from multifd_qpl.selftest import check_hardware
from multifd_qpl.simulator import Fault, Faults, SimulatedIaa
from qpl_ends import PAGE_SIZES, Ends, make_pages

from multifd.errors import MethodError
from multifd.pages import Geometry


class SilentFrom(Faults):
    """The device answers nothing from a submission on."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self._first = first

    def at(self, number: int) -> Fault | None:
        return Fault.SILENT if number >= self._first else None


Range = tuple[int, int]


class Watched(SimulatedIaa):
    """Remembers the ranges of the process's memory that jobs were given: address, bytes."""

    def __init__(self, faults: Faults) -> None:
        super().__init__(faults=faults)
        self.reads: list[Range] = []
        self.writes: list[Range] = []

    def submit_job(self, pointer: Any) -> int:
        self.reads.append((address(pointer.next_in_ptr), pointer.available_in))
        self.writes.append((address(pointer.next_out_ptr), pointer.available_out))
        return super().submit_job(pointer)

    def write_late(self) -> None:
        """What a device may do at any time until the process ends."""
        jobs = [(at, 240) for at, job in self._jobs.items() if job.is_silent]
        assert jobs
        for start, length in self.writes + jobs:
            ffi.memmove(ffi.cast("uint8_t *", start), b"\x5a" * length, length)


def address(pointer: Any) -> int:
    return int(ffi.cast("uintptr_t", pointer))


def overlaps(ranges: list[Range], buffer: bytearray | bytes) -> bool:
    start = address(ffi.from_buffer(buffer))
    return any(at < start + len(buffer) and start < at + length for at, length in ranges)


@pytest.mark.parametrize("page_size", PAGE_SIZES)
@pytest.mark.parametrize("verify", ["on", "off"])
def test_writes_after_the_end_harm_nothing(page_size: int, verify: str) -> None:
    """At both ends: the packets are right, and late writes land in memory that nobody else has."""
    options = QplOptions(verify=verify)
    with Watched(SilentFrom(3)) as iaa:
        count = Geometry.of(page_size).page_count
        source, target = make_pages(page_size, count), bytearray(page_size * count)
        with Ends(QplMethod(options, library=iaa.library), page_size) as sender:
            payload = sender.send(source)
            iov = list(sender.sender.iov)
        with Ends(QplMethod(options, library=iaa.library), page_size) as receiver:
            receiver.receive(payload, target)
        ranges = iaa.reads + iaa.writes
        for buffer in (source, target, payload):
            assert not overlaps(ranges, buffer)
        del sender, receiver
        gc.collect()
        iaa.write_late()
        fresh = [bytearray(page_size * count) for _ in range(8)]
        iaa.write_late()
        assert not any(any(buffer) for buffer in fresh)
        assert target == source
        assert b"".join(iov) == payload


@pytest.mark.parametrize("first", [0, 1])
def test_writes_after_the_self_test_harm_nothing(first: int) -> None:
    """The device falls silent at the compression, or at the decompression, of the self-test's page."""
    with Watched(SilentFrom(first)) as iaa:
        assert check_hardware(iaa.library).status == "silent"
        gc.collect()
        fresh = [bytearray(4096) for _ in range(8)]
        iaa.write_late()
        assert not any(any(buffer) for buffer in fresh)


def test_an_abort_leaves_the_same() -> None:
    """Jobs in flight at an abort get a moment; that says nothing of the device."""
    abort = bytearray(1)

    class Abort(Faults):
        def at(self, number: int) -> Fault | None:
            abort[0] = number == 20
            return Fault.SILENT if number == 3 else None

    with Watched(Abort()) as iaa:
        with Ends(QplMethod(library=iaa.library), abort=abort) as ends:
            engine = getattr(ends.sender.state, "engine", ends.sender.state)  # it may be watched
            with pytest.raises(MethodError, match="torn down"):
                ends.send(make_pages(4096, 128))
            assert not engine._channel.silent
        del engine, ends
        gc.collect()
        iaa.write_late()


def test_only_what_is_stuck_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mappings of a sound channel end with it; of a stuck one, its slots and its stuck jobs stay."""
    made, gone = [], []

    def unmapper(nbytes: int) -> Callable[[Any], None]:
        made.append(nbytes)
        return lambda _start: gone.append(nbytes)  # stays mapped here, too: this test only counts

    monkeypatch.setattr(memory, "_unmapper", unmapper)
    for faults, stuck_jobs in ((Faults(), 0), (SilentFrom(0), 128)):
        made.clear()
        gone.clear()
        with SimulatedIaa(faults=faults) as iaa:
            with Ends(QplMethod(library=iaa.library)) as ends:
                ends.send(make_pages(4096, 128))
            del ends
            gc.collect()
            stay = list(made)
            for nbytes in gone:
                stay.remove(nbytes)
            slots = [3 * 128 * lib.mq_slot_bytes(4096)] * bool(stuck_jobs)
            assert sorted(stay) == sorted([4096] * stuck_jobs + slots)
