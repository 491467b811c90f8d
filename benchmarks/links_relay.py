"""A running guest from QEMU to QEMU through a relay that compresses, over shaped links: total time and downtime.

The source sends by `none` to a relay beside it, which passes it on over the link by another method; links as in
tests/shaped_link.py, which needs root and iproute2. The guest writes all the time (tests/interop/guest.py); the limit
for its downtime is QEMU's default, 300 ms. Both memories are compared afterwards. Times are QEMU's own, medians.

Usage: PYTHONPATH=tests python benchmarks/links_relay.py [--mib 256] [--rounds 3] [--ways none zstd:level=1 ...]
    [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from interop.guest import Guest, passes_printed
from interop.qemu import Qemu, QemuMissing, Release, newer_release, system_release
from links_row import AUTO, NONE
from shaped_link import Changes, LinkUnavailable, Phase, ShapedLink

from multifd.bench.synthetic import write_image

GIGABIT = 10**9
LINKS = {
    "100Mbit": [Phase(GIGABIT // 10)],
    "1Gbit": [Phase(GIGABIT)],
    "10Gbit": [Phase(10 * GIGABIT)],
    "100Mbit 0.5s, 2Gbit 0.5s": [Phase(GIGABIT // 10, 0.5), Phase(2 * GIGABIT, 0.5)],
}
TIMEOUT_S = 60


@contextmanager
def relaying(out: str, to: str) -> Iterator[str]:
    """A relay for one migration; its URI."""
    command = [sys.executable, "-m", "multifd", "relay", "tcp:127.0.0.1:0", to, "--in", NONE, "--out", out, "--once"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            yield process.stderr.readline().split()[-1]
            if process.wait(TIMEOUT_S):
                raise SystemExit(f"the relay: {process.stderr.read()}")
        finally:
            process.kill()


def migrate(link: ShapedLink, phases: list[Phase], way: str, releases: list[Release], mib: int, image: bytes) -> Any:
    """query-migrate of the source, once the destination has everything."""
    guest, machine = Guest(), "pc-i440fx-7.2"
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        with link.destination():
            there = Qemu(releases[-1], folder, "to", mib, machine=machine, disk=guest.disk(), is_incoming=True)
        stack.callback(there.stop)
        there.multifd(way.partition(":")[0], 2)
        to = there.listen(f"tcp:{link.address}:0")
        with link.source():
            here = Qemu(
                releases[0], folder, "from", mib, machine=machine, disk=guest.disk(), image=image, is_paused=False
            )
            stack.callback(here.stop)
            here.wait(lambda: passes_printed(here.console()) > 1, "second pass of the guest")
            uri = stack.enter_context(relaying(way, to))
        here.multifd(NONE, 2, return_path=True)
        if len(phases) > 1:
            stack.enter_context(Changes(link, phases))
        here("migrate", uri=uri)
        info = here.wait_migrated()
        there.wait_migrated()
        if there.ram() != here.ram():
            raise SystemExit(f"{way}: the destination's RAM is not the source's")
        return info


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=256, help="of the guest, most of it real bytes above 64 MiB")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", default=[NONE, "zstd:level=1", AUTO])
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    try:
        releases = [newer_release(), system_release()]
    except QemuMissing as missing:
        print(f"left out: {missing}", file=sys.stderr)
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "image")
        write_image(path, (args.mib - 64) << 20, "files")
        image = bytes(64 << 20) + path.read_bytes()  # the guest's own windows lie below
    for name, phases in LINKS.items():
        found: dict[str, list[Any]] = {way: [] for way in args.ways}
        for way in args.ways * args.rounds:
            try:
                with ShapedLink(phases[0].bits_per_s) as link:
                    found[way].append(migrate(link, phases, way, releases, args.mib, image))
            except LinkUnavailable as e:
                print(f"left out: {e}", file=sys.stderr)
                return
        for way, infos in found.items():
            total, down = (int(statistics.median(info[key] for info in infos)) for key in ("total-time", "downtime"))
            rows.append({"link": name, "method": way, "total_ms": total, "downtime_ms": down})
            if not args.json:
                print(f"{name:26} {way:16} total {total:6} ms   downtime {down:4} ms", flush=True)
    if args.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
