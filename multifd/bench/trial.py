"""Trials for an advice: a sample of a source migrates for real, by one method after the other.

The sample is a source of its own, a raw image of whole packets, so that everything is measured by the very engine
that will do it: codecs, system calls, page faults, Python.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from multifd.bench import machine, sample
from multifd.bench.job import Figures, Job, SourceSpec
from multifd.bench.measure import EndFailed, Ends
from multifd.bench.model import SHARED, Cost, Setting, stretch
from multifd.engine.session import SendSession
from multifd.errors import RamError
from multifd.pages import Geometry, Memory, Pages
from multifd.ram.block import Source, Staging
from multifd.registry import load_method
from multifd.transport.idle import IdleTimer

SAMPLE_PAGES = 1 << 14
"""Pages in trials: 64 MiB of 4 KiB ones, 128 packets; 0.1 to 0.3 s for zstd level 1 here."""
MOST_SCANNED = 1 << 20
"""Pages that are looked at for being zero: 4 GiB of 4 KiB ones, one to two seconds."""
_RUNS = 2
"""Of a trial; the lower figures count, since whatever else the machine does only adds."""
_LONG_S = 1.5
"""A trial that takes so long is not repeated."""
_ZERO_PAGES = 1 << 16
"""Of the migration that shows what zero pages take: 256 MiB of 4 KiB ones, 0.1 s."""
_LEAST_CPU_S = 1e-6


@dataclass(frozen=True)
class Sampled:
    """What was read of a source, and how many pages are not zero."""

    spec: SourceSpec
    """A raw image of the packets that were chosen; the source itself if these are all that are not zero."""
    is_whole: bool
    """It is the source itself."""
    page_size: int
    of_pages: int
    read_pages: int
    """That were looked at for being zero."""
    normal_pages: float
    """Pages of the source that are not zero: counted, or estimated from those that were looked at."""
    normal_error: float
    """Of that, relative, with 95 %."""
    pages: int
    """In the image."""
    packets: int
    """In the image; each has at least one page that is not zero."""
    of_packets: int
    """That have one, in all of RAM; estimated as `normal_pages` is."""


def take(spec: SourceSpec, source: Source, folder: Path, most_pages: int = SAMPLE_PAGES) -> Sampled:
    """Sample a source into a raw image.

    Args:
        spec: the source's file.
        source: the same, open; the caller's.
        folder: where the image goes.
        most_pages: in the image.

    Raises:
        RamError: it cannot be read, or the image not be written.
    """
    page_size = source.machine.page_size
    geometry = Geometry.of(page_size)
    staging, buffer = Staging(geometry), np.empty((geometry.page_count, page_size), np.uint8)
    scanned, of_packets = sample.spread(source, MOST_SCANNED)
    normal = np.zeros(len(scanned), np.int64)
    for i, portion in enumerate(scanned):
        pages = portion.block.load(portion.offsets, staging)
        if pages is not None:
            mask = pages.zero_mask()
            normal[i] = len(pages) - (0 if mask is None else np.count_nonzero(mask))
    of_pages = sum(block.used_length for block in source.blocks) // page_size
    mean = float(normal.mean())
    error = sample.error_of_mean(normal.tolist(), of_packets)
    filled = np.flatnonzero(normal)
    chosen = _thinned(filled, max(most_pages // geometry.page_count, 1))
    is_whole = len(chosen) == len(filled) and len(scanned) == of_packets
    path = folder / "sample.ram"
    if not is_whole:
        try:
            with path.open("wb") as image:
                for number in chosen.tolist():
                    image.write(sample.load(scanned[number], staging, buffer).data)
        except OSError as e:
            raise RamError(f"{path}: {e.strerror}") from e
    return Sampled(
        spec=spec if is_whole else SourceSpec(spec.id, str(path), "raw", page_size=page_size),
        is_whole=is_whole,
        page_size=page_size,
        of_pages=of_pages,
        read_pages=int(sum(len(p.offsets) for p in scanned)),
        normal_pages=min(mean * of_packets, of_pages),
        normal_error=error / mean if mean else 0.0,
        pages=sum(len(scanned[number].offsets) for number in chosen.tolist()),
        packets=len(chosen),
        of_packets=round(len(filled) * of_packets / len(scanned)),
    )


def _thinned(numbers: npt.NDArray[np.int64], most: int) -> npt.NDArray[np.int64]:
    """At most so many: one at random out of each of as many equal stretches."""
    if len(numbers) <= most:
        return numbers
    edges = np.linspace(0, len(numbers), most + 1)
    at = edges[:-1] + np.random.default_rng(2).random(most) * np.diff(edges)
    return numbers[at.astype(np.int64)]


class Trials:
    """Migrations of a sample between two processes that stay; a context manager.

    Args:
        sampled: what migrates.
        folder: where images of zero pages go.
        channels: connections besides main.
        timeout_s: how long all connections may be silent.
    """

    def __init__(self, sampled: Sampled, folder: Path, channels: int, timeout_s: float) -> None:
        self._sampled, self._folder = sampled, folder
        self._channels, self._timeout_s = channels, timeout_s
        self._ends = Ends()
        self._setting = Setting(1e15, channels, machine.cpus(), SHARED)
        self._beginning: Figures | None = None
        self._zeros: Figures | None = None
        self.last_cpu_s = 0.0
        """Processor seconds of both ends in the last trial."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._ends.__exit__(kind, error, tb)

    def cost(self, method: str) -> Cost:
        """What a migration of the whole source takes by a method.

        Raises:
            EndFailed: it cannot be migrated by it; there will be a new pair of processes for the next.
        """
        begin = self._begin()
        runs = [self._migrate(self._sampled.spec, method)]
        while len(runs) < _RUNS and runs[0].total_time_ms < _LONG_S * 1e3:
            runs.append(self._migrate(self._sampled.spec, method))
        least = {
            name: min(float(getattr(f, name)) for f in runs)
            for name in ("total_time_ms", "source_cpu_s", "destination_cpu_s", "transferred_bytes")
        }
        cost = Cost(
            method,
            least["transferred_bytes"],
            max(least["source_cpu_s"] - begin.source_cpu_s, _LEAST_CPU_S),
            max(least["destination_cpu_s"] - begin.destination_cpu_s, _LEAST_CPU_S),
            begin.total_time_ms / 1e3,
        )
        cost = replace(cost, stretch=stretch(cost, self._setting, least["total_time_ms"] / 1e3))
        return cost if self._sampled.is_whole else self._extrapolated(cost, runs[0].normal_pages, runs[0].zero_pages)

    def time_s(self, method: str, link_bits_per_s: int) -> float:
        """How long a migration of the whole source takes over a link, by a trial over that link.

        Raises:
            EndFailed: it failed.
        """
        begin_s = self._begin().total_time_ms / 1e3
        figures = self._migrate(self._sampled.spec, method, link_bits_per_s)
        factor = 1.0 if self._sampled.is_whole else self._sampled.normal_pages / figures.normal_pages
        return begin_s + max(figures.total_time_ms / 1e3 - begin_s, 0.0) * factor

    @property
    def share(self) -> float:
        """How much of what the source sends a trial sends."""
        sampled = self._sampled
        return 1.0 if sampled.is_whole else min(sampled.pages / max(sampled.normal_pages, 1.0), 1.0)

    def _extrapolated(self, cost: Cost, normal: int, zero: int) -> Cost:
        """Of the whole source, from a trial's so many pages; zero pages cost the same by every method."""
        begin, zeros = self._begin(), self._of_zeros()
        source_s = max(zeros.source_cpu_s - begin.source_cpu_s, 0.0) / _ZERO_PAGES
        destination_s = max(zeros.destination_cpu_s - begin.destination_cpu_s, 0.0) / _ZERO_PAGES
        zero_bytes = zeros.transferred_bytes / _ZERO_PAGES

        def with_zeros(cost: Cost, count: float) -> Cost:
            return replace(
                cost,
                wire_bytes=max(cost.wire_bytes + count * zero_bytes, 1.0),
                source_cpu_s=max(cost.source_cpu_s + count * source_s, _LEAST_CPU_S),
                destination_cpu_s=max(cost.destination_cpu_s + count * destination_s, _LEAST_CPU_S),
            )

        whole = with_zeros(cost, -zero).scaled(self._sampled.normal_pages / normal)
        return with_zeros(whole, self._sampled.of_pages - self._sampled.normal_pages)

    def _begin(self) -> Figures:
        """Of a migration of next to nothing: what remains is the same for every other. The first one warms up."""
        if self._beginning is None:
            self._beginning = self._zero_pages(1)
        return self._beginning

    def _of_zeros(self) -> Figures:
        """Of a migration of `_ZERO_PAGES` zero pages."""
        if self._zeros is None:
            self._zeros = self._zero_pages(_ZERO_PAGES)
        return self._zeros

    def _zero_pages(self, count: int) -> Figures:
        path = self._folder / f"zero-{count}.ram"
        with path.open("wb") as image:
            image.truncate(count * self._sampled.page_size)
        spec = SourceSpec(str(path), str(path), "raw", page_size=self._sampled.page_size)
        runs = [self._migrate(spec, "none") for _ in range(1 + _RUNS)][1:]
        return min(runs, key=lambda figures: figures.total_time_ms)

    def _migrate(self, spec: SourceSpec, method: str, link_bits_per_s: int | None = None) -> Figures:
        try:
            job = Job(spec, method, self._channels, link_bits_per_s, timeout_s=self._timeout_s)
            figures, _ = self._ends.migrate(job)
        except EndFailed:
            self._ends.__exit__(None, None, None)
            self._ends = Ends()
            raise
        self.last_cpu_s = figures.source_cpu_s + figures.destination_cpu_s
        return figures


