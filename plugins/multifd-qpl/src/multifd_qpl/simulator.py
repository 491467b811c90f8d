"""A simulated IAA behind the functions of libqpl, with every fault that the real one may have.

Rules of this file: the plugin's own jobs and ``_batch.c`` run unchanged; only the functions of the
table and its clock are ours. Time is virtual, in nanoseconds. Using a job wrongly is recorded and
raised when the simulation ends, never tolerated: a callback cannot raise through C.

One simulated machine is active in a process at a time.
"""

from __future__ import annotations

import enum
import heapq
import random
import threading
import zlib
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from threading import get_ident
from types import TracebackType
from typing import Any, ClassVar, Protocol, Self

from multifd_qpl._batch import ffi, lib
from multifd_qpl.library import Library

_OK, _RUNNING, _NO_ROOM, _BUSY, _INTERNAL = 0, 1, 2, 5, 6  # qpl_status, libqpl 1.6.0
_INVALID_BLOCK, _BAD_END, _FAULT_READ, _FAULT_WRITE, _NO_QUEUES = 213, 215, 303, 431, 503
_FUNCTIONS = ("get_job_size", "init_job", "fini_job", "execute_job", "submit_job", "check_job")
_JOB_BYTES = 4096  # more than the head of a job; the rest of libqpl's is its own

_POLL_NS = 100.0
"""The least time between two looks."""
_HOPELESS_NS = 1e6
"""The time between two looks at what will never be."""


@dataclass(frozen=True)
class Machine:
    """What is simulated, each number with its source; ns is nanoseconds of virtual time.

    "Letter" is the cover letter of QEMU's QPL series v8 (June 2024): a guest of 15.23 million pages by its
    row of none (84832 mbps for 5901 ms at 4106.5 bytes a page), no bandwidth limit, 4 devices on each side.
    """

    devices: int = 1
    engines: int = 8
    """Of each device: QEMU, docs/devel/migration/qpl-compression.rst."""
    queue_entries: int = 128
    """Of each device's one shared work queue: the same document's sample configuration."""
    engine_ns: float = 8 / 859607 * 1e9
    """One engine, one page compressed. Calibrated: 859607 pages/s with one device and a queue that is
    always full is the waiting row of QEMU commit f6fe9fea99. Beside `hardware_bytes` the only number from there."""
    inflate_speedup: float = 30 / 4
    """Compression over decompression: one IAA compresses 4 GB/s and decompresses 30 (Intel, January 2024)."""
    jitter: float = 0.2
    """A page takes from 1 - this to 1 + this of `engine_ns`, so that jobs end out of order. Assumed."""
    submit_ns: float = 278.0
    """A submission, accepted or not. Letter, IAA, 4 devices, 2 channels: 7330 ms are 0.963 us of a channel's
    thread for each page; less `zero_check_ns`, less 0.379 us of sending 2078 bytes, less 0.070 us, a
    page's part of waiting for the packet's last one."""
    software_ns: float = 9132.0
    """A page by the software job. Letter, qpl software, 4 channels: 37299 ms are 9.796 us of a thread for each
    page; less `zero_check_ns` and 0.428 us of sending. (9.8 us were measured on a Zen 4.)"""
    zero_check_ns: float = 236.0
    """A page looked at for zeros: 100 GiB in 6182 ms by one channel thread (zero-page detection series v5, March
    2024, Xeon 8457C)."""
    fault_ns: float = 9000.0
    """A page fault that is repaired: the mean of 25965, qpl-compression.rst."""
    hardware_bytes: int = 1981
    """A page's stream by the device. Calibrated on the waiting row too: 13698.65 mbps for 18381 ms are 1992 bytes
    for each of 15.80 million pages, with headers. (The letter's guest: 2067.)"""
    software_bytes: int = 2337
    """The same by the software job. Letter, qpl software, 4 channels: 7668 mbps for 37299 ms."""
    send_ns_per_byte: float = 0.1822
    """A channel thread's time to send. Letter, none, 2 channels: 7493 ms are 0.984 us for each page; less
    `zero_check_ns`. (66782 mbps is not yet the link's limit.)"""
    link_ns_per_byte: float = 8 / 86.488
    """All channels together. Letter, none, 8 channels: 86488 mbps."""


