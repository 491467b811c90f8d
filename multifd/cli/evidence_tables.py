"""What bench and advise found, to a person: tables and sentences on stdout, progress on stderr.

Rules of this file: those of `multifd.cli.tables`. It is given documents as their schemas have them.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Any, Self

from multifd.bench.job import Job, Row
from multifd.cli.console import remark, say
from multifd.cli.tables import cell, print_table
from multifd.errors import printable

_MIB = 1 << 20


class BenchProgress:
    """A bar on a terminal, else a line for each migration, with the time that is left; a context manager.

    Args:
        plan: all that will be measured, in order.
    """

    def __init__(self, plan: Sequence[Job]) -> None:
        self._plan = plan
        self._seconds: dict[tuple[Any, ...], list[float]] = {}
        self._done = 0
        self._last = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            self._bar = Progress(
                TextColumn("bench"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[left]}"),
                TextColumn("{task.fields[last]}", markup=False), console=Console(stderr=True), transient=True,
            )  # fmt: skip
            self._task = self._bar.add_task("bench", total=len(self._plan), left="", last="")
            self._bar.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar away; twice is harmless."""
        if self._bar is not None:
            self._bar.stop()

    def say(self, text: str) -> None:
        """A line of words; what takes time from now on is a migration."""
        if self._bar is not None:
            self._bar.console.print(cell(text), highlight=False)
        else:
            remark(text)
        self._last = time.monotonic()

    def advance(self, row: Row) -> None:
        """One more was measured."""
        now = time.monotonic()
        self._seconds.setdefault(row.key, []).append(now - self._last)
        self._last, self._done = now, self._done + 1
        left = f"about {duration(self.left_s())} left"
        outcome = row.error or (f"{row.figures.total_time_ms:.0f} ms" if row.figures else "")
        last = f"{printable(row.source)} {printable(row.method)} over {row.channels}, {link(row.link_bits_per_s)}: "
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, left=left, last=last + printable(outcome))
        else:
            remark(f"bench: {self._done} of {len(self._plan)}: {last}{outcome}; {left}")

    def left_s(self) -> float:
        """Seconds for what is left: as long as the same took before, or else as long as all took on average."""
        every = [s for some in self._seconds.values() for s in some]
        if not every:
            return 0.0
        mean = sum(every) / len(every)
        left = 0.0
        for job in self._plan[self._done :]:
            same = [s for key, some in self._seconds.items() if key[:4] == _key(job) for s in some]
            left += sum(same) / len(same) if same else mean
        return left


def _key(job: Job) -> tuple[str, str, int, int]:
    return job.source.id, job.method, job.channels, job.link_bits_per_s or 0


def print_bench(document: dict[str, Any]) -> None:
    """A result document: sources, the bare codec's rates, and a row for what was measured."""
    for source in document["sources"]:
        print_anatomy(source)
    _print_codec(document["codec"])
    heads = (
        "source", "method", "channels", "link", "runs", "total time ms", "spread", "downtime ms", "MB/s of RAM",
        "mbps", "pages/s", "bytes on the wire", "ratio", "source CPU s", "destination CPU s", "peak MiB",
    )  # fmt: skip
    print_table(heads, [_row(row) for row in document["rows"]])
    runs = max((row["runs"] for row in document["rows"]), default=0)
    say(f"medians of up to {runs} runs, each destination equal to its source; spread: highest less lowest over median")
    if document["status"] == "cancelled":
        say("cancelled: what was measured up to then")


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    start = (row["source"], row["method"], str(row["channels"]), link(row["link_bits_per_s"]), _runs(row))
    figures = row["figures"]
    if figures is None:
        return (*start, *["-"] * 11)
    m = {name: f["median"] for name, f in figures.items()}
    total = figures["total_time_ms"]
    return (
        *start, f"{m['total_time_ms']:.0f}", f"{(total['high'] - total['low']) / total['median']:.0%}",
        f"{m['downtime_ms']:.0f}", f"{m['ram_bytes_per_s'] / 1e6:.0f}", f"{m['mbps']:.0f}",
        f"{m['pages_per_second']:.0f}", f"{m['transferred_bytes']:.0f}", f"{m['ratio']:.2f}",
        f"{m['source_cpu_s']:.2f}", f"{m['destination_cpu_s']:.2f}",
        f"{m['source_peak_bytes'] / _MIB:.0f} / {m['destination_peak_bytes'] / _MIB:.0f}",
    )  # fmt: skip


def _runs(row: dict[str, Any]) -> str:
    return f"{row['runs']} ({row['failed']} failed)" if row["failed"] else str(row["runs"])


def _print_codec(codec: Sequence[dict[str, Any]]) -> None:
    if not codec:
        return
    heads = ("source", "method", "bare codec, one thread: ratio", "compress MB/s", "decompress MB/s", "pages sampled")
    rows = [
        (
            c["source"], c["method"], f"{c['ratio']:.2f}", f"{c['compress_bytes_per_s'] / 1e6:.0f}",
            f"{c['decompress_bytes_per_s'] / 1e6:.0f}", str(c["pages"]),
        )
        for c in codec
    ]  # fmt: skip
    print_table(heads, rows)


