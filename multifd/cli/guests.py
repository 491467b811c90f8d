"""The commands towards a QEMU that runs: capture and restore."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from multifd.cli import arguments, signals
from multifd.cli import digest as digests
from multifd.cli.arguments import METHOD
from multifd.cli.console import remark, reporting, say, show
from multifd.cli.values import FilePath, MethodSpec, Size
from multifd.errors import UsageError

if TYPE_CHECKING:
    from multifd.manage.monitor import Monitor

_Command = TypeVar("_Command", bound=Callable[..., None])


def register(group: click.Group) -> None:
    """Add the commands to the command line."""
    group.add_command(capture)
    group.add_command(restore)


def _monitor_options(command: _Command) -> _Command:
    for option in (
        click.option(
            "--listen",
            default="",
            metavar="URI",
            help="Where QEMU connects or listens; if not given, a unix socket in a private folder, with --libvirt "
            "tcp:127.0.0.1:0.",
        ),
        click.option("--connect", default="", metavar="URI", help="libvirt's URI, such as qemu:///system."),
        click.option(
            "--libvirt", default="", metavar="DOMAIN", help="The guest's libvirt domain, which is reached by virsh."
        ),
        click.option("--qmp", type=FilePath(), metavar="SOCKET", help="The QMP socket of the guest's QEMU."),
    ):
        command = option(command)
    return command


def _max_bandwidth(command: _Command) -> _Command:
    help = "For all connections together, such as 100M; unlimited if not given."
    return click.option("--max-bandwidth", default=0, type=Size(), metavar="SIZE/s", help=help)(command)


def _open(qmp: Path | None, libvirt: str, connect: str) -> contextlib.closing[Monitor]:
    from multifd.manage.monitor import open_monitor

    if (qmp is None) == (not libvirt):
        raise UsageError("expected a QMP socket or a libvirt domain, one of the two (--qmp, --libvirt)")
    return contextlib.closing(open_monitor(qmp or "", libvirt, connect))


def _listen_at(listen: str, libvirt: str) -> str:
    return listen or ("tcp:127.0.0.1:0" if libvirt else "")


@click.command(short_help="Capture a guest into a file; it goes on afterwards.")
@click.argument("out", type=FilePath())
@_monitor_options
@click.option("--method", default="none", type=MethodSpec(), metavar=METHOD, show_default=True, help="How to compress.")
@arguments.channels
@_max_bandwidth
@click.option("--snapshot-disks", default="", metavar="NAME", help="Also take this snapshot of every writable disk.")
@click.option(
    "--then",
    type=click.Choice(["cont", "stop", "quit"]),
    help="What becomes of the guest; if not given, it runs if it ran before.",
)
@arguments.timeout("How long all connections may be silent.")
@arguments.no_digest
@click.option("--recover", is_flag=True, help="Finish what a killed capture into OUT has left: guest, settings, files.")
@reporting
def capture(
    out: Path, qmp: Path | None, libvirt: str, connect: str, listen: str, recover: bool, no_digest: bool,
    as_json: bool, **options: Any,
) -> None:  # fmt: skip
    """Capture a guest into OUT, RAM and devices, and let it go on; QEMU's settings are put back.

    OUT appears when everything is in place and durable, never before; OUT.sha256, its digests, after that. A failure,
    SIGINT or SIGTERM leaves guest, disks and settings as they were; after SIGKILL, --recover does.
    """
    from multifd.cli import tables
    from multifd.cli.progress import Progress
    from multifd.engine.canceller import Canceller
    from multifd.manage import capture as calls

    if recover:
        state = calls.recover(out)
        show({"status": "recovered", "run_state": state}, as_json, lambda: say(f"{out}: recovered; guest {state}"))
        return
    canceller = Canceller()
    with (
        _open(qmp, libvirt, connect) as monitor,
        Progress("capture") as progress,
        signals.cancelling(canceller),
    ):
        done = calls.capture(
            monitor, out, listen=_listen_at(listen, libvirt), on_progress=progress.update, canceller=canceller,
            **options,
        )  # fmt: skip
    document = done.as_dict()
    if not no_digest:
        document["sidecar"] = digests.leave(out)
    show(document, as_json, lambda: tables.print_results([done.figures]))
    remark(f"guest: {done.run_state}")


@click.command(short_help="Restore a stored machine into a QEMU.")
@arguments.capture
@_monitor_options
@click.option("--method", default="none", type=MethodSpec(), metavar=METHOD, show_default=True, help="How to compress.")
@arguments.channels
@_max_bandwidth
@click.option(
    "--then",
    type=click.Choice(["cont", "stop"]),
    help="What becomes of the guest; if not given, it runs or stands as QEMU was started.",
)
@click.option(
    "--dialect",
    type=click.Choice(["9.0", "8.1", "7.2"]),
    help="The QEMU release that the machine type is of; if not given, the capture says it.",
)
@arguments.timeout("How long all connections may be silent.")
@arguments.digest
@reporting
def restore(
    capture: Path, qmp: Path | None, libvirt: str, connect: str, listen: str, as_json: bool, **options: Any
) -> None:
    """Restore CAPTURE, a stored machine, into a QEMU that was started with -incoming defer; settings are put back."""
    from multifd.cli import tables
    from multifd.cli.progress import Progress
    from multifd.engine.canceller import Canceller
    from multifd.manage.restore import restore as call

    canceller = Canceller()
    with _open(qmp, libvirt, connect) as monitor:
        with Progress("restore") as progress, signals.cancelling(canceller):
            result, state = call(
                monitor, capture, listen=_listen_at(listen, libvirt), on_progress=progress.update,
                on_digest=progress.compared, canceller=canceller, **options,
            )  # fmt: skip
        show({**result.as_dict(), "run_state": state}, as_json, lambda: tables.print_results([result]))
        remark(f"guest: {state}")
