"""How fast qpl's hooks drive a library, against a loop in C over the same functions.

    python benchmarks/qpl_batch.py

Three questions: is ``send_prepare`` / ``recv`` on two threads at least 0.95 of a C loop; does a table of
functions that do nothing reach 5 million pages a second; how fast is the ISA-L engine. The library is
the one that MULTIFD_QPL_LIBRARY names, else the tests' stand-in. Runs are interleaved, figures are
medians; only ratios mean anything on a busy machine.
"""

from __future__ import annotations

import ctypes
import os
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from multifd_qpl import _batch
from multifd_qpl._batch import ffi, lib
from multifd_qpl.jobs import Job
from multifd_qpl.library import Library, load
from multifd_qpl.method import QplMethod, QplOptions
from rounds import interleaved

from multifd.method import Memory, MultifdMethods, Pages, RecvParams, SendParams
from multifd.pages import Geometry

ROUNDS, PAGE, COUNT = 7, 4096, 128
PLUGIN = Path(__file__).parent.parent / "plugins" / "multifd-qpl"

C_SOURCE = r"""
#include <stdint.h>
typedef struct {
    const uint8_t *in; uint32_t in_left, in_total; uint8_t *out; uint32_t out_left, out_total;
    int32_t op; uint32_t flags, unused[3]; int32_t level;
} job_t;
uint32_t nothing_size(int path, uint32_t *size) { *size = 240; return 0; }
uint32_t nothing_init(int path, job_t *job) { return 0; }
uint32_t nothing(job_t *job) { return 0; }
uint32_t done(job_t *job, uint32_t length)
{
    job->in_total = job->in_left;
    job->out_total = job->op ? length : 4096;
    return 0;
}
uint32_t nothing_done(job_t *job) { return done(job, 1); }
uint32_t half_done(job_t *job) { return done(job, 2048); }

/* The least that a packet takes: fill the job, run it, look at its answer. */
uint64_t loop(uint32_t (*execute)(job_t *), job_t *job, int op, uint8_t **in, uint32_t *lengths, uint8_t **out,
              int packets)
{
    uint64_t bytes = 0;
    for (int k = 0; k < packets; k++)
        for (int i = 0; i < 128; i++) {
            if (!op && lengths[i] == 4096)
                continue;
            job->op = op; job->level = 1; job->flags = 0x4003;
            job->in = in[i]; job->in_left = op ? 4096 : lengths[i];
            job->out = out[i]; job->out_left = op ? 4095 : 4096;
            if (execute(job) == 0)
                bytes += job->out_total;
        }
    return bytes;
}
"""


def compile_shared(text: str, folder: Path, name: str) -> str:
    source, target = folder / f"{name}.c", folder / f"{name}.so"
    source.write_text(text)
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", str(source), "-o", str(target)], check=True)
    return str(target)


