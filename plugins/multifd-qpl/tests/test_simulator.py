"""Every fault that an IAA may have: memory at the destination right or a clear error, counters that add
up, no leaked job."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
from multifd_qpl.method import QplMethod, QplOptions, choose
from multifd_qpl.simulator import Fault, Faults, Machine, SeededFaults, SimulatedIaa
from qpl_ends import PAGE_SIZES, Ends, make_pages

from multifd.errors import CodecError, MethodError
from multifd.method import MethodUnavailable

COUNT = 128
WAIT = QplOptions(busy="wait")
FALLBACK = QplOptions()
BLIND = QplOptions(verify="off")


def check_sums(counters: dict[str, int], pages: int) -> None:
    """The two sums of `multifd_qpl.jobs.COUNTERS`."""
    assert counters["completed"] + counters["software"] + counters["raw"] == pages
    assert counters["busy"] - counters["retried"] + counters["failed"] == counters["fell_back"]
    assert counters["completed"] <= counters["submitted"]
    assert counters["corrupt"] <= counters["failed"]


def send_only(iaa: SimulatedIaa, options: QplOptions = FALLBACK, packets: int = 1) -> dict[str, int]:
    """Packets by a sender on the device; they must decode on a receiver without one. The sender's counters."""
    source = make_pages(4096, COUNT)
    plain = Ends(QplMethod(QplOptions(software="isal", hardware="off")))
    with Ends(QplMethod(options, library=iaa.library)) as ends, plain:
        for _ in range(packets):
            target = bytearray(len(source))
            plain.receive(ends.send(source), target)
            assert target == source
        check_sums(ends.sender.counters, packets * COUNT)
        return dict(ends.sender.counters)


def receive_only(iaa: SimulatedIaa, options: QplOptions = FALLBACK, packets: int = 1) -> dict[str, int]:
    """Packets of a sender without a device, received on the device. The receiver's counters."""
    source = make_pages(4096, COUNT)
    plain = Ends(QplMethod(QplOptions(software="isal", hardware="off")))
    with Ends(QplMethod(options, library=iaa.library)) as ends, plain:
        for _ in range(packets):
            target = bytearray(len(source))
            ends.receive(plain.send(source), target)
            assert target == source
        check_sums(ends.receiver.counters, packets * COUNT)
        return dict(ends.receiver.counters)


BOTH = pytest.mark.parametrize("run", [send_only, receive_only])


@BOTH
def test_sound_device(run) -> None:  # type: ignore[no-untyped-def]
    with SimulatedIaa(Machine(devices=2)) as iaa:
        counters = run(iaa, packets=3)
        assert counters["completed"] > 0
        assert counters["software"] == counters["failed"] == counters["busy"] == 0


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_page_sizes(page_size: int) -> None:
    with SimulatedIaa() as iaa, Ends(QplMethod(library=iaa.library), page_size) as ends:
        source = make_pages(page_size, ends.geometry.page_count)
        target = bytearray(len(source))
        ends.receive(ends.send(source), target)
        assert target == source


@BOTH
def test_small_queue_falls_back(run) -> None:  # type: ignore[no-untyped-def]
    """A page that is refused 1 + retries times goes to software; others stay on the device."""
    with SimulatedIaa(Machine(queue_entries=4, engines=1)) as iaa:
        counters = run(iaa)
        assert counters["fell_back"] >= counters["software"] > 0  # some do not shrink there either
        assert counters["completed"] > 0
        assert counters["retried"] >= 3 * counters["fell_back"]


@BOTH
def test_small_queue_waits(run) -> None:  # type: ignore[no-untyped-def]
    with SimulatedIaa(Machine(queue_entries=4, engines=1)) as iaa:
        counters = run(iaa, WAIT)
        assert counters["software"] == counters["fell_back"] == 0
        assert counters["waited"] > 0
        assert counters["busy"] == counters["retried"] >= counters["waited"]


@pytest.mark.parametrize("retries", [0, 1, 3])
@BOTH
def test_busy_for_ever(run, retries: int) -> None:  # type: ignore[no-untyped-def]
    with SimulatedIaa(faults=Faults(always=Fault.BUSY)) as iaa:
        counters = run(iaa, QplOptions(retries=retries))
        assert counters["submitted"] == counters["completed"] == 0
        assert counters["busy"] == (1 + retries) * counters["fell_back"]
        assert counters["retried"] == retries * counters["fell_back"]


