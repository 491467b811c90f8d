"""Total time over links of known rates: zstd's fixed levels, none, and the level that follows the link.

The links are real: a token bucket (tc tbf) on a veth pair between two network namespaces that this makes, which needs
root and iproute2. Where that is not allowed the sender's own limit takes their place, and links that change are left
out. What a link gives is measured first, by `none`, and printed. Unlimited is loopback.

Memory to memory between two processes that share this machine's processors; both ends' memory is touched before the
clock starts, and every destination is compared with its image (benchmarks/compare.py). Images: real, files of this
machine; mixed, runs of 1 to 16 MiB of those and of noise, alternating; noise, which does not shrink.

A round goes by every way once, interleaved, and medians are taken. A way that took more than twice as long as the best
fixed level is not tried again, nor is a level above it.

kept: at most 1.05 of the best fixed level's time, less than all of them if the link changes, and over loopback at most
1.35 of none's.

Usage: PYTHONPATH=tests python benchmarks/links.py [--quick] [--rounds 2] [--links 1Gbit ...] [--images real ...]
    [--channels 2] [--sweep 1 8] [--ways zstd:level=1 ...] [--json docs/links.json]
       python benchmarks/links_figure.py      makes the tables and the picture of the documentation of it
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from compare import Bed, Figures, Processes, checksum, pieces_of
from links_row import AUTO, NONE, Row
from shaped_link import Changes, Ends, LinkUnavailable, Loopback, Phase, ShapedLink

from multifd.bench.synthetic import write_image
from multifd.errors import MultifdError
from multifd.registry import load_method

MIB = 1 << 20
GIGABIT = 10**9
FIXED = [f"zstd:level={level}" for level in (-7, -3, 1, 3, 6, 9)]
"""Ascending, so that what lies above a level without hope is left out."""
LEFT_OUT = {
    "noise": {"zstd:level=-3", "zstd:level=3", "zstd:level=6", "zstd:level=9"},
    "changing": {"zstd:level=-3", "zstd:level=9"},
}
"""Levels that are not tried where they hardly differ from others, or where each takes long."""
IMAGES = ("real", "mixed", "noise")
HOPELESS = 2.0
"""Times the best fixed level: not tried again."""
LONGEST_RUN_MIB = 16
"""Of one kind in a row, in a mixed image."""
QUICK = 3
"""A quick run moves a third of the memory, once; over links that change all of it, but one image alone."""


@dataclass(frozen=True)
class Link:
    """A link, and how much memory goes over it."""

    name: str
    phases: tuple[Phase, ...]
    """None is loopback; several follow one another, over and over."""
    mib: int

    @property
    def is_changing(self) -> bool:
        """Whether it has more than one rate."""
        return len(self.phases) > 1


LINKS = (
    Link("100Mbit", (Phase(GIGABIT // 10),), 48),
    Link("1Gbit", (Phase(GIGABIT),), 256),
    Link("2.5Gbit", (Phase(5 * GIGABIT // 2),), 512),
    Link("10Gbit", (Phase(10 * GIGABIT),), 512),
    Link("loopback", (), 512),
    Link("100Mbit 3s, 1Gbit 1s", (Phase(GIGABIT // 10, 3.0), Phase(GIGABIT, 1.0)), 384),
    Link("200Mbit 2s, 10Gbit 0.5s", (Phase(GIGABIT // 5, 2.0), Phase(10 * GIGABIT, 0.5)), 1024),
)
"""The phases are such that about as much memory goes over the slow link as over the fast one; else one alone counts."""
SWEPT = ("1Gbit", "loopback")
"""Where other numbers of channels are tried."""


def write_images(folder: Path, mib: int, kinds: list[str], seed: int) -> dict[str, Path]:
    """Of `mib` MiB each, by kind."""
    real, mixed, noise = (folder / kind for kind in IMAGES)
    if {"real", "mixed"} & set(kinds):
        write_image(real, mib * MIB, "files", seed)
    if {"noise", "mixed"} & set(kinds):
        write_image(noise, mib * MIB, "noise", seed)
    if "mixed" in kinds:
        _mix(mixed, [real, noise], mib, random.Random(seed))
    return {kind: folder / kind for kind in kinds}


def _mix(path: Path, sources: list[Path], mib: int, rng: random.Random) -> None:
    """Runs of the sources in turn, each from where it will lie."""
    at = 0
    with path.open("wb") as mixed:
        while at < mib:
            run = min(rng.randint(1, LONGEST_RUN_MIB), mib - at)
            mixed.writelines(pieces_of(sources[0], at * MIB, run * MIB))
            sources.append(sources.pop(0))
            at += run


class Race:
    """Every way over one link with one image, round after round."""

    def __init__(self, link: Link, bed: Bed, ends: Ends, processes: Processes) -> None:
        self.name = link.name
        self._link, self._bed, self._ends, self._processes = link, bed, ends, processes
        self._limit = link.phases[0].bits_per_s // 8 if link.phases and isinstance(ends, Loopback) else 0

    def _migrate(self, way: str, channels: int) -> Figures:
        changing: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
        if self._link.is_changing and isinstance(self._ends, ShapedLink):
            changing = Changes(self._ends, self._link.phases)
        with changing:
            return self._processes.migrate(way, channels, self._limit)

    def row(self, image: str, ways: list[str], channels: int, rounds: int) -> Row:
        """Measured with so many channels; once if the link changes, which takes long."""
        first = self._migrate(NONE, channels)  # also warms both ends
        found: dict[str, list[Figures]] = {}
        left_out = LEFT_OUT["changing"] if self._link.is_changing else LEFT_OUT.get(image, set())
        ways = [way for way in ways if way not in left_out]
        left = list(ways)
        for _ in range(1 if self._link.is_changing else rounds):
            for way in ways:
                if way in left:
                    found.setdefault(way, []).append(self._migrate(way, channels))
                    left = _hopeful(left, found)
        return Row(
            self._link.name, self._link.is_changing, image, self._bed.size // MIB, channels,
            first.wire_bytes * 8 / first.time_s,
            {way: statistics.median(figures.time_s for figures in row) for way, row in found.items()},
            {way: int(statistics.median(figures.wire_bytes for figures in row)) for way, row in found.items()},
            dict(found[AUTO][-1].method_stats) if AUTO in found else {},
        )  # fmt: skip


def _hopeful(left: list[str], found: dict[str, list[Figures]]) -> list[str]:
    """Those of the ways that are worth another round."""
    least = {way: min(figures.time_s for figures in row) for way, row in found.items()}
    tried = [way for way in FIXED if way in least]
    if not tried:
        return left
    best = min(tried, key=lambda way: least[way])
    hopeless = {way for way in least if least[way] > HOPELESS * least[best] and way != AUTO}
    above = [way for way in tried if way in hopeless and FIXED.index(way) > FIXED.index(best)]
    if above:
        hopeless.update(FIXED[FIXED.index(above[0]) :])
    return [way for way in left if way not in hopeless]


def shaping_unavailable_reason() -> str:
    """Empty if links can be shaped here."""
    try:
        ShapedLink(GIGABIT).close()
    except LinkUnavailable as e:
        return str(e)
    return ""


def default_ways() -> list[str]:
    """The level that follows the link is left out where this multifd has none."""
    try:
        load_method(AUTO)
    except MultifdError as e:
        print(f"left out: {AUTO}: {e}", file=sys.stderr)
        return [NONE, *FIXED]
    return [NONE, *FIXED, AUTO]


def races(links: list[Link], images: dict[str, Path], share: int, *, is_shaped: bool) -> Iterator[tuple[str, Race]]:
    """Each image over each link, the link and both processes made for it; noise does not go over links that change."""
    for link in links:
        for kind, image in images.items():
            if link.is_changing and (kind == "noise" or (share > 1 and kind != "real")):
                continue
            size = (link.mib if link.is_changing else link.mib // share) * MIB
            bed = Bed(image, size, checksum(pieces_of(image, 0, size)), is_touched=True)
            with contextlib.ExitStack() as stack:
                ends: Ends = Loopback()
                if link.phases and is_shaped:
                    ends = stack.enter_context(ShapedLink(link.phases[0].bits_per_s))
                processes = Processes(bed, ends)
                stack.callback(processes.stop)
                yield kind, Race(link, bed, ends, processes)


def line(row: Row) -> str:
    """One row in words."""
    times = "  ".join(f"{way.rpartition('=')[2]} {time_s:.2f}" for way, time_s in row.time_s.items())
    verdict = ""
    if row.is_kept is not None:
        verdict = f"  auto: {row.auto_to(row.best_fixed):.3f} of it, {row.auto_to(NONE):.3f} of none: "
        verdict += "kept" if row.is_kept else "NOT KEPT"
    best = f"{row.best_fixed.rpartition('=')[2]} {row.time_s[row.best_fixed]:.2f}"
    return (
        f"{row.link:24} {row.image:5} {row.mib:4} MiB {row.channels} ch  "
        f"{row.measured_bits_per_s / 1e9:6.3f} Gbit/s  s: {times}  best fixed {best}{verdict}"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [link.name for link in LINKS]
    parser.add_argument("--quick", action="store_true", help=f"1/{QUICK} of the memory, one round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--links", nargs="+", choices=names, default=names)
    parser.add_argument("--images", nargs="+", choices=IMAGES, default=list(IMAGES))
    parser.add_argument("--channels", type=int, default=2)
    parser.add_argument("--sweep", type=int, nargs="*", default=[1, 8], help=f"real image, {' and '.join(SWEPT)}")
    parser.add_argument("--ways", nargs="+", help="methods with options, none among them; default: with some levels")
    parser.add_argument("--seed", type=int, default=1, help="of the images")
    parser.add_argument("--json", type=Path, help="all of it")
    args = parser.parse_args()
    reason = shaping_unavailable_reason()
    if reason:
        print(f"links cannot be shaped here, the sender's own limit is used: {reason}", file=sys.stderr)
    links = [link for link in LINKS if link.name in args.links and not (link.is_changing and reason)]
    share, rounds, ways = (QUICK if args.quick else 1), (1 if args.quick else args.rounds), args.ways or default_ways()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        images = write_images(Path(folder), max(link.mib for link in links), args.images, args.seed)
        for kind, race in races(links, images, share, is_shaped=not reason):
            for channels in [args.channels, *(args.sweep if kind == "real" else [])]:
                if channels == args.channels or race.name in SWEPT:
                    rows.append(race.row(kind, ways, channels, rounds))
                    print(line(rows[-1]), flush=True)
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    print(f"{len(rows)} rows; {sum(row.is_kept is False for row in rows)} in which what is promised did not hold")


if __name__ == "__main__":
    main()
