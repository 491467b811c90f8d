"""One table of ratios: multifd beside QEMU to QEMU, iperf3 and zstd through socat, in one run.

A figure is multifd's time over the other's, so less than 1 is faster: the median of the ratios of each round. Each
round goes by every way once, interleaved; the first does not count. Both ends are processes of this machine, over
loopback TCP; memory is touched before the clock starts, holds this machine's own files, a quarter zero pages and a
quarter noise, and every destination of multifd and QEMU is compared (benchmarks/compare.py, which measures them).

* QEMU to QEMU: each release that is here, the system's and that of MULTIFD_QEMU_NEW; its level 1.
* iperf3 -P 2: as many bytes as multifd's none puts on the wire, and no memory at either end.
* zstd -1 -T2 | socat, and socat | zstd -d at the other end, which throws the bytes away.

Usage: PYTHONPATH=tests python benchmarks/table.py [--mib 1024] [--rounds 3] [--channels 2] [--json]
"""

from __future__ import annotations

import argparse
import json
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from compare import Bed, Machines, Processes, checksum, pieces_of
from interop.qemu import QemuMissing, Release, newer_release, system_release
from methods import iperf3
from rounds import interleaved, median_ratio

from multifd import registry
from multifd.bench.synthetic import write_image

OURS = {"none": "none", "zstd:level=1": "zstd", "zlib:level=1": "zlib", "qpl": None}
"""Our methods, and QEMU's that is beside each; QEMU's own qpl is not in Debian's builds."""
TIMEOUT_S = 300
Way = Callable[[], float]
"""Migrates once; seconds."""


def releases() -> list[Release]:
    """What is here, each version once, ascending."""
    found: dict[tuple[int, int], Release] = {}
    for look in (system_release, newer_release):
        try:
            release = look()
        except QemuMissing as missing:
            print(f"left out: {missing}", file=sys.stderr)
        else:
            found[release.version] = release
    return [found[version] for version in sorted(found)]


def methods() -> list[str]:
    """Those of `OURS` that run here."""
    found = []
    for spec in OURS:
        name = spec.partition(":")[0]
        info = next((info for info in registry.describe() if info.name == name), None)
        if info is not None and info.status == "ok":
            found.append(spec)
        else:
            print(f"left out: {spec}: {info.reason if info else 'not installed'}", file=sys.stderr)
    return found


def zstd_socat(image: Path) -> float:
    """Seconds for the image through ``zstd -1 -T2 | socat`` and ``socat | zstd -d``."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    pipe, buffer = subprocess.PIPE, ("-u", "-b", str(1 << 20))
    listen = ["socat", *buffer, f"TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr", "-"]
    connect = ["socat", *buffer, "-", f"TCP:127.0.0.1:{port},retry=100,interval=0.01"]
    with (
        subprocess.Popen(listen, stdout=pipe) as receiver,
        subprocess.Popen(["zstd", "-q", "-d", "-c"], stdin=receiver.stdout, stdout=subprocess.DEVNULL) as unpack,
    ):
        start = time.perf_counter()
        with (
            subprocess.Popen(["zstd", "-q", "-1", "-T2", "-c", str(image)], stdout=pipe) as pack,
            subprocess.Popen(connect, stdin=pack.stdout) as sender,
        ):
            for process in (pack, sender, receiver, unpack):
                if process.stdout is not None:
                    process.stdout.close()  # or nobody hears that its reader has ended
            for process in (pack, sender, receiver, unpack):
                if process.wait(TIMEOUT_S):
                    raise SystemExit(f"{process.args}: status {process.returncode}")
    return time.perf_counter() - start


def yardsticks(stack: ExitStack, folder: Path, bed: Bed, channels: int, sent_bytes: int) -> dict[str, dict[str, Way]]:
    """What multifd is compared with: by name, for each of our methods."""
    found: dict[str, dict[str, Way]] = {}
    for release in releases():
        name = f"QEMU {release.version[0]}.{release.version[1]}"
        (folder / name).mkdir()
        machines = Machines(release, folder / name, bed)
        stack.callback(machines.stop)
        found[name] = {
            ours: lambda theirs=theirs, machines=machines: machines.migrate(theirs, channels).time_s  # type: ignore[misc]
            for ours, theirs in OURS.items()
            if theirs
        }
    if shutil.which("iperf3"):
        found["iperf3 -P 2"] = {"none": lambda: sent_bytes / iperf3(sent_bytes)}
    else:
        print("left out: iperf3 is missing (apt-get install iperf3)", file=sys.stderr)
    if shutil.which("zstd") and shutil.which("socat"):
        found["zstd -1 -T2 | socat"] = {"zstd:level=1": lambda: zstd_socat(bed.image)}
    else:
        print("left out: zstd or socat is missing (apt-get install zstd socat)", file=sys.stderr)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--channels", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    size, specs = args.mib << 20, methods()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        image = folder / "image"
        write_image(image, size)
        bed = Bed(image, size, checksum(pieces_of(image, 0, size)), is_touched=True)
        processes = Processes(bed)
        stack.callback(processes.stop)
        sent_bytes = processes.migrate("none", args.channels).wire_bytes
        others = yardsticks(stack, folder, bed, args.channels, sent_bytes)
        ways: dict[tuple[str, str], Way] = {}
        for spec in specs:
            ways[spec, "multifd"] = lambda spec=spec: processes.migrate(spec, args.channels).time_s  # type: ignore[misc]
            ways |= {(spec, name): by_method[spec] for name, by_method in others.items() if spec in by_method}
        times = interleaved(ways, lambda way: ways[way](), args.rounds)
    show(times, specs, list(others), as_json=args.json)


def show(times: dict[tuple[str, str], list[float]], specs: list[str], others: list[str], *, as_json: bool) -> None:
    """The table."""
    rows = []
    for spec in specs:
        ours = times[spec, "multifd"]
        row: dict[str, object] = {"method": spec, "multifd_s": statistics.median(ours)}
        for name in others:
            theirs = times.get((spec, name))
            row[name] = median_ratio(ours, theirs) if theirs else None
        rows.append(row)
    if as_json:
        print(json.dumps(rows))
        return
    print(f"{'multifd':14} {'time':>8}" + "".join(f"  {f'/ {name}':>22}" for name in others))
    for row in rows:
        cells = "".join(f"  {'-' if row[name] is None else f'{row[name]:.2f}':>22}" for name in others)
        print(f"{row['method']:14} {row['multifd_s']:6.2f} s{cells}")


if __name__ == "__main__":
    main()