def payload_error(sampled: Sampled, method: str) -> float:
    """How far, relative, the bytes of all packets may be from what those of the sample say, with 95 %.

    Args:
        sampled: with at least one packet.
        method: whose payloads count.
    """
    loaded = load_method(method)
    geometry = Geometry.of(sampled.page_size)
    if sampled.is_whole or loaded.capabilities.verbatim:
        return 0.0
    memory = Memory(np.fromfile(sampled.spec.path, np.uint8).data, sampled.page_size)
    lengths, counts = [], []
    with SendSession(loaded, 0, geometry, IdleTimer(60.0), {}) as session:
        for offsets in _packets(memory, geometry):
            pages = Pages(memory, offsets, session.staging.scratch)
            mask = pages.zero_mask()
            if mask is not None:
                pages = pages.select(~mask)
            lengths.append(session.prepare(pages)[1])
            counts.append(len(pages))
    per_page = sum(lengths) / sum(counts)
    residuals = [length - per_page * count for length, count in zip(lengths, counts, strict=True)]
    return sample.error_of_mean(residuals, sampled.of_packets) / (sum(lengths) / len(lengths))


def _packets(memory: Memory, geometry: Geometry) -> Iterator[npt.NDArray[np.int64]]:
    for start in range(0, len(memory.array), geometry.page_count):
        count = min(geometry.page_count, len(memory.array) - start)
        yield (np.arange(count, dtype=np.int64) + start) * geometry.page_size
