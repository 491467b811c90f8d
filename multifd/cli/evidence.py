"""The commands that give evidence before a method is chosen: bench and advise."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from multifd.cli import signals
from multifd.cli.arguments import CHANNELS, METHOD, timeout
from multifd.cli.arguments import channels as channels_option
from multifd.cli.console import check_place, keep, remark, reporting_to_file, write_whole
from multifd.cli.values import FilePath, Link, MethodSpec, SourcePlace, Whole
from multifd.errors import MethodError, UsageError

if TYPE_CHECKING:
    from multifd.bench.campaign import Evidence
    from multifd.bench.job import SourceSpec

_SOURCE_FORMATS = ["auto", "mapped-ram", "stream", "libvirt", "raw"]


def register(group: click.Group) -> None:
    """Add the commands to the command line."""
    group.add_command(bench)
    group.add_command(advise)


def _source_format(command: Callable[..., None]) -> Callable[..., None]:
    return click.option(
        "--source-format",
        default="auto",
        show_default=True,
        type=click.Choice(_SOURCE_FORMATS),
        help="What each SOURCE is; auto looks at it, and takes a file without any known format's mark for raw.",
    )(command)


@click.command(short_help="Measure migrations of a guest's memory by several methods.")
@click.argument("sources", nargs=-1, type=SourcePlace(), metavar="[SOURCE]...")
@click.option("--synthetic", multiple=True, metavar="KIND:SIZE", help="Bytes made here, such as mix:64M; kinds: zero, "
              "noise, text, files (of this machine), mix of these.")  # fmt: skip
@click.option("--method", "methods", multiple=True, type=MethodSpec(), metavar=METHOD, help="Only these; may be "
              "repeated.")  # fmt: skip
@click.option("--channels", multiple=True, default=[2], show_default=True, type=CHANNELS, help="Connections besides "
              "main; may be repeated.")  # fmt: skip
@click.option("--link", "links", multiple=True, type=Link(), metavar="RATE", help="The sender's own limit, such as "
              "1Gbit; may be repeated. Unlimited if not given.")  # fmt: skip
@click.option("--runs", default=3, show_default=True, type=Whole(1, 255), help="How often each.")
@click.option("--executor", metavar="dask:tcp://HOST:PORT", help="Measure on the workers of this dask scheduler, one "
              "round of a SOURCE at a time on a host; SOURCE is a path there, or a URL.")  # fmt: skip
@click.option("--report", type=FilePath(), metavar="FILE.html", help="Also write a page with charts, for a browser.")
@_source_format
@timeout("How long all connections of a migration may be silent.")
@reporting_to_file
def bench(
    sources: tuple[str, ...], synthetic: tuple[str, ...], source_format: str, methods: tuple[str, ...],
    channels: tuple[int, ...], links: tuple[int, ...], runs: int, executor: str | None, report: Path | None,
    timeout: float, json_to: Path | None,
) -> None:  # fmt: skip
    """Migrate SOURCEs by several methods, and compare: time, bytes, processors, memory.

    SOURCE is what send takes, a stored machine, a raw RAM image or stored streams, or its URL. Each migration runs in
    two processes of one machine, from memory to memory over loopback TCP, and its destination is compared with the
    source, byte for byte. Every combination has its first run, then its second. Ctrl-C keeps what was measured.
    """
    from multifd.bench import campaign
    from multifd.cli import evidence_tables as shown

    for place in (json_to, report):
        check_place(place)
    specs = _specs(sources, synthetic, source_format)
    chosen = methods or _usable_methods()
    evidence = campaign.Evidence(_command())
    plan = campaign.plan(specs, chosen, channels, links or (None,), runs, timeout)

    def deliver() -> None:
        document = evidence.document()
        try:
            keep(document, json_to, lambda: shown.print_bench(document))
        finally:
            if report is not None:
                _write_report(document, report)

    with shown.BenchProgress(plan) as progress:
        try:
            if executor is None:
                campaign.investigate(plan, evidence, on_row=progress.advance, say=progress.say)
            else:
                from multifd.bench import cluster, fleet

                with cluster.connected(executor) as workers:
                    fleet.gather(plan, evidence, workers, progress.advance)
        except (KeyboardInterrupt, signals.Terminated):
            evidence.is_cancelled = True
            progress.close()
            if evidence.runs:
                deliver()
            raise
    deliver()
    _tell_failures(evidence)


def _specs(sources: tuple[str, ...], synthetic: tuple[str, ...], source_format: str) -> list[SourceSpec]:
    from multifd.bench.job import SourceSpec
    from multifd.bench.synthetic import parse

    if not sources and not synthetic:
        raise UsageError("nothing to measure: expected SOURCE, or --synthetic KIND:SIZE")
    for text in synthetic:
        parse(text)
    return [
        *(SourceSpec(path, path, source_format) for path in dict.fromkeys(sources)),
        *(SourceSpec(text, synthetic=text) for text in dict.fromkeys(synthetic)),
    ]


def _usable_methods() -> list[str]:
    """All that can run here; those that cannot are named."""
    from multifd import registry

    infos = registry.describe()
    for info in infos:
        if info.status != "ok":
            remark(f"{info.name}: left out: {info.reason}")
    return [info.name for info in infos if info.status == "ok"]


def _write_report(document: dict[str, Any], path: Path) -> None:
    from multifd.bench.report.page import html

    write_whole(path, html([document]))
    remark(f"report: {path}")


def _tell_failures(evidence: Evidence) -> None:
    """A line and a status for migrations that failed; the document has been printed."""
    failed = [run for run in evidence.runs if run.error]
    if failed:
        first = failed[0]
        remark(
            f"multifd: error: {len(failed)} of {len(evidence.runs)} migrations failed, the first: {first.method} of "
            f"{first.source}: {first.error}"
        )
        sys.exit(MethodError.exit_code)


@click.command(short_help="Say which method is best for a guest's memory and a link.")
@click.argument("source", required=False, type=SourcePlace())
@click.option("--synthetic", default="", metavar="KIND:SIZE", help="Instead of SOURCE, as bench has it.")
@click.option("--link", required=True, type=Link(), metavar="RATE", help="That the migration may use, such as 10Gbit.")
@channels_option
@click.option("--cpus", type=Whole(1, 4096), metavar="N", help="Processors that each host has for the "
              "migration; this machine's if not given.")  # fmt: skip
@click.option("--hosts", default="1", show_default=True, type=click.Choice(["1", "2"]), help="1: both ends share one "
              "host's processors, which is what bench measures; 2: each has its own.")  # fmt: skip
@click.option("--method", "methods", multiple=True, type=MethodSpec(), metavar=METHOD, help="Only these; may be "
              "repeated. All that are installed, at several levels, if not given.")  # fmt: skip
@_source_format
@timeout("How long all connections of a trial may be silent.")
@reporting_to_file
def advise(
    source: str | None, synthetic: str, link: int, channels: int, cpus: int | None, hosts: str,
    methods: tuple[str, ...], source_format: str, timeout: float, json_to: Path | None,
) -> None:  # fmt: skip
    """Say which method is the best for SOURCE over a link, within seconds: by trials of a sample.

    Also how long it will take, for how many bytes, above which bandwidth not to compress is the fastest, how many IAA
    devices would keep up, and the commands that set it in QEMU, libvirt and multifd.
    """
    from multifd.bench.advise import Wish
    from multifd.bench.advise import advise as call
    from multifd.cli import evidence_tables as shown

    check_place(json_to)
    specs = _specs((source,) if source else (), (synthetic,) if synthetic else (), source_format)
    if len(specs) > 1:
        raise UsageError("expected SOURCE or --synthetic KIND:SIZE, one of the two")
    wish = Wish(link, channels, cpus or 0, int(hosts), methods, timeout)
    document = call(specs[0], wish, _command(), say=remark)
    keep(document, json_to, lambda: shown.print_advice(document))


def _command() -> list[str]:
    """This process's command, as documents quote it."""
    return [Path(sys.argv[0]).name, *sys.argv[1:]]