@BOTH
def test_busy_for_ever_ends_the_waiting(run) -> None:  # type: ignore[no-untyped-def]
    """busy=wait gives the device up after the silence limit, once, not for each page."""
    with SimulatedIaa(faults=Faults(always=Fault.BUSY)) as iaa:
        counters = run(iaa, WAIT, packets=2)
        assert counters["waited"] == counters["fell_back"] == 1
        assert 5e9 <= iaa.clock.now() < 11e9  # one limit of 5 s, and the software's time


@BOTH
def test_retries_end_by_the_clock(run) -> None:  # type: ignore[no-untyped-def]
    """However many retries are allowed, a page is not offered for longer than the silence limit."""
    with SimulatedIaa(Machine(refusal_ns=1e9), faults=Faults(always=Fault.BUSY)) as iaa:
        counters = run(iaa, QplOptions(retries=1000))
        assert counters["retried"] == 5
        assert counters["fell_back"] == 1
        assert iaa.clock.now() < 8e9


@pytest.mark.parametrize("options", [QplOptions(retries=1000), WAIT])
def test_an_abort_ends_the_retries(options: QplOptions) -> None:
    abort = bytearray(1)

    class AbortAt(Faults):
        def at(self, number: int) -> Fault | None:
            abort[0] = number >= 7
            return Fault.BUSY

    for hook in ("send", "receive"):
        abort[0] = 0
        with SimulatedIaa(faults=AbortAt()) as iaa, Ends(QplMethod(options, library=iaa.library), abort=abort) as ends:
            source = make_pages(4096, 8)
            with Ends(QplMethod(QplOptions(software="isal", hardware="off"))) as plain:
                payload = plain.send(source)
            with pytest.raises(MethodError, match="torn down"):
                ends.send(source) if hook == "send" else ends.receive(payload, bytearray(len(source)))
            assert iaa.submissions == 8


@pytest.mark.parametrize("status", [500, 501, 502, 503, 6])
def test_no_hardware_at_init(status: int) -> None:
    with SimulatedIaa(faults=Faults(init=lambda _n: status)) as iaa:
        counters = send_only(iaa, QplOptions(software="libqpl"))
        assert counters["submitted"] == 0
        assert iaa.submissions == 0
        with pytest.raises(MethodUnavailable, match=str(status)):
            send_only(iaa, QplOptions(hardware="required"))


def test_init_fails_after_the_probes() -> None:
    """Not all hardware jobs can be made: those that were are finished, software does the work."""
    with SimulatedIaa(faults=Faults(init=lambda n: 101 if n == 40 else 0)) as iaa:
        assert send_only(iaa)["submitted"] == 0
    with (
        SimulatedIaa(faults=Faults(init=lambda n: 101 if n == 40 else 0)) as iaa,
        pytest.raises(MethodUnavailable, match="enough"),
    ):
        send_only(iaa, QplOptions(hardware="required"))


@BOTH
@pytest.mark.parametrize("fault", [Fault.SUBMIT_ERROR, Fault.SECOND_PASS_BUSY, Fault.SHORT])
def test_failing_pages_go_to_software(run, fault: Fault) -> None:  # type: ignore[no-untyped-def]
    script = {2: fault, 5: fault, 6: fault}  # pages that shrink, in submission order
    with SimulatedIaa(faults=Faults(script)) as iaa:
        counters = run(iaa)
        assert counters["failed"] == counters["fell_back"] == counters["software"] == 3
    with SimulatedIaa(faults=Faults(always=fault)) as iaa:
        counters = run(iaa, packets=2)
        assert counters["completed"] == 0
        assert counters["failed"] == counters["fell_back"] > 0


