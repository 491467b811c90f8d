"""Figures to a person: tables on stdout, progress on stderr. rich is imported when something is shown."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

from multifd.registry import MethodInfo
from multifd.stats import RelayResult, Result

if TYPE_CHECKING:
    from rich.table import Table

    from multifd.ram.capture import CaptureInfo
    from multifd.ram.export import Exported
_LINE_S = 1.0


class Progress:
    """A live bar on a terminal, else one line a second; a context manager.

    Args:
        what: the command's name, which starts each line.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._bar: Any = None
        self._task: Any = None
        self._last_line = 0.0

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[figures]}"),
                console=Console(stderr=True), transient=True,
            )  # fmt: skip
            self._task = self._bar.add_task(self._what, total=None, figures="")
            self._bar.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, text: str) -> None:
        """One line of words."""
        if self._bar is not None:
            self._bar.console.print(text, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def update(self, result: Result) -> None:
        """The figures so far; nothing is shown before the first page."""
        pages = result.normal_pages + result.zero_pages
        if not pages:
            return
        figures = f"{result.method} {pages} pages, {result.transferred_bytes >> 20} MiB moved, {result.mbps:.0f} mbps"
        if self._bar is not None:
            total = max(result.ram_bytes // 4096, pages) or None
            self._bar.update(self._task, completed=pages, total=total, figures=figures)
        elif (now := time.monotonic()) - self._last_line >= _LINE_S:
            self._last_line = now
            print(f"{self._what}: {figures}", file=sys.stderr, flush=True)


def print_results(results: Sequence[Result]) -> None:
    """One row for each migration."""
    table = _table(
        "method", "status", "channels", "total time ms", "setup time ms", "downtime ms", "throughput mbps",
        "pages-per-second", "normal pages", "zero pages", "bytes on the wire", "ratio",
    )  # fmt: skip
    for r in results:
        ratio = f"{r.ram_bytes / r.transferred_bytes:.2f}" if r.transferred_bytes else "-"
        table.add_row(
            r.method, r.status, str(r.channels), f"{r.total_time_ms:.0f}", f"{r.setup_time_ms:.0f}",
            f"{r.downtime_ms:.1f}", f"{r.mbps:.0f}", str(r.pages_per_second), str(r.normal_pages),
            str(r.zero_pages), str(r.transferred_bytes), ratio,
        )  # fmt: skip
    _print(table)
    for r in results:
        if r.tracker:
            why = f" ({r.tracker_reason})" if r.tracker_reason else ""
            print(f"{r.method}: {r.rounds} rounds, {r.dirty_pages_rate} pages/s dirty, tracked by {r.tracker}{why}")
        for name, value in sorted(r.method_stats.items()):
            print(f"{r.method}: {name} {value}")


def print_relay(result: RelayResult) -> None:
    """One line for a migration that was passed on."""
    r = result
    print(
        f"{r.in_method or '-'} to {r.out_method}: {r.status}, {r.channels} channels, {r.total_time_ms:.0f} ms, "
        f"{r.packets} packets, {r.normal_pages} normal pages, {r.zero_pages} zero pages, "
        f"{r.bytes_in} bytes in, {r.bytes_out} bytes out",
        flush=True,
    )


def print_methods(infos: Sequence[MethodInfo]) -> None:
    """One row for each method."""
    table = _table("method", "status", "engine", "wire code", "distribution", "options", "reason")
    for info in infos:
        code = "private" if info.wire_code is None else f"{info.wire_code:#04x}"
        options = "\n".join(f"{o['name']}={o['default']} ({o['type']}: {o['allowed']})" for o in info.options)
        table.add_row(
            info.name, info.status, info.engine, code, f"{info.distribution} {info.version}", options, info.reason
        )
    _print(table)


def print_capture(info: CaptureInfo) -> None:
    """What is in a capture: a line each, and a row for each block."""
    print(f"format: {f'libvirt save image ({info.format})' if info.xml is not None else info.format}")
    if info.xml is not None:
        state = "running" if info.was_running else "paused"
        print(f"domain: {_printable(info.domain or 'not named')}, {state} when saved")
    print(f"machine type: {info.machine or 'not named (2.3 or older)'}")
    print(f"QEMU release: {f'{info.qemu_at_least} or later' if info.qemu_at_least else 'does not show'}")
    print(f"uuid: {info.uuid or 'none'}")
    print(f"page size: {info.page_size} bytes")
    table = _table("block", "bytes", "present pages", "zero pages")
    for block in info.blocks:
        table.add_row(block.idstr, str(block.used_length), str(block.present_pages), str(block.zero_pages))
    _print(table)
    print(f"devices' state: {info.device_state_bytes} bytes, {len(info.devices)} devices")
    for device in info.devices:
        print(f"  {device}")
    if info.xml is not None:
        print(_printable(info.xml))


def print_export(out: str, done: Exported) -> None:
    """A line for each block and each piece of memory, and what to know about them."""
    for block in done.blocks:
        print(f"{out}: {block.idstr}, {block.used_length} bytes, {block.zero_pages} pages of holes")
    for e in done.extents:
        print(f"{out}: {e.idstr} from {e.offset:#x} on is at {e.address:#x} to {e.address + e.nbytes - 1:#x}")
    if done.format == "elf":
        print(f"{out}: registers of {done.cpus} CPUs, {'with' if done.has_vmcoreinfo else 'without'} VMCOREINFO")
    for remark in done.remarks:
        print(f"{out}: {remark}")


def _printable(text: str) -> str:
    """Without what a terminal takes for commands: it is from a file that may be anybody's."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


def _table(*columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE)
    for column in columns:
        table.add_column(column)
    return table


def _print(table: Table) -> None:
    from rich.console import Console

    # Without a terminal nothing is as wide as the table: no line is broken that another program may read.
    console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=240)
    console.print(table)
