"""How much of what the machine can do is left when a method runs through multifd: ratios, in one run.

For each round, interleaved, after a warm-up round that does not count:

* none: memory to memory of two processes over loopback TCP, no zero pages, against iperf3 -P 2;
* zlib, zstd: the same, against a bare loop of two threads that compress and decompress each packet
  into preallocated output, with no connection and no framework.

Usage: python benchmarks/methods.py [--mib 1024] [--rounds 5] [--method NAME]... [--json]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from rounds import interleaved, median_ratio

import multifd
from multifd.bench.synthetic import write_image
from multifd.method import Memory, Pages, RecvParams, SendParams
from multifd.pages import Geometry
from multifd.registry import load_method

PAGE = 4096
PACKET = 512 << 10
CHANNELS = 2
TARGET = {"none": 0.8, "zlib": 0.85, "zstd": 0.85}


def destination(nbytes: int, pipe: Connection) -> None:
    """The other process: touched memory, one migration for each message."""
    memory = bytearray(b"\1") * nbytes
    while pipe.recv():
        result = multifd.receive("tcp:127.0.0.1:0", memory, on_listening=pipe.send)
        pipe.send((result.normal_pages, memory[:PAGE], memory[-PAGE:]))


def framework(source: bytearray, spec: str, pipe: Connection) -> float:
    """Bytes of RAM each second through multifd."""
    pipe.send(True)
    uri = pipe.recv()
    result = multifd.send(source, uri, spec, channels=CHANNELS)
    pages, first, last = pipe.recv()
    if (pages, first, last) != (len(source) // PAGE, source[:PAGE], source[-PAGE:]):
        raise SystemExit(f"{spec}: the destination differs")
    return len(source) / (result.total_time_ms - result.setup_time_ms) * 1e3


def bare(source: bytearray, spec: str) -> float:
    """Bytes each second of the codec alone: the method's hooks in a loop, two threads."""
    method, geometry = load_method(spec), Geometry.of(PAGE)
    packets = len(source) // PACKET
    offsets = np.arange(0, PACKET, PAGE)

    def loop(thread: int) -> None:
        memory, scratch = Memory(source, PAGE), Memory(bytearray(PACKET), PAGE)
        output = Memory(bytearray(PACKET), PAGE)
        abort = bytearray(1)
        s = SendParams(thread, geometry, abort, Pages(memory, offsets, scratch))
        r = RecvParams(thread, geometry, abort, Pages(output, offsets, Memory(bytearray(PACKET), PAGE)))
        method.send_setup(s)
        method.recv_setup(r)
        for i in range(thread, packets, CHANNELS):
            s.pages = Pages(memory, offsets + i * PACKET, scratch)
            s.iov.clear()
            method.send_prepare(s)
            r.payload = memoryview(s.iov[0] if len(s.iov) == 1 else b"".join(s.iov)).toreadonly()
            method.recv(r)

    start = time.perf_counter()
    threads = [threading.Thread(target=loop, args=(i,)) for i in range(CHANNELS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(source) / (time.perf_counter() - start)


def iperf3(nbytes: int) -> float:
    """Bytes each second of iperf3 -P 2 over loopback, moving as many."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    listen = ["iperf3", "-s", "-1", "-B", "127.0.0.1", "-p", port, "--forceflush"]
    with subprocess.Popen(listen, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        next(line for line in server.stdout if "listening on" in line)
        command = ["iperf3", "-c", "127.0.0.1", "-p", port, "-P", "2", "-n", str(nbytes // 2), "-J"]
        report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        server.wait(10)
    return float(report["end"]["sum_received"]["bits_per_second"]) / 8


def image(mib: int) -> bytearray:
    """Real bytes without zero pages."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "ram")
        write_image(path, mib << 20)
        pages = np.fromfile(path, np.uint8).reshape(-1, PAGE)
    kept = pages[pages.any(axis=1)]
    return bytearray(np.resize(kept, pages.shape).tobytes())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--method", action="append", help="may be repeated; default none, zlib, zstd")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    specs = args.method or list(TARGET)
    if "none" in specs and not shutil.which("iperf3"):
        print("none is left out: iperf3 is missing (apt-get install iperf3)", file=sys.stderr)
        specs.remove("none")
    source = image(args.mib)
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    child = context.Process(target=destination, args=(len(source), theirs), daemon=True)
    child.start()

    def pair(spec: str) -> tuple[float, float]:
        return framework(source, spec, pipe), iperf3(len(source)) if spec == "none" else bare(source, spec)

    rows = interleaved(specs, pair, args.rounds)
    pipe.send(False)
    child.join(10)
    results = []
    for spec, pairs in rows.items():
        ours, theirs_ = (statistics.median(column) for column in zip(*pairs, strict=True))
        results.append({
            "method": spec, "mb_per_s": ours / 1e6, "yardstick_mb_per_s": theirs_ / 1e6,
            "ratio": median_ratio(*zip(*pairs, strict=True)),
        })  # fmt: skip
    if args.json:
        print(json.dumps(results))
        return
    for row in results:
        target = TARGET.get(row["method"])
        print(
            f"{row['method']:12} {row['mb_per_s']:7.0f} MB/s   yardstick {row['yardstick_mb_per_s']:7.0f} MB/s   "
            f"ratio {row['ratio']:.2f}" + (f"   (aim: {target})" if target else "")
        )


if __name__ == "__main__":
    main()
