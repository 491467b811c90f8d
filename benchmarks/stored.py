"""Storing streams beside zstd's own command, on the same file: wall time, CPU and bytes, in one run.

A raw image of real bytes is stored by multifd send FILE dir:PATH --method zstd:level=1, and compressed by zstd -T2 -1:
either command as a whole, from start to exit, interleaved, what is written synced by both; the first round does not
count. Medians.

Usage: python benchmarks/stored.py [--mib 1024] [--rounds 5] [--channels 2] [--folder FOLDER] [--image FILE]
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from rounds import interleaved

from multifd.bench.synthetic import write_image

AIM_TIME, AIM_BYTES = 1.0, 1.05
"""Of zstd's."""


class Figures(NamedTuple):
    """Of one command."""

    wall_s: float
    cpu_s: float
    nbytes: int


def run(command: list[str], out: Path) -> Figures:
    """Run it, and sync what it wrote."""
    os.sync()
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command}: wait status {status}")
    files = list(out.iterdir()) if out.is_dir() else [out]
    for file in files:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    wall_s = time.monotonic() - start
    return Figures(wall_s, usage.ru_utime + usage.ru_stime, sum(file.stat().st_size for file in files))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--channels", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="on the disk to be measured; default the temporary folder")
    parser.add_argument("--image", type=Path, help="a raw image instead of one that is made")
    args = parser.parse_args()
    if shutil.which("zstd") is None:
        raise SystemExit("zstd is missing (apt-get install zstd)")
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        image = args.image or folder / "image"
        if args.image is None:
            write_image(image, args.mib << 20)
        streams, packed = folder / "streams", folder / "packed.zst"
        multifd = [sys.executable, "-m", "multifd", "send", str(image), f"dir:{streams}", "--method", "zstd:level=1"]
        multifd += ["--channels", str(args.channels), "--source-format", "raw"]
        zstd = ["zstd", "-q", "-f", "-T2", "-1", str(image), "-o", str(packed)]
        ways = {"zstd -T2 -1": (zstd, packed), "dir: by zstd:level=1": (multifd, streams)}

        def once(name: str) -> Figures:
            shutil.rmtree(streams, ignore_errors=True)
            return run(*ways[name])

        rows = interleaved(ways, once, args.rounds)
    medians = {name: Figures(*map(statistics.median, zip(*row, strict=True))) for name, row in rows.items()}
    for name, figures in medians.items():
        print(f"{name:22} {figures.wall_s:6.2f} s   {figures.cpu_s:6.2f} s CPU   {figures.nbytes:12.0f} bytes")
    theirs, ours = medians.values()
    print(f"time: {ours.wall_s / theirs.wall_s:.2f} of zstd's   (aim: at most {AIM_TIME})")
    print(f"bytes: {ours.nbytes / theirs.nbytes:.3f} of zstd's   (aim: at most {AIM_BYTES})")


if __name__ == "__main__":
    main()
