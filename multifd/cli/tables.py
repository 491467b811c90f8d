"""Figures to a person: tables on stdout. rich is imported when something is shown.

Rules of this file: a text of a file, a peer or a plugin enters a table through `cell` and a line through `say`, so
that none of it moves the cursor or is taken for rich's markup. A table is laid out for the terminal's width: a row for
each thing, or, where that is too wide, a column, or a paragraph. Without a terminal it is always the first, however
wide, and no line is broken that another program may read.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from multifd.cli.console import say
from multifd.errors import printable
from multifd.registry import MethodInfo
from multifd.stats import RelayResult, Result

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from multifd.engine.streams_info import StreamsInfo
    from multifd.ram.capture import CaptureInfo
    from multifd.ram.export import Exported
_WORTH_DIGGING = 64 << 10  # bytes; what a file system allocates ahead is less
_ENDLESS = 10_000  # columns: wider than any table


def print_results(results: Sequence[Result]) -> None:
    """The figures of each migration."""
    heads = (
        "method", "status", "channels", "total time ms", "setup time ms", "downtime ms", "throughput mbps",
        "pages-per-second", "normal pages", "zero pages", "bytes on the wire", "ratio",
    )  # fmt: skip
    rows = []
    for r in results:
        ratio = f"{r.ram_bytes / r.transferred_bytes:.2f}" if r.transferred_bytes else "-"
        downtime = "-" if r.downtime_ms is None else f"{r.downtime_ms:.1f}"
        rows.append((
            r.method, r.status, str(r.channels), f"{r.total_time_ms:.0f}", f"{r.setup_time_ms:.0f}",
            downtime, f"{r.mbps:.0f}", str(r.pages_per_second), str(r.normal_pages),
            str(r.zero_pages), str(r.transferred_bytes), ratio,
        ))  # fmt: skip
    print_table(heads, rows)
    for r in results:
        if r.tracker:
            why = f" ({r.tracker_reason})" if r.tracker_reason else ""
            say(f"{r.method}: {r.rounds} rounds, {r.dirty_pages_rate} pages/s dirty, tracked by {r.tracker}{why}")
        for name, value in sorted(r.method_stats.items()):
            if value:
                say(f"{r.method}: {name} {value}")


def print_relay(result: RelayResult) -> None:
    """One line for a migration that was passed on."""
    r = result
    say(
        f"{r.in_method or '-'} to {r.out_method}: {r.status}, {r.channels} channels, {r.total_time_ms:.0f} ms, "
        f"{r.packets} packets, {r.normal_pages} normal pages, {r.zero_pages} zero pages, "
        f"{r.bytes_in} bytes in, {r.bytes_out} bytes out"
    )


def print_methods(infos: Sequence[MethodInfo]) -> None:
    """What is known of each method."""
    rows = []
    for info in infos:
        code = f"{info.wire_code:#04x}" if info.wire_code is not None else "private" if info.status == "ok" else ""
        options = "\n".join(f"{o['name']}={o['default']} ({o['type']}: {o['allowed']})" for o in info.options)
        distribution = f"{info.distribution} {info.version}"
        rows.append((info.name, info.status, info.engine, code, distribution, options, info.reason))
    print_table(("method", "status", "engine", "wire code", "distribution", "options", "reason"), rows)


def print_capture(info: CaptureInfo) -> None:
    """What is in a capture: a line each, and a table of its blocks."""
    say(f"format: {f'libvirt save image ({info.format})' if info.xml is not None else info.format}")
    if info.xml is not None:
        say(f"domain: {info.domain or 'not named'}, {'running' if info.was_running else 'paused'} when saved")
    say(f"machine type: {info.machine or 'not named (2.3 or older)'}")
    say(f"QEMU release: {f'{info.qemu_at_least} or later' if info.qemu_at_least else 'does not show'}")
    say(f"uuid: {info.uuid or 'none'}")
    say(f"page size: {info.page_size} bytes")
    print_table(
        ("block", "bytes", "present pages", "zero pages"),
        [(b.idstr, str(b.used_length), str(b.present_pages), str(b.zero_pages)) for b in info.blocks],
    )
    filled = ""
    if info.unused_bytes >= _WORTH_DIGGING:
        filled = f", of which about {info.unused_bytes} are holes that a copy filled: fallocate --dig-holes frees them"
    say(f"on disk: {info.disk_bytes} bytes{filled}")
    say(f"devices' state: {info.device_state_bytes} bytes, {len(info.devices)} devices")
    for device in info.devices:
        say(f"  {device}")
    for line in (info.xml or "").splitlines():
        say(line)


def print_streams(info: StreamsInfo) -> None:
    """What is in stored streams: a line each, and a table of the files."""
    say(f"format: stored streams, written by {info.writer}")
    say(f"machine type: {info.machine or 'not named (2.3 or older)'}")
    say(f"QEMU release: {f'{info.qemu_at_least} or later' if info.qemu_at_least else 'does not show'}")
    say(f"uuid: {info.uuid or 'none'}")
    say(f"page size: {info.page_size} bytes")
    for idstr, used_length in info.blocks.items():
        say(f"block {idstr}: {used_length} bytes")
    say(f"method: {info.method or 'not known'}")
    print_table(
        ("file", "bytes", "packets", "normal pages", "zero pages"),
        [
            (s.name, str(s.nbytes), "" if s.name == "main" else str(s.packets), str(s.normal_pages), str(s.zero_pages))
            for s in info.streams
        ],
    )
    say(f"in all: {info.stored_bytes} bytes")
    for idstr, digest in (info.ram or {}).items():
        say(f"SHA-256 of block {idstr}: {digest}")
    if info.repeated_pages:
        say(
            f"{info.repeated_pages} pages are stored again, as the guest wrote to them meanwhile: "
            "multifd send from this folder to another one leaves them out"
        )
    if not info.has_return_path:
        say("a destination is not asked for its confirmation: the source had return-path off")


def print_export(out: str, done: Exported) -> None:
    """A line for each block and each piece of memory, and what to know about them."""
    for block in done.blocks:
        say(f"{out}: {block.idstr}, {block.used_length} bytes, {block.zero_pages} pages of holes")
    for e in done.extents:
        say(f"{out}: {e.idstr} from {e.offset:#x} on is at {e.address:#x} to {e.address + e.nbytes - 1:#x}")
    if done.format == "elf":
        say(f"{out}: registers of {done.cpus} CPUs, {'with' if done.has_vmcoreinfo else 'without'} VMCOREINFO")
    for what in done.remarks:
        say(f"{out}: {what}")


def print_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table of `rows` under `heads`, in the first layout that the terminal is wide enough for."""
    from rich.console import Console

    console = Console(highlight=False, width=None if sys.stdout.isatty() else _ENDLESS)
    with console.capture() as made:  # rich ends the process where a pipe is not read any more
        _draw(console, heads, rows)
    print(made.get(), end="", flush=True)


