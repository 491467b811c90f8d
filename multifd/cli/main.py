"""The command line: arguments, one library call, printing. No logic.

Results go to stdout (one JSON document with ``--json``), everything else to stderr. Exit statuses
are those of `multifd.errors`.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from multifd._version import __version__
from multifd.cli import arguments, evidence, guests, look, report, signals, tls
from multifd.cli import digest as digests
from multifd.cli.arguments import CHANNELS, METHOD
from multifd.cli.console import EPILOG, Group, remark, reporting, say, show, show_one
from multifd.cli.values import FilePath, MethodSpec, Size, StoredPlace
from multifd.errors import MethodError, MultifdError

if TYPE_CHECKING:
    from multifd.engine.canceller import Canceller
    from multifd.stats import RelayResult, Result
    from multifd.transport.tls import Tls


def _migrate(
    call: Callable[[Callable[[Result], None], Callable[[int, int], None], Canceller], Result],
    *,
    as_json: bool,
    what: str,
    metrics: str | None = None,
    out: Path | None = None,
) -> None:
    """Run one end with progress on stderr, then show its figures; with metrics, if an address is given.

    Args:
        out: the file to digest when it is complete; None: none.
    """
    from multifd.cli import progress, service, tables
    from multifd.engine.canceller import Canceller

    canceller = Canceller()
    with (
        signals.cancelling(canceller),
        service.observed(metrics, what) as observer,
        progress.Progress(what) as shown,
    ):

        def update(result: Result) -> None:
            observer.update(result)
            shown.update(result)

        try:
            result = call(update, shown.compared, canceller)
        except MultifdError as e:
            if e.result is not None:
                observer.finish(e.result)
            raise
        observer.finish(result)
    document = result.as_dict()
    if out is not None:
        document["sidecar"] = digests.leave(out)
    show(document, as_json, lambda: tables.print_results([result]))


def _show_version(context: click.Context, _param: click.Parameter, is_asked: bool) -> None:
    """The version, and whether this installation's channels run outside the interpreter."""
    if not is_asked or context.resilient_parsing:
        return
    from multifd.pump import library

    why_python = library.unavailable_reason()
    say(f"multifd, version {__version__}")
    say(f"packets travel in Python: {why_python}" if why_python else "packets travel by the packet pump")
    context.exit()


@click.group(
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EPILOG,
    short_help="Migrate guest memory by a compression method chosen by name.",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version and how packets travel, and exit.",
)
def main() -> None:
    """Migrate guest memory over many connections, by a method chosen by name, on QEMU's own wire."""


@main.command(short_help="List the installed methods and their options.")
@reporting
def methods(as_json: bool) -> None:
    """List the installed methods, what each would run on here, and their options."""
    from multifd import registry
    from multifd.cli import tables

    infos = registry.describe()
    show([asdict(info) for info in infos], as_json, lambda: tables.print_methods(infos))


@main.command(short_help="Send a RAM image or a stored machine to a destination.")
@click.argument("source", type=StoredPlace())
@click.argument("uri")
@click.option("--method", type=MethodSpec(), metavar=METHOD, show_default="none, or as SOURCE is stored", help="How to "
              "compress.")  # fmt: skip
@click.option("--channels", type=CHANNELS, show_default="2, or as SOURCE is stored", help="Connections besides main.")
@click.option(
    "--max-bandwidth",
    default=0,
    type=Size(),
    metavar="SIZE/s",
    help="For all connections together, such as 100M; unlimited if not given.",
)
@arguments.connect_timeout
@arguments.timeout("How long all connections may be silent.")
@click.option(
    "--dialect",
    type=click.Choice(["9.0", "8.1", "7.2"]),
    help="The QEMU release that the destination's machine type is of; if not given, the capture's own says it, and for "
    "a raw image it is 9.0.",
)
@click.option(
    "--uuid", help="The destination's uuid, if it is another than the captured guest's; all zero if it has none."
)
@click.option(
    "--source-format",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "mapped-ram", "stream", "libvirt", "raw"]),
    help="What SOURCE is; auto looks at the file, and takes one without the mark of a known format for raw.",
)
@arguments.digest
@reporting
@tls.options()
def send(
    source: Path | str, uri: str, method: str | None, channels: int | None, max_bandwidth: int,
    connect_timeout: float, timeout: float, dialect: str | None, uuid: str | None, source_format: str, digest: str,
    tls: Tls | None, as_json: bool,
) -> None:  # fmt: skip
    """Send SOURCE, a stored machine or a raw RAM image, to the destination that listens at URI.

    A stored machine is a capture (a QEMU mapped-ram file, multifd's or QEMU's own), a plain QEMU stream, or a
    libvirt save image; the destination may be a stock QEMU that was started with -incoming. URI is
    tcp:HOST:PORT, unix:PATH, vsock:CID:PORT, or fd:N,N,... for connections that were handed over, main's first.
    Either end may be started first.

    dir:PATH in the place of URI stores the migration in a folder, each connection's bytes in a file. In the place of
    SOURCE it sends such a folder: as it is stored, nothing decoded, or by another --method; from folder to folder
    every page once.
    """
    from multifd.api import send as call
    from multifd.sources import Image

    if isinstance(source, str) and source_format != "auto":
        raise click.UsageError(f"{source}: stored streams have no --source-format")
    _migrate(
        lambda progress, compared, canceller: call(
            source if isinstance(source, str) else Image(source, source_format, digest=digest, on_digest=compared),
            uri, method, channels=channels, max_bandwidth=max_bandwidth, connect_timeout=connect_timeout,
            timeout=timeout, dialect=dialect, uuid=uuid, tls=tls, on_progress=progress, canceller=canceller,
        ),
        as_json=as_json,
        what="send",
    )  # fmt: skip


