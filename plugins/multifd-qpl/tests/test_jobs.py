"""Jobs on the stand-in libqpl, its hardware path switched on: the real call path, and who finishes what."""

from __future__ import annotations

import ctypes

import pytest
from multifd_qpl._batch import lib
from multifd_qpl.method import QplMethod, QplOptions
from qpl_ends import PAGE_SIZES, Ends, make_pages


@pytest.fixture
def hardware(standin_library: ctypes.CDLL) -> ctypes.CDLL:
    """The stand-in with a device."""
    standin_library.standin_set_hardware(0)
    return standin_library


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_hardware_round_trip(hardware: ctypes.CDLL, page_size: int) -> None:
    with Ends(QplMethod(QplOptions(hardware="required")), page_size) as ends:
        count = ends.geometry.page_count
        source, target = make_pages(page_size, count), bytearray(page_size * count)
        for _ in range(3):
            ends.receive(ends.send(source), target)
            assert target == source
        for counters in (ends.sender.counters, ends.receiver.counters):
            assert counters["completed"] + counters["raw"] == 3 * count
            assert counters["software"] == counters["failed"] == counters["busy"] == 0
        # A software job and a hardware job for each page slot, in each direction.
        assert hardware.standin_live_jobs() == 2 * (1 + count)
    assert hardware.standin_live_jobs() == 0


@pytest.mark.parametrize("op", [lib.MQ_COMPRESS, lib.MQ_DECOMPRESS])
def test_damage_on_the_way_to_memory_is_found(hardware: ctypes.CDLL, op: int) -> None:
    """A flipped bit with status 0: what was damaged goes to software at that end, the memory is right."""
    with Ends(QplMethod()) as ends:
        hardware.standin_set_damage(op)  # after the self-test, which would find it
        source, target = make_pages(4096, 50), bytearray(4096 * 50)
        ends.receive(ends.send(source), target)
        assert target == source
        damaged, sound = (ends.sender, ends.receiver) if op == lib.MQ_COMPRESS else (ends.receiver, ends.sender)
        assert damaged.counters["completed"] <= 1  # a flipped bit of a distance may mean the same bytes
        assert damaged.counters["failed"] == damaged.counters["software"] > 0
        assert 0 < damaged.counters["corrupt"] <= damaged.counters["failed"]
        assert sound.counters["failed"] == 0


def test_probe_failure_is_normal(standin_library: ctypes.CDLL) -> None:
    with Ends(QplMethod(QplOptions(software="libqpl"))) as ends:
        assert standin_library.standin_live_jobs() == 2
        ends.send(make_pages(4096, 4))


def test_setup_that_fails_leaves_no_job(hardware: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe succeeds, job 50 does not: everything made so far is finished."""
    from multifd_qpl import jobs

    made = []

    class Scarce(jobs.Job):
        def __init__(self, *arguments: object) -> None:
            if len(made) == 50:
                raise MemoryError("out of memory for jobs")
            super().__init__(*arguments)  # type: ignore[arg-type]
            made.append(self)

    monkeypatch.setattr(jobs, "Job", Scarce)
    with pytest.raises(MemoryError), Ends(QplMethod()):
        pass
    assert len(made) == 50
    assert hardware.standin_live_jobs() == 0


def test_channels_do_not_share_jobs(hardware: ctypes.CDLL) -> None:
    method = QplMethod()
    with Ends(method) as one, Ends(method) as other:
        assert one.sender.state is not other.sender.state
        assert one.sender.state is not one.receiver.state
        source = make_pages(4096, 20)
        first, second = one.send(source), other.send(source)
        target = bytearray(len(source))
        other.receive(first, target)
        assert target == source
        one.receive(second, target)
        assert target == source


@pytest.mark.parametrize("engine", ["isal", "libqpl", "iaa"])
def test_abort_ends_a_batch(hardware: ctypes.CDLL, engine: str) -> None:
    from multifd.errors import MethodError

    options = QplOptions(hardware="required") if engine == "iaa" else QplOptions(hardware="off", software=engine)
    with Ends(QplMethod(options)) as ends:
        source = make_pages(4096, 8)
        payload = ends.send(source)
        ends.abort[0] = 1
        with pytest.raises(MethodError, match="torn down"):
            ends.send(source)
        with pytest.raises(MethodError, match="torn down"):
            ends.receive(payload, bytearray(len(source)))


def test_memory_of_a_channel(hardware: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `BatchEngine` says: about 27 MB with a device, of which the slots are 1.6; 2.4 without."""
    from multifd_qpl import memory

    made: list[int] = []
    unmapper = memory._unmapper
    monkeypatch.setattr(memory, "_unmapper", lambda nbytes: made.append(nbytes) or unmapper(nbytes))
    for page_size in PAGE_SIZES:
        for options, most in ((QplOptions(), 27.2e6), (QplOptions(hardware="off", software="libqpl"), 2.5e6)):
            method = QplMethod(options)
            ends = Ends(method, page_size)
            made.clear()
            method.send_setup(ends.sender)
            assert 0 < sum(made) <= most
            method.send_cleanup(ends.sender)
