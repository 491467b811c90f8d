"""How a migration grows with RAM that is mostly holes: what a page costs that nobody ever wrote to.

A raw image of each size has the same real bytes at its start and a hole behind; ``multifd send`` migrates it to
``multifd receive``, into a raw file, two processes over loopback TCP, and the destination's pieces that hold anything
are compared. Sizes are interleaved; the median of the runs counts.

Usage: python benchmarks/growth.py [--gib 1 4 16 64] [--data-mib 256] [--rounds 3] [--method none] [--folder FOLDER]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rounds import interleaved

from multifd.bench.synthetic import write_image

PIECE = 1 << 20
TIMEOUT_S = 600


def pieces(path: Path) -> Iterator[tuple[int, bytes]]:
    """Where a file has bytes, and which; holes, and pieces of nothing but zeros, are left out."""
    zeros = bytes(PIECE)
    with path.open("rb", buffering=0) as file:
        at, end = 0, path.stat().st_size
        while at < end:
            try:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA) // PIECE * PIECE
            except OSError:  # ENXIO: nothing but a hole from here on
                return
            piece = os.pread(file.fileno(), PIECE, at)
            if piece != zeros[: len(piece)]:
                yield at, piece
            at += PIECE


def migrate(source: Path, out: Path, method: str) -> dict[str, Any]:
    """Once; the source's figures, and its most memory."""
    multifd = [sys.executable, "-m", "multifd"]
    receive = [*multifd, "receive", "tcp:127.0.0.1:0", str(out), "--format", "raw", "--timeout", str(TIMEOUT_S)]
    with subprocess.Popen(receive, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as receiver:
        assert receiver.stderr is not None
        uri = receiver.stderr.readline().split()[-1]
        send = [*multifd, "send", str(source), uri, "--method", method, "--timeout", str(TIMEOUT_S), "--json"]
        done = subprocess.run(send, capture_output=True, text=True, timeout=TIMEOUT_S)
        said = receiver.stderr.read()
        if done.returncode or receiver.wait(TIMEOUT_S):
            raise SystemExit(done.stderr + said)
    if any(a != b for a, b in zip(pieces(source), pieces(out), strict=True)):
        raise SystemExit(f"{source}: the destination differs")
    out.unlink()
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--data-mib", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--method", default="none")
    parser.add_argument("--folder", type=Path, help="whose disk takes sparse files; default the temporary folder")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        source, out = Path(folder, "source.ram"), Path(folder, "out.ram")
        write_image(source, args.data_mib << 20)

        def with_hole(gib: int) -> dict[str, Any]:
            os.truncate(source, gib << 30)
            figures = migrate(source, out, args.method)
            os.truncate(source, args.data_mib << 20)
            return figures

        rows = interleaved(args.gib, with_hole, args.rounds)
    for gib, runs in rows.items():
        total, down, wire = (
            statistics.median(run[name] for run in runs)
            for name in ("total_time_ms", "downtime_ms", "transferred_bytes")
        )
        print(f"{gib:3} GiB  total {total / 1e3:6.2f} s  downtime {down:6.0f} ms  {wire / 2**20:8.1f} MiB on the wire")


if __name__ == "__main__":
    main()
