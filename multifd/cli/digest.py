"""``multifd digest`` and ``multifd verify``, and the digests of a file that another command has made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from multifd.cli import arguments, signals
from multifd.cli.console import remark, reporting, say, show
from multifd.cli.progress import Progress
from multifd.cli.values import FilePath
from multifd.errors import MultifdError
from multifd.transport.address import folder_of


def register(main: click.Group) -> None:
    """Add the commands."""
    main.add_command(digest)
    main.add_command(verify)


@click.command(short_help="Write the digests of a file with RAM.")
@click.argument("file", type=FilePath())
@reporting
def digest(file: Path, as_json: bool) -> None:
    """Write FILE.sha256, with which verify, send, restore and export find any byte of FILE that changed.

    FILE is a stored machine of any format, or a raw RAM image. sha256sum -c reads FILE.sha256, too, in its folder.
    """
    with signals.polled() as ask, Progress("digest") as progress:
        place = _make(file, progress, ask)
    show({"file": str(file), "sidecar": str(place)}, as_json, lambda: say(str(place)))


@click.command(short_help="Check that a stored machine is sound.")
@arguments.capture
@arguments.digest
@click.option("--ram", is_flag=True, help="Of dir:PATH: decode every page; compare RAM with its digests, or add them.")
@reporting
def verify(capture: Path | str, digest: str, ram: bool, as_json: bool) -> None:
    """Check that CAPTURE, a stored machine of any format, is sound: structure, bitmaps, lengths, end, digests.

    No format has a checksum: without CAPTURE.sha256, which receive, capture and digest write, bytes inside a page are
    not checked. A raw RAM image can be verified by that alone. Stored streams, dir:PATH, have digests of their own:
    every byte is compared with them, and every header is looked at. With --ram every page is decoded, too, and RAM
    compared with digests of each block in the manifest; if it has none, they are added to it. RAM lies beside PATH in a
    hidden sparse file for as long as it takes.
    """
    from multifd.ram.capture import verify as call

    if isinstance(capture, str):
        _verify_streams(capture, ram, as_json)
        return
    if ram:
        raise click.UsageError("--ram is for stored streams, dir:PATH; of a file, multifd digest makes digests")
    with Progress("verify") as progress:
        found = call(capture, digest, progress.compared)

    matches = found.checked is not None and found.checked.digest == "match"
    words = f"sound, and matches {capture.name}.sha256" if matches else "sound"
    show(found.as_dict(), as_json, lambda: say(f"{capture}: {words}"))


def _verify_streams(place: str, ram: bool, as_json: bool) -> None:
    from multifd.engine import ram_check, streams_info
    from multifd.engine.canceller import Canceller

    if not ram:
        streams = streams_info.verify(folder_of(place))
        show(streams.as_dict(), as_json, lambda: say(f"{place}: sound"))
        return
    canceller = Canceller("the check")
    with signals.cancelling(canceller), Progress("verify") as progress:
        found = ram_check.verify(folder_of(place), progress.compared, canceller=canceller)
    is_new = found.checked is not None and found.checked.digest == "added"
    words = "digests of RAM added to its manifest" if is_new else "RAM matches its digests"
    show(found.as_dict(), as_json, lambda: say(f"{place}: sound, {words}"))


def leave(out: Path) -> str | None:
    """Write the digests of a file that is complete.

    Whatever goes wrong, a signal too, is a line on stderr: the file is complete all the same.

    Returns:
        The sidecar's path, None if there is none.
    """
    with signals.polled() as ask:
        try:
            with Progress("digest") as progress:
                return str(_make(out, progress, ask))
        except (MultifdError, KeyboardInterrupt, signals.Terminated) as e:
            remark(f"{out}: is complete, but has no digests: {str(e) or 'interrupted'}; multifd digest makes them")
            return None


def _make(path: Path, progress: Progress, ask: Callable[[], None]) -> Path:
    from multifd.ram.capture import digest_file

    def tell(done: int, total: int) -> None:
        ask()
        progress.compared(done, total)

    return digest_file(path, tell)
