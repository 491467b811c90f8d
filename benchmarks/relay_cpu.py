"""What a relay that passes packets on costs: its CPU beside that of a bare loop of recv and send, in one run.

Memory to memory over loopback TCP by none, through either; interleaved, the first round does not count, medians. The
bare loop looks at nothing: a thread for each connection and direction, 1 MiB at a time. Source, middle and
destination are a process each; the CPU is the middle's alone, from its first connection to its last.

Usage: python benchmarks/relay_cpu.py [--mib 1024] [--rounds 5] [--channels 1 2 4 8]
"""

from __future__ import annotations

import argparse
import contextlib
import mmap
import multiprocessing
import resource
import socket
import statistics
import tempfile
import threading
from multiprocessing.connection import Connection
from pathlib import Path

from rounds import interleaved

import multifd
from multifd.bench.synthetic import write_image

PIECE = 1 << 20
TIMEOUT_S = 120
WAYS = ("bare loop", "relay")


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _forward(inbound: socket.socket, outbound: socket.socket) -> None:
    piece = memoryview(bytearray(PIECE))
    with contextlib.suppress(OSError):  # the other direction has ended
        while got := inbound.recv_into(piece):
            outbound.sendall(piece[:got])
    with contextlib.suppress(OSError):
        outbound.shutdown(socket.SHUT_WR)


def _loop(host: str, port: int, connections: int, pipe: Connection) -> None:
    threads, sockets = [], []
    with socket.create_server(("127.0.0.1", 0), backlog=connections) as server:
        pipe.send(f"tcp:127.0.0.1:{server.getsockname()[1]}")
        for _ in range(connections):
            inbound, outbound = server.accept()[0], socket.create_connection((host, port))
            sockets += [inbound, outbound]
            for pair in ((inbound, outbound), (outbound, inbound)):
                threads.append(threading.Thread(target=_forward, args=pair))
                threads[-1].start()
    for thread in threads:
        thread.join(TIMEOUT_S)
    for one in sockets:
        one.close()


def _middle(pipe: Connection) -> None:
    """The process between: one migration for each message."""
    while True:
        way, uri, channels = pipe.recv()
        before = _cpu_s()
        if way == "relay":
            multifd.relay("tcp:127.0.0.1:0", uri, channels=channels, once=True, on_listening=pipe.send)
        else:
            _, host, port = uri.split(":")
            _loop(host, int(port), channels + 1, pipe)
        pipe.send(_cpu_s() - before)


def _destination(size: int, pipe: Connection) -> None:
    memory = mmap.mmap(-1, size)
    while True:
        pipe.recv()
        multifd.receive("tcp:127.0.0.1:0", memory, methods=["none"], on_listening=pipe.send)
        pipe.send(None)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--channels", type=int, nargs="+", default=[1, 2, 4, 8])
    args = parser.parse_args()
    size = args.mib << 20
    context = multiprocessing.get_context("spawn")
    middle, theirs = context.Pipe()
    destination, other = context.Pipe()
    processes = [
        context.Process(target=_middle, args=(theirs,), daemon=True),
        context.Process(target=_destination, args=(size, other), daemon=True),
    ]
    for process in processes:
        process.start()
    for end in (theirs, other):
        end.close()  # so that the end of a process ends a wait for its word
    memory = mmap.mmap(-1, size)
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image"
        write_image(image, size)
        with image.open("rb", buffering=0) as file, memoryview(memory) as view:
            for at in range(0, size, PIECE):
                file.readinto(view[at : at + PIECE])
    for channels in args.channels:

        def through(way: str, channels: int = channels) -> tuple[float, float]:
            destination.send(None)
            middle.send((way, destination.recv(), channels))
            result = multifd.send(memory, middle.recv(), "none", channels=channels)
            destination.recv()
            return middle.recv(), result.total_time_ms

        rows = interleaved(WAYS, through, args.rounds)
        (loop_cpu, loop_ms), (relay_cpu, relay_ms) = (
            (statistics.median(cpu for cpu, _ in row), statistics.median(ms for _, ms in row)) for row in rows.values()
        )
        print(
            f"{channels} channels: CPU relay {relay_cpu:.3f} s, bare loop {loop_cpu:.3f} s, ratio "
            f"{relay_cpu / loop_cpu:.2f}; time {relay_ms:.0f} and {loop_ms:.0f} ms, ratio {relay_ms / loop_ms:.2f}"
        )
    for process in processes:
        process.terminate()


if __name__ == "__main__":
    main()
