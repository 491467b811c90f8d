"""The simulator catches each misuse of a library's jobs."""

from __future__ import annotations

import threading

import pytest
from multifd_qpl._batch import ffi, lib
from multifd_qpl.jobs import Job
from multifd_qpl.simulator import Fault, Faults, Machine, Misuse, SimulatedIaa


def prepared(job: Job) -> list[object]:
    """Give a job a page; the result must live until it is done."""
    source, target = ffi.new("uint8_t[4096]"), ffi.new("uint8_t[4096]")
    p = job.pointer
    p.op, p.level, p.flags = lib.MQ_COMPRESS, 1, lib.MQ_PAGE_FLAGS
    p.next_in_ptr, p.available_in, p.next_out_ptr, p.available_out = source, 4096, target, 4095
    return [source, target]


def test_catches_wait_after_failed_submit() -> None:
    with pytest.raises(Misuse, match="waited for"), SimulatedIaa(faults=Faults(always=Fault.BUSY)) as iaa:
        job = Job(iaa.library, lib.MQ_HARDWARE)
        _kept = prepared(job)
        assert iaa.library.table.submit_job(job.pointer) == 5
        iaa.library.table.check_job(job.pointer)
        job.finish()


def test_catches_use_after_failed_init() -> None:
    with pytest.raises(Misuse, match="init failed"), SimulatedIaa(faults=Faults(init=lambda _n: 503)) as iaa:
        memory = ffi.new("uint8_t[4096]")
        pointer = ffi.cast("qpl_job *", memory)
        assert iaa.library.table.init_job(lib.MQ_HARDWARE, pointer) == 503
        iaa.library.table.submit_job(pointer)


def test_catches_a_job_used_by_two_threads() -> None:
    with pytest.raises(Misuse, match="two threads"), SimulatedIaa() as iaa:
        job = Job(iaa.library, lib.MQ_SOFTWARE)
        _kept = prepared(job)
        thread = threading.Thread(target=lambda: iaa.library.table.execute_job(job.pointer))
        thread.start()
        thread.join(10)
        job.finish()


def test_catches_double_finish() -> None:
    with pytest.raises(Misuse, match="twice"), SimulatedIaa() as iaa:
        job = Job(iaa.library, lib.MQ_SOFTWARE)
        job.finish()
        job.finish()  # harmless
        iaa.library.table.fini_job(job.pointer)


def test_catches_finish_in_flight() -> None:
    with pytest.raises(Misuse, match="works on it"), SimulatedIaa() as iaa:
        job = Job(iaa.library, lib.MQ_HARDWARE)
        _kept = prepared(job)
        assert iaa.library.table.submit_job(job.pointer) == 0
        job.finish()


def test_catches_a_leaked_job() -> None:
    with pytest.raises(Misuse, match="never finished"), SimulatedIaa() as iaa:
        _job = Job(iaa.library, lib.MQ_SOFTWARE)


def test_catches_a_job_never_made() -> None:
    with pytest.raises(Misuse, match="never made"), SimulatedIaa() as iaa:
        memory = ffi.new("uint8_t[4096]")
        iaa.library.table.execute_job(ffi.cast("qpl_job *", memory))


def test_jobs_end_out_of_order() -> None:
    """Two jobs that were submitted one after the other end the other way round, for some seed."""
    ends = []
    for seed in range(8):
        with SimulatedIaa(Machine(engines=2), seed=seed) as iaa:
            jobs = [Job(iaa.library, lib.MQ_HARDWARE) for _ in range(2)]
            kept = [prepared(job) for job in jobs]
            for job in jobs:
                assert iaa.library.table.submit_job(job.pointer) == 0
            while all(iaa.library.table.check_job(job.pointer) == 1 for job in reversed(jobs)):
                iaa.clock.advance(iaa.clock.now() + 10)
            done = [record.state == "answered" for record in iaa._jobs.values()]
            ends.append(done == [False, True])
            iaa.clock.advance(1e9)
            for job, is_done in zip(jobs, done, strict=True):
                assert is_done or iaa.library.table.check_job(job.pointer) == 0
                job.finish()
            del kept
    assert set(ends) == {True, False}