def make_ram() -> bytearray:
    """Pages of this machine's own libraries and sources: what memory holds, roughly."""
    texts = b"".join(p.read_bytes() for p in sorted(Path(np.__file__).parent.rglob("*.py"))[:60])
    code = Path(_batch.__file__).read_bytes()
    half = PAGE * COUNT // 2
    return bytearray(texts[:half].ljust(half, b"x") + (code * (half // len(code) + 1))[:half])


class Channel:
    """Both hooks of one channel on one packet."""

    def __init__(self, method: MultifdMethods) -> None:
        self.method = method
        self.ram, self.target = make_ram(), bytearray(PAGE * COUNT)
        geometry, abort = Geometry.of(PAGE), bytearray(1)
        scratch = Memory(bytearray(PAGE * COUNT), PAGE)
        offsets = np.arange(COUNT, dtype=np.int64) * PAGE
        self.sender = SendParams(0, geometry, abort, Pages(Memory(self.ram, PAGE), offsets, scratch))
        self.receiver = RecvParams(0, geometry, abort, Pages(Memory(self.target, PAGE), offsets, scratch))

    def open(self) -> None:
        self.method.send_setup(self.sender)
        self.method.recv_setup(self.receiver)
        self.send(1)
        self.receiver.payload = memoryview(b"".join(self.sender.iov))

    def close(self) -> None:
        self.method.send_cleanup(self.sender)
        self.method.recv_cleanup(self.receiver)

    def send(self, packets: int) -> None:
        for _ in range(packets):
            self.sender.iov.clear()
            self.method.send_prepare(self.sender)

    def receive(self, packets: int) -> None:
        for _ in range(packets):
            self.method.recv(self.receiver)


def rate(calls: list[Callable[[int], object]], packets: int) -> tuple[float, float]:
    """Pages a second of all calls together, each on its own thread: of the clock, and of CPU time."""
    barrier = threading.Barrier(len(calls) + 1)
    cpu_s: list[float] = []

    def run(call: Callable[[int], object]) -> None:
        barrier.wait()
        start = time.thread_time()
        call(packets)
        cpu_s.append(time.thread_time() - start)

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    barrier.wait()
    start = time.perf_counter()
    for thread in threads:
        thread.join()
    pages = len(calls) * packets * COUNT
    return pages / (time.perf_counter() - start), pages / sum(cpu_s)


def c_loop(native: ctypes.CDLL, library: Library, channel: Channel, op: int) -> Callable[[int], object]:
    """The C loop over this library on the channel's data."""
    job = Job(library, lib.MQ_SOFTWARE)
    payload = bytes(channel.receiver.payload)
    table = [int.from_bytes(payload[4 * i : 4 * i + 4], "big") for i in range(COUNT)]
    lengths = (ctypes.c_uint32 * COUNT)(*table)
    pages = ffi.from_buffer(channel.ram)
    packed, room = ffi.from_buffer(payload), ffi.new("uint8_t[]", PAGE * COUNT)
    starts = np.concatenate(([0], np.cumsum(table)[:-1])) + 4 * COUNT
    sources = [pages + PAGE * i for i in range(COUNT)] if op else [packed + int(s) for s in starts]
    pointer = ctypes.c_void_p * COUNT
    inputs = pointer(*(int(ffi.cast("uintptr_t", p)) for p in sources))
    outputs = pointer(*(int(ffi.cast("uintptr_t", room + PAGE * i)) for i in range(COUNT)))
    execute = ctypes.c_void_p(int(ffi.cast("uintptr_t", library.table.execute_job)))
    address = ctypes.c_void_p(int(ffi.cast("uintptr_t", job.pointer)))
    kept = (job, payload, room)
    native.loop.restype = ctypes.c_uint64
    return lambda packets: native.loop(execute, address, op, inputs, lengths, outputs, packets) and kept


def nothing_library(native: ctypes.CDLL, done: str) -> Library:
    """A library whose functions do nothing but claim to have done their work: streams of 1 byte, or of 2048
    bytes, which the batch then has to pack."""
    table = ffi.new("mq_table *")
    names = {"get_job_size": "nothing_size", "init_job": "nothing_init", "fini_job": "nothing", "submit_job": "nothing",
             "check_job": done, "execute_job": done}  # fmt: skip
    for field, name in names.items():
        address = ctypes.cast(getattr(native, name), ctypes.c_void_p).value
        setattr(table, field, ffi.cast(ffi.typeof(getattr(table, field)), address))
    lib.mq_real_time(table)
    return Library(table, "1.0", "nothing")


def measure(what: str, runs: dict[str, Callable[[], tuple[float, float]]]) -> dict[str, tuple[float, float]]:
    """Medians of both rates of each, interleaved, after a round to warm up."""
    found = interleaved(runs, lambda name: runs[name](), ROUNDS)
    medians = {name: tuple(map(statistics.median, zip(*values, strict=True))) for name, values in found.items()}
    print(f"{what}, million pages a second (a CPU second):")
    for name, (wall, cpu) in medians.items():
        print(f"  {name}: {wall / 1e6:.3f} ({cpu / 1e6:.3f})")
    return medians


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        native = ctypes.CDLL(compile_shared(C_SOURCE, folder, "bench"))
        if "MULTIFD_QPL_LIBRARY" not in os.environ:
            os.environ["MULTIFD_QPL_LIBRARY"] = compile_shared(
                (PLUGIN / "tests" / "standin.c").read_text(), folder, "libqpl"
            )
        library = load()
        software = QplMethod(QplOptions(hardware="off", software="libqpl"))
        isal = QplMethod(QplOptions(hardware="off", software="isal"))
        nothing = QplMethod(library=nothing_library(native, "nothing_done"))
        half = QplMethod(library=nothing_library(native, "half_done"))
        print(f"library: {library.path} {library.version}; {os.cpu_count()} CPUs")

        two = [Channel(software) for _ in range(2)]
        for channel in two:
            channel.open()
        loops = {op: [c_loop(native, library, channel, op) for channel in two] for op in (1, 0)}
        for hook, op in (("send", 1), ("receive", 0)):
            medians = measure(
                f"{'send_prepare' if op else 'recv'}, two threads",
                {
                    "C loop": lambda op=op: rate(loops[op], 30),
                    "hook": lambda hook=hook: rate([getattr(channel, hook) for channel in two], 30),
                },
            )
            wall, cpu = (h / c for h, c in zip(medians["hook"], medians["C loop"], strict=True))
            print(f"  hook / C loop: {wall:.3f} by the clock, {cpu:.3f} by CPU time")

        empty = [Channel(nothing) for _ in range(2)]
        packing = [Channel(half) for _ in range(2)]
        fast = [Channel(isal) for _ in range(2)]
        for channel in (*empty, *packing, *fast):
            channel.open()
        for count in (1, 2):
            for hook in ("send", "receive"):
                call = {
                    "functions that do nothing": lambda hook=hook, n=count: rate(
                        [getattr(c, hook) for c in empty[:n]], 2000
                    ),
                    "and packing 2 KiB a page": lambda hook=hook, n=count: rate(
                        [getattr(c, hook) for c in packing[:n]], 2000
                    ),
                    "ISA-L": lambda hook=hook, n=count: rate([getattr(c, hook) for c in fast[:n]], 30),
                }
                measure(f"{hook}, {count} threads", call)
        for channel in (*two, *empty, *packing, *fast):
            channel.close()


if __name__ == "__main__":
    main()