def _draw(console: Console, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    for table in (_table(heads, rows), _turned(heads, rows)):
        if _width(table, console) <= console.width:
            console.print(table)
            return
    for row in rows:
        console.print(_paragraph(heads, row))


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE)
    for head in heads:
        table.add_column(cell(head))
    for row in rows:
        table.add_row(*map(cell, row))
    return table


def _turned(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A line for each head, a column for each row."""
    from rich.table import Table

    table = Table.grid(padding=(0, 2, 0, 0))
    for line in zip(heads, *rows, strict=True):
        table.add_row(*map(cell, line))
    return table


def _width(table: Table, console: Console) -> int:
    """Columns that a table takes if no cell is broken."""
    return table.__rich_measure__(console, console.options.update(width=_ENDLESS)).maximum


def _paragraph(heads: Sequence[str], row: Sequence[str]) -> Table:
    """What a row says, a line for each head that has something under it, broken where the terminal ends."""
    from rich.padding import Padding
    from rich.table import Table

    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for head, text in zip(heads, row, strict=True):
        if text:
            grid.add_row(cell(head), cell(text))
    table = Table.grid()
    table.add_row(Padding(grid, (0, 0, 1, 1)))
    return table


def cell(text: str) -> Text:
    """A text as it is: no markup, nothing that moves the cursor; its own line ends break it."""
    from rich.text import Text

    return Text("\n".join(map(printable, text.split("\n"))))