class Fault(enum.Enum):
    """What can happen to a submission."""

    BUSY = "refused, whatever room there is"
    SUBMIT_ERROR = "the submission fails"
    READ_FAULT = "303; repaired once in a job's life"
    WRITE_FAULT = "431; repaired once in a job's life"
    SECOND_PASS_BUSY = "5 when it is waited for"
    SHORT = "status 0, too few bytes"
    CORRUPT = "status 0, damaged bytes"
    WRONG = "status 0, sound bytes of another page"
    SILENT = "its device stops answering, from now on"


class Faults:
    """Which submission meets which fault, and which hardware init fails.

    Args:
        script: number of the submission, from 0, to fault.
        always: the fault of every other submission.
        init: number of the hardware job's init, from 0, to its status.
    """

    def __init__(
        self,
        script: Mapping[int, Fault] | None = None,
        *,
        always: Fault | None = None,
        init: Callable[[int], int] = lambda _n: _OK,
    ) -> None:
        self._script, self._always, self.init = script or {}, always, init

    def at(self, number: int) -> Fault | None:
        """The fault of a submission."""
        return self._script.get(number, self._always)


class SeededFaults(Faults):
    """Faults by chance, the same ones for the same seed.

    Args:
        seed: of the random numbers.
        rate: probability of a fault, 0 to 1.
        kinds: which ones.
    """

    def __init__(self, seed: int, rate: float, kinds: tuple[Fault, ...]) -> None:
        super().__init__()
        self._random, self._rate, self._kinds = random.Random(seed), rate, kinds

    def at(self, number: int) -> Fault | None:
        """The fault of a submission; asked once for each, in order."""
        return self._random.choice(self._kinds) if self._random.random() < self._rate else None


class Misuse(Exception):
    """The code under test did what would hang or crash with the real libqpl."""


class Codec(Protocol):
    """What the simulated library does with a page's bytes."""

    def run(self, job: Any, fault: Fault | None, *, on_device: bool) -> int:
        """Do the job's operation, set its totals, return its status."""
        ...