@main.command(short_help="Wait for a sender and write its RAM and devices to a file.")
@click.argument("uri")
@click.argument("out", type=StoredPlace())
@click.option(
    "--format",
    "format_",
    default="mapped-ram",
    show_default=True,
    type=click.Choice(["mapped-ram", "raw", "stream", "libvirt-raw", "libvirt-sparse"]),
    help="What OUT will be: QEMU's own file with RAM and devices, a raw image of one RAM block, a plain QEMU stream, "
    "or a file for virsh restore (sparse: libvirt 11.2 and later).",
)
@click.option(
    "--xml",
    type=FilePath(),
    help="For the libvirt formats: a file with the domain, as virsh dumpxml --migratable prints it.",
)
@click.option(
    "--channels",
    type=CHANNELS,
    help="How many the sender must have; needed for a QEMU, which does not announce it, if it has not 2.",
)
@click.option(
    "--method",
    "methods",
    multiple=True,
    type=MethodSpec(),
    metavar=METHOD,
    help="The only method that the sender may use; may be repeated.",
)
@arguments.timeout("How long all connections may be silent, and how long to wait for the sender.")
@arguments.no_digest
@arguments.metrics
@arguments.access
@reporting
@tls.options(listens=True)
def receive(
    uri: str, out: Path | str, format_: str, xml: Path | None, channels: int | None, methods: tuple[str, ...],
    timeout: float, no_digest: bool, metrics: str | None, tls: Tls | None, as_json: bool, **who: Any,
) -> None:  # fmt: skip
    """Wait at URI for a sender, multifd or QEMU, and write its RAM, and its devices, to OUT.

    OUT appears when everything is in place and durable, never before; OUT.sha256, its digests, after that. URI is
    tcp:HOST:PORT, unix:PATH, vsock:CID:PORT, or fd:N, a listening socket that was handed over; fd:N,N,... are the
    connections themselves. With port 0 the URI with the chosen port is printed on stderr at once.

    dir:PATH in the place of OUT keeps the migration as it comes, each connection's bytes in a file of a folder,
    nothing decoded. In the place of URI it reads such a folder.
    """
    from multifd.api import receive as call
    from multifd.transport.access import Access

    access = Access(**who)
    _migrate(
        lambda progress, _, canceller: call(
            uri, out, format=format_, xml=xml, channels=channels, methods=methods, timeout=timeout, access=access,
            tls=tls,
            on_progress=progress, on_listening=lambda chosen: remark(f"listening on {chosen}"), canceller=canceller,
        ),
        as_json=as_json,
        what="receive",
        metrics=metrics,
        out=None if no_digest or isinstance(out, str) else out,
    )  # fmt: skip