def print_anatomy(source: dict[str, Any]) -> None:
    """What a source's pages are made of."""
    anatomy = source["anatomy"]
    say(f"{source['id']}: {source['format']}, {source['ram_bytes'] / _MIB:.0f} MiB of RAM")
    if anatomy is None:
        return
    heads = ("block", "pages", "zero", "one byte", "met before", "other", "ratio", "half or less", "not at all")
    blocks = anatomy["blocks"]
    every = [anatomy["total"], *(blocks if len(blocks) > 1 else [])]
    print_table(heads, [_anatomy_row(pages) for pages in every])
    s = anatomy["sample"]
    covers = "all of RAM" if s["read_pages"] == s["of_pages"] else f"{s['read_pages']} of {s['of_pages']} pages"
    say(
        f"from {covers}; ratio and shares of compressed pages from {s['pages']} of them ({anatomy['codec']}), "
        f"to {s['error']:.1%} with 95 %"
    )


def _anatomy_row(pages: dict[str, Any]) -> tuple[str, ...]:
    read = max(pages["read_pages"], 1)
    compressed = pages["compressed"]
    n = max(sum(compressed), 1)
    return (
        pages["idstr"] or "all", str(pages["pages"]),
        *(f"{pages[kind] / read:.1%}" for kind in ("zero", "same", "repeated", "other")),
        "-" if pages["ratio"] is None else f"{pages['ratio']:.2f}",
        f"{sum(compressed[: len(compressed) // 2]) / n:.1%}", f"{compressed[-1] / n:.1%}",
    )  # fmt: skip


_BOUND = {
    "link": "the link",
    "source": "the source's processors",
    "destination": "the destination's processors",
    "processors": "the processors of both ends",
}


def print_advice(document: dict[str, Any]) -> None:
    """An advice in words, with a table of the candidates, and as commands."""
    d, best, s = document, document["best"], document["sample"]
    share = "sharing" if d["hosts"] == 1 else "with, each,"
    say(
        f"{d['source']['id']} over {link(d['link_bits_per_s'])}, {d['channels']} channels, both ends {share} "
        f"{d['cpus']} processors{' as bench measures' if d['hosts'] == 1 else ''}:"
    )
    say(
        f"best: {best['method']}: about {best['total_time_s']:.3g} s and {best['transferred_bytes'] / _MIB:.0f} MiB on "
        f"the wire, ratio {best['ratio']:.2f}; it waits for {_BOUND[best['bound']]}"
    )
    heads = (
        "method",
        "time s",
        "by",
        "MiB on the wire",
        "ratio",
        "source CPU s",
        "destination CPU s",
        "waits for",
        "QEMU",
    )
    print_table(heads, [_candidate_row(c) for c in d["candidates"]])
    say(_crossover(d["none_wins_above_bits_per_s"]))
    if best["bound"] != "link":
        say(f"the link would be full with {d['channels_to_fill_link']} channels, with a processor each at either end")
    if d["iaa"]:
        devices = d["iaa"]["devices"]
        say(
            f"IAA: {devices} {'device' if devices == 1 else 'devices'} at each end would keep the link full: "
            f"{d['iaa']['bytes_per_s'] / 1e9:.3g} GB/s of pages at a ratio of {d['iaa']['ratio']:.2f}, "
            f"{d['iaa']['device_bytes_per_s'] / 1e9:.3g} GB/s a device"
        )
    say(
        f"sample: {s['pages']} of {s['of_pages']} pages in trials, {s['read_pages']} looked at, {s['zero_share']:.0%} "
        f"zero; bytes to {s['error']:.1%} with 95 %"
    )
    _print_commands(d)


def _crossover(bits_per_s: float | None) -> str:
    if bits_per_s is None:
        return "not to compress is never the fastest, or was not asked for"
    if not bits_per_s:
        return "not to compress is the fastest over any link"
    return f"not to compress is the fastest above {link(round(bits_per_s))}"


def _candidate_row(c: dict[str, Any]) -> tuple[str, ...]:
    return (
        c["method"], f"{c['total_time_s']:.3g}", "trial" if c["is_tried"] else "arithmetic",
        f"{c['transferred_bytes'] / _MIB:.0f}", f"{c['ratio']:.2f}", f"{c['source_cpu_s']:.3g}",
        f"{c['destination_cpu_s']:.3g}", _BOUND[c["bound"]], "yes" if c["qemu"] else "no",
    )  # fmt: skip


def _print_commands(document: dict[str, Any]) -> None:
    commands, for_qemu = document["commands"], document["best_for_qemu"]
    if for_qemu is not None:
        if for_qemu["method"] != document["best"]["method"]:
            say(f"the best that QEMU can be set to: {for_qemu['method']}: about {for_qemu['total_time_s']:.3g} s")
        say("QEMU, at both ends, before migrate and migrate-incoming:")
        for command in commands["qmp"]:
            say(f"  {json.dumps(command)}")
        say(f"libvirt: {commands['virsh'] or 'virsh migrate has no option for this method'}")
    say(f"multifd: {commands['multifd']['receive']}")
    say(f"multifd: {commands['multifd']['send']}")


def link(bits_per_s: int | None) -> str:
    """A rate as it is given on the command line."""
    if bits_per_s is None:
        return "unlimited"
    for unit, size in (("T", 10**12), ("G", 10**9), ("M", 10**6)):
        if bits_per_s >= size:
            return f"{bits_per_s / size:.4g}{unit}bit"
    return f"{bits_per_s / 1e3:.4g}Kbit"


def duration(seconds: float) -> str:
    """A time in the two largest units that it has."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, seconds = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s"
    return f"{minutes // 60} h {minutes % 60} min"