class Deflate:
    """Real bytes, by zlib: fixed Huffman codes and 4 KiB of history, as the device.

    A job's CRC is that of the right bytes: damage happens on the way to memory.
    """

    def run(self, job: Any, fault: Fault | None, *, on_device: bool) -> int:
        """See `Codec`."""
        source = bytes(ffi.buffer(job.next_in_ptr, job.available_in))
        if job.op == lib.MQ_COMPRESS:
            data, complete, page = _deflate(source), True, source
            damaged = bytes([data[0] | 6]) + data[1:]  # block type 3, which does not exist
        else:
            inflater = zlib.decompressobj(-15)
            try:
                data = inflater.decompress(source, job.available_out + 1)
            except zlib.error:
                return _INVALID_BLOCK
            complete, page = inflater.eof or not on_device, data
            source = source[: len(source) - len(inflater.unused_data)]
            damaged = bytes([data[0] ^ 1]) + data[1:] if data else data
        if fault is Fault.CORRUPT:
            data = damaged
        elif fault is Fault.WRONG:
            other = bytes([page[0] ^ 1]) + page[1:] if page else page
            data = _deflate(other) if job.op == lib.MQ_COMPRESS else other[::-1]
        if len(data) > job.available_out:
            return _NO_ROOM
        if not complete:
            return _BAD_END
        if fault is Fault.SHORT:
            data = data[: len(data) // 2] if job.op == lib.MQ_DECOMPRESS else b""
        ffi.memmove(job.next_out_ptr, data, len(data))
        job.total_in, job.total_out, job.crc = len(source), len(data), zlib.crc32(page)
        return _OK


def _deflate(page: bytes) -> bytes:
    deflater = zlib.compressobj(1, zlib.DEFLATED, -12, 8, zlib.Z_FIXED)
    return deflater.compress(page) + deflater.flush()


@dataclass(frozen=True)
class Sizes:
    """No bytes at all, only the sizes of a machine's streams: for figures. Every page is zeros of 4 KiB."""

    machine: Machine
    _CRC: ClassVar[int] = zlib.crc32(bytes(4096))

    def run(self, job: Any, fault: Fault | None, *, on_device: bool) -> int:
        """See `Codec`; faults do not change sizes."""
        if job.op == lib.MQ_DECOMPRESS:
            job.total_out, job.crc = job.available_out, self._CRC
        else:
            job.total_out = self.machine.hardware_bytes if on_device else self.machine.software_bytes
        return _OK


class Clock(Protocol):
    """Virtual time as the calling thread sees it."""

    def now(self) -> float: ...

    def advance(self, until_ns: float) -> None:
        """Let the thread's time pass, if it is not that late already."""
        ...

    def turn(self) -> None:
        """Return when no other thread can act earlier than this one."""
        ...


class SharedClock:
    """One time for all threads: for tests, where only its passing matters."""

    def __init__(self) -> None:
        self._now = 0.0

    def now(self) -> float:
        """The time."""
        return self._now

    def advance(self, until_ns: float) -> None:
        """Let time pass."""
        self._now = max(self._now, until_ns)

    def turn(self) -> None:
        """Threads come as they come."""


class LockStep:
    """A time for each thread; exactly one runs, the one with the lowest time (ties: lowest number).

    Args:
        threads: how many; each calls `enter` first and `leave` last.
        slack_ns: how far a thread may run ahead of the others before it hands over. A hand-over costs 20 us of
            real time, a submission 0.3 us of virtual time: without slack half of a simulation is hand-overs.
    """

    _DEADLINE_S = 300.0

    def __init__(self, threads: int, slack_ns: float = 2000.0) -> None:
        self._slack_ns = slack_ns
        self._times = [0.0] * threads
        self._gates = [threading.Lock() for _ in range(threads)]
        for gate in self._gates:
            gate.acquire()
        self._running = 0
        self._ready: list[tuple[float, int]] = []
        self._synced: list[int] = []
        self._inside = threads
        self._entering = threading.Lock()

    def enter(self, number: int) -> None:
        """Take part as thread `number`; returns when it is its turn."""
        with self._entering:
            heapq.heappush(self._ready, (0.0, number))
            is_last = len(self._ready) == len(self._times)
        if is_last:
            self._pass_on()
        self._wait(number)

    def leave(self) -> None:
        """Take part no longer."""
        self._inside -= 1
        self._release_synced()
        self._pass_on()

    def sync(self) -> None:
        """Wait for all threads; all go on at the time of the last."""
        number = self._running
        self._synced.append(number)
        self._release_synced()
        self._pass_on()
        self._wait(number)

    def _release_synced(self) -> None:
        if self._synced and len(self._synced) == self._inside:
            latest = max(self._times[i] for i in self._synced)
            for i in self._synced:
                self._times[i] = latest
                heapq.heappush(self._ready, (latest, i))
            self._synced.clear()

    def now(self) -> float:
        """The calling thread's time."""
        return self._times[self._running]

    def advance(self, until_ns: float) -> None:
        """Let the calling thread's time pass."""
        if until_ns > self._times[self._running]:
            self._times[self._running] = until_ns

    def turn(self) -> None:
        """Wait until the calling thread is the one with the lowest time, but for the slack."""
        number = self._running
        now = self._times[number]
        if self._ready and self._ready[0] < (now - self._slack_ns, number):
            _, other = heapq.heapreplace(self._ready, (now, number))
            self._gates[other].release()
            self._wait(number)

    def _pass_on(self) -> None:
        if self._ready:
            self._gates[heapq.heappop(self._ready)[1]].release()

    def _wait(self, number: int) -> None:
        if not self._gates[number].acquire(timeout=self._DEADLINE_S):
            raise TimeoutError("the simulation stands still")
        self._running = number


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
            clock.advance(now + self.machine.submit_ns)
            fault = self._faults.at(self.submissions)
            self.submissions += 1
            job.state = "refused"
            if fault is Fault.SUBMIT_ERROR:
                return _INTERNAL
            self._waiting.discard(thread)
            if fault is not Fault.BUSY:
                first = self._next_device.get(thread, 0)
                for k in range(len(self._devices)):
                    device = self._devices[(first + k) % len(self._devices)]
                    if device.room_at(now, 0) <= now:
                        self._next_device[thread] = (first + k + 1) % len(self._devices)
                        self._accept(job, pointer, device, now, fault)
                        return _OK
            else:
                self._answers_at[thread] = float("inf")
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
        self.clock.advance(max(wake if wake < float("inf") else now + _HOPELESS_NS, now + _POLL_NS))

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
