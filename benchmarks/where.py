"""Where the time of a migration goes: perf's samples of both ends, by what they were doing.

Both ends are processes that migrate the same touched memory again and again over loopback TCP (benchmarks/methods.py);
perf looks at both while they do, after one migration that does not count.

Usage: python benchmarks/where.py [--mib 512] [--count 5] [--method none] [--method zstd:level=1]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from methods import destination, framework, image

FREQUENCY_HZ = 1999
TIMEOUT_S = 60
KINDS = (
    ("codec", r"_cffi|zstd|isal|libz\.|lz4|qpl|_batch", r""),
    ("kernel: copies into and out of sockets", r"kernel", r"copy|rep_movs|clear_bhb"),
    ("kernel: page faults, memory for sockets", r"kernel", r"page|fault|clear_|alloc|free|mem_cgroup|folio"),
    ("kernel: the rest: TCP, scheduling", r"kernel|unknown|vdso", r""),
    ("multifd's packet path in C", r"_pump|_memory|multifd", r""),
    ("numpy, libc: gather, scatter, zero detection", r"numpy|_umath|libc", r""),
    ("the interpreter", r"python", r""),
)
"""What a sample is, by its object's and its symbol's name; the first that fits counts."""


def kind_of(binary: str, symbol: str) -> str:
    """The first of `KINDS` that fits."""
    return next((kind for kind, b, s in KINDS if re.search(b, binary) and re.search(s, symbol)), "other")


def profile(pids: list[int], work: object, folder: Path) -> Counter[str]:
    """Shares of the samples of two processes, while `work` is done."""
    data, control, answer = (folder / name for name in ("perf.data", "control", "answer"))
    for fifo in (control, answer):
        fifo.unlink(missing_ok=True)
        os.mkfifo(fifo)
    command = ["perf", "record", "-q", "-F", str(FREQUENCY_HZ), "-o", str(data), "-p", ",".join(map(str, pids))]
    command += ["--delay", "-1", "--control", f"fifo:{control},{answer}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as perf:
        with control.open("w", buffering=1) as out, answer.open() as said_back:
            out.write("enable\n")
            said_back.read(4)  # "ack\n": it looks from now on
            work()  # type: ignore[operator]
        perf.send_signal(signal.SIGINT)
        _, said = perf.communicate(timeout=TIMEOUT_S)
    if not data.exists():
        raise SystemExit(f"perf: {said}")
    report = ["perf", "report", "-i", str(data), "--stdio", "-q", "-F", "overhead,dso,symbol", "-t", "\t", "-g", "none"]
    lines = subprocess.run(report, check=True, capture_output=True, text=True, timeout=TIMEOUT_S).stdout.splitlines()
    shares: Counter[str] = Counter()
    for line in lines:
        cells = [cell.strip() for cell in line.split("\t")]
        if len(cells) == 3 and cells[0].endswith("%"):
            shares[kind_of(cells[1], cells[2])] += float(cells[0].rstrip("%"))
    return shares


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--count", type=int, default=5)
    parser.add_argument("--method", action="append", help="may be repeated; default none, zstd:level=1")
    args = parser.parse_args()
    if shutil.which("perf") is None:
        print("left out: perf is missing (apt-get install linux-perf)", file=sys.stderr)
        return
    source = image(args.mib)
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    child = context.Process(target=destination, args=(len(source), theirs), daemon=True)
    child.start()
    with tempfile.TemporaryDirectory() as folder:
        for spec in args.method or ["none", "zstd:level=1"]:
            framework(source, spec, pipe)

            def work(spec: str = spec) -> None:
                for _ in range(args.count):
                    framework(source, spec, pipe)

            shares = profile([os.getpid(), child.pid or 0], work, Path(folder))
            for kind, share in shares.most_common():
                print(f"{spec:14} {share:5.1f} %  {kind}")
    pipe.send(False)
    child.join(10)


if __name__ == "__main__":
    main()
