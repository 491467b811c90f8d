"""``multifd info`` and ``multifd export``: what is in a stored machine."""

from __future__ import annotations

from pathlib import Path

import click

from multifd.cli import arguments, signals
from multifd.cli.console import reporting, show
from multifd.cli.values import FilePath, Size
from multifd.transport.address import folder_of


def register(main: click.Group) -> None:
    """Add the commands."""
    main.add_command(info)
    main.add_command(export)


@click.command(short_help="Show what is in a stored machine.")
@arguments.capture
@reporting
def info(capture: Path | str, as_json: bool) -> None:
    """Show what is in CAPTURE, a stored machine of any format: machine, RAM blocks, devices, and libvirt's XML.

    Of stored streams, dir:PATH, also the files and how many pages are stored more than once.
    """
    from multifd.cli import tables
    from multifd.engine import streams_info
    from multifd.ram.capture import info as call

    if isinstance(capture, str):
        streams = streams_info.info(folder_of(capture))
        show(streams.as_dict(), as_json, lambda: tables.print_streams(streams))
        return
    found = call(capture)
    show(found.as_dict(), as_json, lambda: tables.print_capture(found))


@click.command(short_help="Write a stored machine's RAM for debuggers and other tools.")
@arguments.capture
@arguments.digest
@click.argument("out", type=FilePath())
@click.option(
    "--format",
    "format_",
    default="raw",
    show_default=True,
    type=click.Choice(["raw", "physical", "elf", "lime"]),
    help="raw: a RAM block; physical: guest-physical memory, byte X at address X; elf: an ELF core of it with CPUs; "
    "lime: LiME.",
)
@click.option("--block", metavar="NAME", help="For raw: which RAM block, such as pc.ram; needed if there are several.")
@click.option(
    "--below-4g", type=Size(), metavar="SIZE", help="How much RAM lies below the PCI hole, if it is not recognised."
)
@reporting
def export(
    capture: Path | str, out: Path, format_: str, block: str | None, below_4g: int | None, digest: str, as_json: bool
) -> None:
    """Write RAM of CAPTURE, a stored machine of any format, to OUT for other tools; zero pages are holes.

    Stored streams, dir:PATH, are compared with their own digests and unpacked beside OUT, for as long as it takes.
    """
    from multifd.cli import tables
    from multifd.cli.progress import Progress
    from multifd.engine.canceller import Canceller, unless_cancelled
    from multifd.engine.resend import as_file
    from multifd.ram.export import export as call

    canceller = Canceller("the export")
    with (
        signals.cancelling(canceller),
        Progress("export") as progress,
        as_file(capture, out, canceller=canceller) as path,
    ):
        done = call(
            path, out, block, format=format_, below_4g=below_4g,
            digest_mode="ignore" if isinstance(capture, str) else digest,
            on_progress=unless_cancelled(canceller, progress.compared), go_on=canceller.check,
        )  # fmt: skip
    show(done.as_dict(), as_json, lambda: tables.print_export(str(out), done))