@BOTH
@pytest.mark.parametrize("fault", [Fault.READ_FAULT, Fault.WRITE_FAULT])
def test_page_faults(run, fault: Fault) -> None:  # type: ignore[no-untyped-def]
    """libqpl repairs one fault in a job's life: the second surfaces, the page goes to software, and the job,
    made anew, can have its next one repaired."""
    with SimulatedIaa(faults=Faults(always=fault)) as iaa:
        counters = run(iaa, BLIND, packets=4)
        probes_and_jobs = 2 * (2 + COUNT)
        device_pages = counters["submitted"] // 4
        assert counters["failed"] == counters["fell_back"] == 2 * device_pages
        assert iaa.hardware_inits in (probes_and_jobs // 2 + 2 * device_pages, probes_and_jobs + 2 * device_pages)


@BOTH
def test_job_that_cannot_be_made_anew_is_not_used_again(run) -> None:  # type: ignore[no-untyped-def]
    """After a page fault the init fails: that slot's pages go to software from then on."""
    limit = 2 * (2 + COUNT)
    faults = Faults(always=Fault.READ_FAULT, init=lambda n: 503 if n >= limit else 0)
    with SimulatedIaa(faults=faults) as iaa:
        counters = run(iaa, packets=3)
        assert counters["software"] > 0


@BOTH
@pytest.mark.parametrize("fault", [Fault.CORRUPT, Fault.WRONG])
def test_wrong_bytes_with_status_0(run, fault: Fault) -> None:  # type: ignore[no-untyped-def]
    """They are found at the end that has the device, and only those pages go to software."""
    with SimulatedIaa(faults=Faults({2: fault, 5: fault, 6: fault})) as iaa:
        counters = run(iaa)
        assert counters["failed"] == counters["fell_back"] == counters["software"] == 3
        found_by_decoding = run is send_only and fault is Fault.CORRUPT
        assert counters["corrupt"] == (0 if found_by_decoding else 3)
        assert counters["completed"] > 0
    with SimulatedIaa(faults=Faults(always=fault)) as iaa:
        counters = run(iaa, packets=3)
        assert counters["completed"] == 0
        assert counters["failed"] == counters["fell_back"] > 0


@pytest.mark.parametrize("page_size", PAGE_SIZES)
@pytest.mark.parametrize("fault", [Fault.CORRUPT, Fault.WRONG])
def test_wrong_bytes_at_both_ends(fault: Fault, page_size: int) -> None:
    """The CRC is that of a whole page of any size."""
    with (
        SimulatedIaa(faults=SeededFaults(page_size, 0.5, (fault,))) as iaa,
        Ends(QplMethod(library=iaa.library), page_size) as ends,
    ):
        source = make_pages(page_size, ends.geometry.page_count)
        for _ in range(2):
            target = bytearray(len(source))
            ends.receive(ends.send(source), target)
            assert target == source
        for counters in (ends.sender.counters, ends.receiver.counters):
            check_sums(counters, 2 * ends.geometry.page_count)
            assert counters["completed"] > 0
            assert counters["failed"] > 0


def test_only_verification_finds_wrong_bytes() -> None:
    """With verify=off, as QEMU, what is no deflate is an error at the destination, and the rest goes unseen."""
    with SimulatedIaa(faults=Faults({2: Fault.CORRUPT})) as iaa, pytest.raises(CodecError, match="page 2"):
        send_only(iaa, BLIND)
    for run in (send_only, receive_only):
        with SimulatedIaa(faults=Faults({2: Fault.WRONG})) as iaa, pytest.raises(AssertionError):
            run(iaa, BLIND)


def test_a_library_without_crc_is_not_verified_and_says_so() -> None:
    with SimulatedIaa() as iaa:
        without = replace(iaa.library, has_crc=False)
        assert "not verified" in choose(FALLBACK, without).reason
        assert choose(BLIND, without).reason == choose(FALLBACK, iaa.library).reason == ""
        with Ends(QplMethod(library=without)) as ends:
            ends.send(make_pages(4096, COUNT))
            assert ends.sender.counters["submitted"] == iaa.submissions


class BusyFrom(Faults):
    """The device takes a number of submissions and refuses the rest."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self._number = number

    def at(self, number: int) -> Fault | None:
        return Fault.BUSY if number >= self._number else None


@pytest.mark.parametrize("options", [FALLBACK, WAIT])
def test_no_room_for_the_verification(options: QplOptions) -> None:
    """What the device made but could not verify is not sent: software makes it again."""
    with SimulatedIaa(faults=BusyFrom(COUNT + 5)) as iaa:
        counters = send_only(iaa, options)
        assert counters["completed"] == 5
        assert counters["corrupt"] == 0
        assert counters["software"] > 0
        assert iaa.clock.now() < 6e9  # one silence limit of 5 s at most, not one for each page


@pytest.mark.parametrize(
    "fault", [Fault.SUBMIT_ERROR, Fault.SECOND_PASS_BUSY, Fault.READ_FAULT, Fault.WRITE_FAULT, Fault.SHORT]
)
def test_verification_that_fails(fault: Fault) -> None:
    """Faults of every job after the packet's compressions: those pages go to software."""

    class Later(Faults):
        def at(self, number: int) -> Fault | None:
            return fault if number >= COUNT else None

    with SimulatedIaa(faults=Later()) as iaa:
        counters = send_only(iaa)
        repaired = fault in (Fault.READ_FAULT, Fault.WRITE_FAULT)
        assert (counters["completed"] > 0) == repaired
        assert counters["failed"] == counters["fell_back"] == counters["software"]


def test_verification_that_is_never_answered() -> None:
    with SimulatedIaa(faults=Faults({COUNT + 10: Fault.SILENT})) as iaa:
        counters = send_only(iaa, packets=2)
        assert counters["completed"] == 0
        assert counters["software"] + counters["raw"] == 2 * COUNT


@pytest.mark.parametrize("last", [COUNT - 1, COUNT + 10])
def test_abort_around_the_verification(last: int) -> None:
    """With the last compression and amid the verifications: no job stays in flight."""
    abort = bytearray(1)

    class AbortAt(Faults):
        def at(self, number: int) -> Fault | None:
            abort[0] = number >= last
            return None

    with SimulatedIaa(faults=AbortAt()) as iaa, Ends(QplMethod(library=iaa.library), abort=abort) as ends:
        with pytest.raises(MethodError, match="torn down"):
            ends.send(make_pages(4096, COUNT))
        assert iaa.submissions == last + 1


def test_silent_device_at_the_sender() -> None:
    """The packet is done again in software, and all later ones; the buffers it may write to are left alone."""
    with SimulatedIaa(faults=Faults({10: Fault.SILENT})) as iaa:
        counters = send_only(iaa, packets=3)
        assert counters["completed"] == 0
        assert counters["failed"] > 0
        assert iaa.clock.now() < 6e9 + 4 * COUNT * Machine().software_ns  # one limit of 5 s, not one for each page


def test_device_that_falls_silent_later() -> None:
    with SimulatedIaa(faults=Faults({COUNT + 10: Fault.SILENT})) as iaa:
        counters = send_only(iaa, BLIND, packets=3)
        assert 0 < counters["completed"] < COUNT
        assert counters["software"] > COUNT


def test_silent_device_at_the_receiver() -> None:
    """It may still write to its own slots, not to the pages: the packet is done again in software."""
    with SimulatedIaa(faults=Faults({10: Fault.SILENT})) as iaa:
        counters = receive_only(iaa, packets=3)
        assert counters["completed"] == 0
        assert counters["failed"] > 0
        assert iaa.clock.now() < 6e9 + 4 * COUNT * Machine().software_ns


@pytest.mark.parametrize("options", [FALLBACK, WAIT])
def test_abort_while_the_device_is_silent(options: QplOptions) -> None:
    """The abort flag ends the waiting long before the silence limit."""
    abort = bytearray(1)

    class AbortLater(Faults):
        def at(self, number: int) -> Fault | None:
            abort[0] = number == 20
            return Fault.SILENT if number == 3 else None

    with SimulatedIaa(faults=AbortLater()) as iaa, Ends(QplMethod(options, library=iaa.library), abort=abort) as ends:
        with pytest.raises(MethodError, match="torn down"):
            ends.send(make_pages(4096, COUNT))
        assert iaa.clock.now() < 1e9


MILD = tuple(fault for fault in Fault if fault is not Fault.SILENT)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("options", [FALLBACK, WAIT])
def test_faults_by_chance(seed: int, options: QplOptions) -> None:
    """Both ends on devices that do everything wrong that can be made good."""
    machine, faults = Machine(devices=2, queue_entries=16), SeededFaults(seed, 0.3, MILD)
    with (
        SimulatedIaa(machine, faults=faults, seed=seed) as iaa,
        Ends(QplMethod(options, library=iaa.library)) as ends,
    ):
        source = make_pages(4096, COUNT, seed)
        for _ in range(3):
            target = bytearray(len(source))
            ends.receive(ends.send(source), target)
            assert target == source
        check_sums(ends.sender.counters, 3 * COUNT)
        check_sums(ends.receiver.counters, 3 * COUNT)


def test_two_channels_at_the_same_time() -> None:
    with SimulatedIaa(Machine(queue_entries=32), faults=SeededFaults(5, 0.1, MILD)) as iaa:
        failures = []

        def channel(seed: int) -> None:
            try:
                with Ends(QplMethod(library=iaa.library)) as ends:
                    source = make_pages(4096, COUNT, seed)
                    for _ in range(3):
                        target = bytearray(len(source))
                        ends.receive(ends.send(source), target)
                        assert target == source
            except BaseException as e:
                failures.append(e)

        threads = [threading.Thread(target=channel, args=(seed,), daemon=True) for seed in (1, 2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not failures
