"""A device that fails during a migration: what the operator is told, and that ``hardware=required`` holds."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import threading
import zlib
from typing import Any

import pytest
from multifd_qpl import method as qpl_method
from multifd_qpl._batch import ffi, lib
from multifd_qpl.jobs import SILENCE_S
from multifd_qpl.method import QplMethod, QplOptions
from multifd_qpl.page_codec import Deflate
from multifd_qpl.selftest import check_hardware
from multifd_qpl.simulator import Fault, Faults, Machine, SimulatedIaa
from multifd_qpl.watch import silence_s
from qpl_ends import Ends, make_pages

from multifd import receive, send
from multifd.errors import MethodError, MultifdError
from multifd.method import MethodUnavailable, SendParams

COUNT = 128
PAGES = bytearray(make_pages(4096, 3) * 43)[: COUNT * 4096]  # every page shrinks


EMPTY_BLOCK = bytes.fromhex("000000ffff")  # a stored block of no bytes, not the last one


def deflate(page: bytes) -> bytes:
    deflater = zlib.compressobj(1, zlib.DEFLATED, -12)
    return deflater.compress(page) + deflater.flush()


def send_packets(iaa: SimulatedIaa, options: QplOptions, packets: int) -> dict[str, int]:
    with Ends(QplMethod(options, library=iaa.library)) as ends:
        for _ in range(packets):
            ends.send(PAGES)
        return dict(ends.sender.counters)


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "multifd.qpl" and r.levelno == logging.WARNING]


TROUBLES = {
    "answers nothing": (Faults({10: Fault.SILENT}), 1),
    "failed 128 of": (Faults(always=Fault.SUBMIT_ERROR), 1),
    "failed 127 of": (Faults({0: Fault.BUSY}, always=Fault.SHORT), 1),
    "took no page": (Faults(always=Fault.BUSY), 64),
}


@pytest.mark.parametrize("word", TROUBLES)
def test_required_holds_during_the_whole_migration(word: str) -> None:
    faults, packets = TROUBLES[word]
    options = QplOptions(hardware="required", retries=0, verify="off")
    with (
        SimulatedIaa(faults=faults) as iaa,
        pytest.raises(MethodUnavailable, match=rf"hardware=required.*channel 3.*{word}.*multifd-iaa status"),
    ):
        send_packets(iaa, options, packets)


@pytest.mark.parametrize("word", TROUBLES)
def test_otherwise_it_goes_on_and_says_so_once(word: str, caplog: pytest.LogCaptureFixture) -> None:
    faults, packets = TROUBLES[word]
    with SimulatedIaa(faults=faults) as iaa:
        counters = send_packets(iaa, QplOptions(retries=0, verify="off"), packets + 20)
    assert counters["software"] > 0
    found = [line for line in lines(caplog) if word in line]
    assert len(found) == 1
    assert "NUMA" in found[0]
    assert "numactl" in found[0]
    assert counters["silent"] == (word == "answers nothing")


def test_waiting_in_vain_breaks_required() -> None:
    options = QplOptions(busy="wait", hardware="required", verify="off")
    with SimulatedIaa(faults=Faults(always=Fault.BUSY)) as iaa, pytest.raises(MethodUnavailable, match="takes nothing"):
        send_packets(iaa, options, 1)


def test_a_full_device_breaks_nothing_and_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """More than half refused, as at twice the threads that the queue has room for: one line, no end."""

    class Half(Faults):
        def at(self, number: int) -> Fault | None:
            return Fault.BUSY if number % 8 < 5 else None

    with SimulatedIaa(faults=Half()) as iaa:
        counters = send_packets(iaa, QplOptions(hardware="required", retries=0, verify="off"), 20)
    assert counters["completed"] > 0
    assert counters["silent"] == 0
    assert len(lines(caplog)) == 1
    assert "did not do" in lines(caplog)[0]
    assert "numactl" in lines(caplog)[0]


def test_one_line_for_all_channels(caplog: pytest.LogCaptureFixture) -> None:
    with SimulatedIaa(faults=Faults(always=Fault.SUBMIT_ERROR)) as iaa:
        method = QplMethod(QplOptions(), library=iaa.library)
        with Ends(method) as one, Ends(method) as other:
            one.send(PAGES)
            other.send(PAGES)
    assert len(lines(caplog)) == 1


def test_silence_at_the_receiver_is_counted() -> None:
    with (
        SimulatedIaa(faults=Faults({COUNT + 10: Fault.SILENT})) as iaa,
        Ends(QplMethod(QplOptions(verify="off"), library=iaa.library)) as ends,
    ):
        payload = ends.send(PAGES)
        with contextlib.suppress(MethodError):  # whether it goes on is the jobs' affair
            ends.receive(payload, bytearray(len(PAGES)))
        assert ends.receiver.counters["silent"] == 1


def test_a_senders_odd_streams_are_not_the_devices_failure(caplog: pytest.LogCaptureFixture) -> None:
    """Streams that a device refuses, though they are right: software decodes them, and our own page tells."""

    class Particular(Deflate):
        """Refuses streams with history beyond 4 KiB in spirit: all that are marked by an empty block in front."""

        def run(self, job: Any, fault: Fault | None, *, on_device: bool) -> int:
            if on_device and job.op == lib.MQ_DECOMPRESS and ffi.buffer(job.next_in_ptr, 5)[:] == EMPTY_BLOCK:
                return 217
            return super().run(job, fault, on_device=on_device)

    streams = [EMPTY_BLOCK + deflate(PAGES[i : i + 4096]) for i in range(0, len(PAGES), 4096)]
    payload = b"".join(len(s).to_bytes(4, "big") for s in streams) + b"".join(streams)
    with (
        SimulatedIaa(codec=Particular()) as iaa,
        Ends(QplMethod(QplOptions(hardware="required"), library=iaa.library)) as ends,
    ):
        for _ in range(5):
            target = bytearray(len(PAGES))
            ends.receive(payload, target)
            assert target == PAGES
        assert ends.receiver.counters["failed"] == 5 * COUNT
    assert not any("failed" in line for line in lines(caplog))


def test_a_receivers_failing_device_breaks_required() -> None:
    """Our own page fails as well."""

    class Later(Faults):
        def at(self, number: int) -> Fault | None:
            return Fault.SHORT if number >= COUNT else None

    with (
        SimulatedIaa(faults=Later()) as iaa,
        Ends(QplMethod(QplOptions(hardware="required", verify="off"), library=iaa.library)) as ends,
    ):
        payload = ends.send(PAGES)
        with pytest.raises(MethodUnavailable, match="failed 128 of"):
            ends.receive(payload, bytearray(len(PAGES)))


def test_silence_follows_the_migrations_timeout() -> None:
    assert silence_s(60) == silence_s(600) == SILENCE_S
    assert silence_s(4) == 2

    with SimulatedIaa(faults=Faults({10: Fault.SILENT})) as iaa:
        ends = Ends(QplMethod(QplOptions(verify="off"), library=iaa.library))
        one = ends.sender
        ends.sender = SendParams(one.channel, one.geometry, one.abort, one.pages, timeout_s=4.0)
        with ends:
            ends.send(PAGES)
        assert 2e9 <= iaa.clock.now() < 2e9 + 2 * COUNT * Machine().software_ns


def test_a_thread_without_a_device_is_told_where_there_is_one(
    standin_library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """503, as libqpl answers a thread on another socket, although the kernel shows a usable queue."""
    standin_library.standin_set_hardware(503)
    monkeypatch.setattr(qpl_method, "numa_advice", lambda: "on NUMA node 1: `numactl --cpunodebind=1`")
    with Ends(QplMethod()) as ends:
        ends.send(PAGES)
        assert ends.sender.counters["no_device"] == ends.receiver.counters["no_device"] == 1
    assert len(lines(caplog)) == 1
    assert "numactl --cpunodebind=1" in lines(caplog)[0]
    with pytest.raises(MethodUnavailable, match=r"503.*numactl"), Ends(QplMethod(QplOptions(hardware="required"))):
        pass


def test_a_machine_without_iaa_is_told_nothing(standin_library: ctypes.CDLL, caplog: pytest.LogCaptureFixture) -> None:
    standin_library.standin_set_hardware(501)
    with Ends(QplMethod()) as ends:
        ends.send(PAGES)
        assert ends.sender.counters["no_device"] == ends.sender.counters["silent"] == 0
    assert lines(caplog) == []


@pytest.mark.parametrize(
    ("faults", "status", "word"),
    [
        (Faults(), "passed", ""),
        (Faults(init=lambda _n: 503), "none", "503"),
        (Faults(always=Fault.BUSY), "failed", "busy for 1 s"),
        (Faults(always=Fault.SUBMIT_ERROR), "failed", "refused"),
        (Faults(always=Fault.READ_FAULT), "failed", "page fault while reading"),
        (Faults({0: Fault.SHORT}), "failed", "gives 0 bytes"),
        (Faults({0: Fault.CORRUPT}), "failed", "does not inflate"),
        (Faults({0: Fault.WRONG}), "failed", "other bytes"),
        (Faults({1: Fault.WRONG}), "failed", "decompresses a page to other bytes"),
        (Faults({0: Fault.SILENT}), "silent", "did not answer for 1 s"),
        (Faults({1: Fault.SILENT}), "silent", "decompression"),
    ],
)
def test_self_test_of_a_device(faults: Faults, status: str, word: str) -> None:
    with SimulatedIaa(faults=faults) as iaa:
        test = check_hardware(iaa.library)
        assert test.status == status
        assert word in test.reason
        assert test.ok == test.has_crc == (status == "passed")
        assert iaa.clock.now() < 2e9
        if status == "silent":
            submissions = iaa.submissions
            assert "not asked again" in check_hardware(iaa.library).reason
            assert iaa.submissions == submissions


def test_a_damaged_device_is_not_used(standin_library: ctypes.CDLL) -> None:
    """The self-test finds it before a migration does."""
    standin_library.standin_set_hardware(0)
    standin_library.standin_set_damage(1)
    available = QplMethod.availability(QplOptions())
    assert available.engine != "iaa"
    assert "the device's stream" in available.reason
    with pytest.raises(MethodUnavailable, match="required"), Ends(QplMethod(QplOptions(hardware="required"))):
        pass


def test_a_whole_migration_ends_with_the_reason() -> None:
    """Over a socket: the sender's error names the device; the receiver ends too."""
    listening, address, outcome = threading.Event(), [], []

    def listen(uri: Any) -> None:
        address.append(uri)
        listening.set()

    def run() -> None:
        try:
            receive("tcp:127.0.0.1:0", bytearray(len(PAGES) * 8), timeout=30, on_listening=listen)
        except MultifdError as e:
            outcome.append(e)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert listening.wait(60)
    faults = Faults({COUNT + 10: Fault.SILENT})
    with SimulatedIaa(faults=faults) as iaa:
        method = QplMethod(QplOptions(hardware="required", verify="off"), library=iaa.library)
        with pytest.raises(MethodUnavailable, match=r"hardware=required.*answers nothing"):
            send(PAGES * 8, address[0], method, channels=1, timeout=30)
    thread.join(60)
    assert len(outcome) == 1
