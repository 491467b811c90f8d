"""A simulated IAA behind the functions of libqpl, with every fault that the real one may have.

Rules of this file: the plugin's own jobs and C code run unchanged; only the functions of the
table and its clock are ours. Time is virtual, in nanoseconds. Using a job wrongly is recorded and
raised when the simulation ends, never tolerated: a callback cannot raise through C.

One simulated machine is active in a process at a time.
"""

from __future__ import annotations

import heapq
import random
import threading
from collections import deque
from dataclasses import dataclass, field
from threading import get_ident
from types import TracebackType
from typing import Any, Self

from multifd_qpl._batch import ffi, lib
from multifd_qpl.faults import Fault, Faults, SeededFaults
from multifd_qpl.library import Library
from multifd_qpl.machine import Machine
from multifd_qpl.page_codec import Codec, Deflate, Sizes
from multifd_qpl.virtual_time import Clock, LockStep, SharedClock

__all__ = [
    "Codec",
    "Deflate",
    "Fault",
    "Faults",
    "LockStep",
    "Machine",
    "Misuse",
    "SeededFaults",
    "SharedClock",
    "SimulatedIaa",
    "Sizes",
]

_OK, _RUNNING, _BUSY, _INTERNAL = 0, 1, 5, 6  # qpl_status, libqpl 1.6.0
_FAULT_READ, _FAULT_WRITE, _NO_QUEUES = 303, 431, 503
_FUNCTIONS = ("get_job_size", "init_job", "fini_job", "execute_job", "submit_job", "check_job")
_JOB_BYTES = 4096  # more than the head of a job; the rest of libqpl's is its own

_HOPELESS_NS = 1e6
"""The time between two looks at what will never be."""


class Misuse(Exception):
    """The code under test did what would hang or crash with the real libqpl."""


class _Device:
    """One device: a queue of bounded depth, served first come first served by its engines."""

    def __init__(self, machine: Machine) -> None:
        self._entries = machine.queue_entries
        self._free_at = [0.0] * machine.engines
        self._starts: deque[float] = deque()
        self.stopped_at = float("inf")

    def room_at(self, now: float, waiting: int) -> float:
        """When the queue takes one more, behind `waiting` others: `now`, or later, or never."""
        starts = self._starts
        while starts and starts[0] <= now and starts[0] <= self.stopped_at:
            starts.popleft()
        if len(starts) < self._entries:
            return now
        freed_at = starts[min(waiting, self._entries - 1)]
        return freed_at if freed_at <= self.stopped_at else float("inf")

    def accept(self, now: float, service_ns: float) -> float:
        """Queue one; the time of its completion, infinite on a device that has stopped."""
        start = max(now, self._free_at[0])
        done = start + service_ns
        heapq.heapreplace(self._free_at, done)
        self._starts.append(start)
        return done


@dataclass(slots=True)
class _Job:
    path: int
    thread: int
    state: str = "ready"  # ready, submitted, refused, answered, unusable
    done_at: float = 0.0
    device: _Device | None = None
    fault: Fault | None = None
    status: int = _OK
    is_repaired: bool = False
    memory: Any = field(default=None, repr=False)

    @property
    def is_silent(self) -> bool:
        """The device stopped before it ended this job."""
        return self.state == "submitted" and self.device is not None and self.done_at > self.device.stopped_at