@main.command(short_help="Pass migrations on, in by one method and out by another.")
@click.argument("listen_uri", required=False)
@click.argument("to_uri", required=False)
@click.option(
    "--in",
    "in_method",
    type=MethodSpec(),
    metavar=METHOD,
    help="The only method a source may use; any if not given.",
)
@click.option(
    "--out",
    "out_method",
    default="none",
    type=MethodSpec(),
    metavar=METHOD,
    show_default=True,
    help="How to compress towards the destination; same: packets go on as the source made them.",
)
@click.option(
    "--channels",
    type=CHANNELS,
    help="How many a source must have; any number if not given.",
)
@click.option("--once", is_flag=True, help="End after one migration.")
@arguments.connect_timeout
@arguments.timeout("How long all connections of a migration may be silent.")
@arguments.service
@arguments.metrics
@arguments.access
@reporting
@tls.options(listens=True, prefix="in-", of="what comes in")
@tls.options(prefix="out-", of="what goes out")
def relay(
    listen_uri: str | None, to_uri: str | None, in_method: str | None, out_method: str, channels: int | None,
    once: bool, connect_timeout: float, timeout: float, config: Path | None, log_format: str, drain_timeout: float,
    metrics: str | None, in_tls: Tls | None, out_tls: Tls | None, as_json: bool, **who: Any,
) -> None:  # fmt: skip
    """Pass migrations on from LISTEN_URI to TO_URI, in by one method and out by another.

    One after another until interrupted, with a line on stdout for each, or with --json a document a line. The URIs
    are tcp:HOST:PORT, unix:PATH or vsock:CID:PORT, LISTEN_URI also fd:N, a listening socket that was handed over.
    With port 0 the URI with the chosen port is printed on stderr at once.

    With --config instead of the two, as a service: the routes of a file, side by side. SIGTERM lets the migrations
    under way end and takes no others, a second one or SIGINT ends them, too; SIGHUP reads the file again.
    """
    from multifd.cli import service

    if config is not None:
        arguments.refuse_beside("--config", "config", "log_format", "drain_timeout", "metrics", "as_json", "verbose")
        service.serve(
            config, metrics_uri=metrics, log_format=log_format, drain_timeout_s=drain_timeout, as_json=as_json
        )
        return
    arguments.need("--config", "log_format", "drain_timeout")
    if listen_uri is None or to_uri is None:
        raise click.UsageError("expected LISTEN_URI and TO_URI, or --config FILE")

    from multifd.api import relay as call
    from multifd.cli import progress, tables
    from multifd.engine.canceller import Canceller
    from multifd.transport.access import Access

    def update(result: RelayResult) -> None:
        observer.update(result)
        shown.update_relay(result)

    def show_result(result: RelayResult) -> None:
        observer.finish(result)
        shown.clear()
        show_one(result.as_dict(), as_json, lambda: tables.print_relay(result))

    canceller = Canceller()
    shown = progress.Progress("relay")
    with signals.cancelling(canceller), service.observed(metrics, "relay") as observer, shown:
        call(
            listen_uri, to_uri, in_method=in_method, out_method=out_method, channels=channels, once=once,
            connect_timeout=connect_timeout, timeout=timeout, access=Access(**who), in_tls=in_tls, out_tls=out_tls,
            canceller=canceller,
            on_listening=lambda chosen: remark(f"listening on {chosen}"), on_progress=update,
            on_result=show_result,
        )  # fmt: skip


@main.command(short_help="Try the installed methods on this machine's own bytes.")
@click.option(
    "--size",
    default=512 << 20,
    show_default="512M",
    type=Size(least=mmap.PAGESIZE, multiple_of=mmap.PAGESIZE),
    help="RAM to migrate.",
)
@arguments.channels
@click.option(
    "--method", "methods", multiple=True, type=MethodSpec(), metavar=METHOD, help="Only these; may be repeated."
)
@reporting
def demo(size: int, channels: int, methods: tuple[str, ...], as_json: bool) -> None:
    """Migrate memory full of this machine's own files to a second process, once by each method.

    A program writes to it all the time. Every destination is compared, byte for byte, with the source as it stood at
    the switchover.
    """
    from multifd.cli import demo, progress, tables

    with progress.Progress("demo") as shown:
        results = demo.compare(size, methods, channels=channels, on_progress=shown.update, say=shown.say)
    show([r.as_dict() for r in results], as_json, lambda: tables.print_results(results))
    if failed := [r for r in results if r.error]:
        # The document has been printed, so what remains is a line and a status.
        remark(f"multifd: error: {len(failed)} of {len(results)} methods failed: {', '.join(r.method for r in failed)}")
        sys.exit(MethodError.exit_code)


@main.command("new-plugin", short_help="Write a complete plugin for a method of your own.")
@click.argument("name")
@reporting
def new_plugin(name: str, as_json: bool) -> None:
    """Write a complete plugin for a method NAME into folder multifd-NAME.

    It installs, and passes multifd's conformance kit as it stands; put your codec into its two functions.
    """
    from multifd.cli.new_plugin import new_plugin as call

    with signals.polled():  # whole or not at all: it takes milliseconds
        folder = call(name, Path.cwd())

    def tell() -> None:
        say(str(folder))
        remark(f"next: cd {folder.name} && pip install -e '.[test]' && pytest")

    show({"folder": str(folder)}, as_json, tell)


digests.register(main)
guests.register(main)
look.register(main)
tls.register(main)
evidence.register(main)
report.register(main)