class SimulatedIaa:
    """A machine with IAA devices. Use as a context; `library` is what a method takes.

    Args:
        machine: its parameters.
        faults: what goes wrong.
        codec: what happens to bytes.
        clock: whose time.
        seed: of the jitter.

    Raises:
        Misuse: at the end of the context, if a job was used wrongly or leaked.
    """

    _active: SimulatedIaa | None = None

    def __init__(
        self,
        machine: Machine | None = None,
        *,
        faults: Faults | None = None,
        codec: Codec | None = None,
        clock: Clock | None = None,
        seed: int = 1,
    ) -> None:
        self.machine = machine or Machine()
        self.errors: list[BaseException] = []
        self.submissions = 0
        self.hardware_inits = 0
        self._faults, self._codec = faults or Faults(), codec or Deflate()
        self.clock: Clock = clock or SharedClock()
        self._random = random.Random(seed).random
        self._devices = [_Device(self.machine) for _ in range(self.machine.devices)]
        self._jobs: dict[int, _Job] = {}
        self._finished: set[int] = set()
        self._next_device: dict[int, int] = {}
        self._answers_at: dict[int, float] = {}
        self._waiting: set[int] = set()
        self._lock = threading.Lock()
        table = ffi.new("mq_table *")
        for name, function in _CALLBACKS.items():
            setattr(table, name, function)
        self.library = Library(table, "1.6.0", "simulated IAA", has_crc=True)

    def __enter__(self) -> Self:
        if SimulatedIaa._active is not None:
            raise Misuse("another simulation is active in this process")
        SimulatedIaa._active = self
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _t: TracebackType | None) -> None:
        SimulatedIaa._active = None
        leaked = [job for job in self._jobs.values() if not job.is_silent and job.state != "unusable"]
        if leaked:
            self.errors.append(Misuse(f"{len(leaked)} jobs were never finished, such as {leaked[0]}"))
        if error is None:
            self.raise_errors()

    def raise_errors(self) -> None:
        """Raise what callbacks could not.

        Raises:
            Misuse: or whatever else went wrong in a callback.
        """
        if self.errors:
            raise self.errors[0]

    # -- libqpl's functions ----------------------------------------------------------------------

    def get_job_size(self, path: int, size: Any) -> int:
        """qpl_get_job_size."""
        size[0] = _JOB_BYTES
        return _OK

    def init_job(self, path: int, pointer: Any) -> int:
        """qpl_init_job."""
        address = _address(pointer)
        with self._lock:
            known = self._jobs.get(address)
            if known is not None and known.state != "unusable":
                raise Misuse("a job is made again before it was finished")
            job = _Job(path, get_ident())
            status = _OK
            if path == lib.MQ_HARDWARE:
                status = self._faults.init(self.hardware_inits) if self._devices else _NO_QUEUES
                self.hardware_inits += 1
            if status:
                job.state = "unusable"
            self._jobs[address] = job
            self._finished.discard(address)
        return status

    def fini_job(self, pointer: Any) -> int:
        """qpl_fini_job."""
        address = _address(pointer)
        if address in self._finished:
            raise Misuse("a job is finished twice")
        job = self._job(pointer)
        if job.state == "submitted":
            raise Misuse("a job is finished while the device works on it")
        with self._lock:
            del self._jobs[address]
            self._finished.add(address)
        return _OK

    def execute_job(self, pointer: Any) -> int:
        """qpl_execute_job; only for software jobs, as the plugin uses it."""
        job = self._job(pointer)
        if job.path != lib.MQ_SOFTWARE:
            raise Misuse("a hardware job is executed synchronously")
        self.clock.advance(self.clock.now() + self.machine.software_ns)
        return self._codec.run(pointer, None, on_device=False)

    def submit_job(self, pointer: Any) -> int:
        """qpl_submit_job: each device is tried once, in turn for each thread."""
        job, clock, thread = self._job(pointer), self.clock, get_ident()
        if job.state == "submitted":
            raise Misuse("a job is submitted while the device works on it")
        clock.turn()
        with self._lock:
            now = clock.now()
            fault = self._faults.at(self.submissions)
            self.submissions += 1
            job.state = "refused"
            if fault is Fault.SUBMIT_ERROR:
                clock.advance(now + self.machine.submit_ns)
                return _INTERNAL
            self._waiting.discard(thread)
            if fault is not Fault.BUSY:
                first = self._next_device.get(thread, 0)
                for k in range(len(self._devices)):
                    device = self._devices[(first + k) % len(self._devices)]
                    if device.room_at(now, 0) <= now:
                        self._next_device[thread] = (first + k + 1) % len(self._devices)
                        clock.advance(now + self.machine.submit_ns)
                        self._accept(job, pointer, device, now, fault)
                        return _OK
            else:
                self._answers_at[thread] = float("inf")
            clock.advance(now + self.machine.refusal_ns)
            return _BUSY

    def _accept(self, job: _Job, pointer: Any, device: _Device, now: float, fault: Fault | None) -> None:
        machine = self.machine
        service = machine.engine_ns * (1 + machine.jitter * (2 * self._random() - 1))
        if pointer.op == lib.MQ_DECOMPRESS:
            service /= machine.inflate_speedup
        job.state, job.fault, job.device, job.status = "submitted", fault, device, _OK
        if fault in (Fault.READ_FAULT, Fault.WRITE_FAULT):
            if job.is_repaired:
                job.status = _FAULT_READ if fault is Fault.READ_FAULT else _FAULT_WRITE
            else:
                job.is_repaired = True
                service += machine.fault_ns
        elif fault is Fault.SECOND_PASS_BUSY:
            job.status = _BUSY
        elif fault is Fault.SILENT:
            device.stopped_at = min(device.stopped_at, now)
        job.done_at = device.accept(now, service)

    def check_job(self, pointer: Any) -> int:
        """qpl_check_job."""
        job, clock = self._job(pointer), self.clock
        if job.path != lib.MQ_HARDWARE:
            raise Misuse("a software job is waited for")
        if job.state != "submitted":
            raise Misuse(f"a job is waited for whose state is {job.state!r}: the real library may spin for ever")
        if clock.now() < job.done_at or job.is_silent:
            self._answers_at[get_ident()] = float("inf") if job.is_silent else job.done_at
            return _RUNNING
        job.state = "answered"
        return job.status or self._codec.run(pointer, job.fault, on_device=True)

    def now_ns(self) -> int:
        """The virtual clock."""
        return int(self.clock.now())

    def relax(self) -> None:
        """Sleep until the job just looked at has ended, or else until a queue has room behind those who
        wait already; a step at a time if that will never be."""
        thread, now = get_ident(), self.clock.now()
        wake = self._answers_at.pop(thread, None)
        if wake is None:
            wake = min(device.room_at(now, len(self._waiting)) for device in self._devices)
            self._waiting.add(thread)
        self.clock.advance(max(wake if wake < float("inf") else now + _HOPELESS_NS, now + self.machine.poll_ns))

    def _job(self, pointer: Any) -> _Job:
        job = self._jobs.get(_address(pointer))
        if job is None:
            raise Misuse("a job is used that was never made, or was finished")
        if job.thread != get_ident():
            raise Misuse("a job is used by two threads")
        if job.state == "unusable":
            raise Misuse("a job is used whose init failed: the real library would overrun its memory")
        return job


_UINTPTR = ffi.typeof("uintptr_t")


def _address(pointer: Any) -> int:
    return int(ffi.cast(_UINTPTR, pointer))


def _callback(name: str, failure: int | None) -> Any:
    """A C function that calls the active simulation; an exception is stored, C gets `failure`."""

    def call(*arguments: Any) -> Any:
        active = SimulatedIaa._active
        if active is None:
            return failure
        try:
            return getattr(active, name)(*arguments)
        except BaseException as e:
            active.errors.append(e)
            return failure

    kinds = {field: info.type for field, info in ffi.typeof("mq_table").fields}
    return ffi.callback(kinds[name], call)


# Made once, as many pieces of executable memory as there are functions.
_CALLBACKS = {name: _callback(name, _INTERNAL) for name in _FUNCTIONS}
_CALLBACKS |= {"now_ns": _callback("now_ns", 0), "relax": _callback("relax", None)}
