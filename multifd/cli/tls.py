"""The options that say how connections are encrypted, for every command that has connections, and ``multifd tls``."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from multifd.cli import signals
from multifd.cli.console import remark, reporting, say, show
from multifd.cli.values import FolderPath, Seconds, Whole
from multifd.errors import UsageError, about

if TYPE_CHECKING:
    from multifd.transport.tls import Tls

_Command = TypeVar("_Command", bound=Callable[..., None])


def options(*, listens: bool = False, prefix: str = "", of: str = "this side") -> Callable[[_Command], _Command]:
    """The options of one side. The command gets a `Tls`, or None, as argument ``tls``, with the prefix before it.

    To stand below `reporting`, which tells what cannot be meant.

    Args:
        listens: the side's connections come, else it makes them.
        prefix: before each option's name.
        of: whose connections they are, in the help.
    """
    own = "server" if listens else "client"
    made = [
        click.option(
            f"--{prefix}tls-creds",
            type=FolderPath(),
            metavar="FOLDER",
            help=f"Encrypt {of}: QEMU's tls-creds-x509 folder, with ca-cert.pem, {own}-cert.pem and {own}-key.pem, or "
            "keys.psk.",
        ),
        click.option(
            f"--{prefix}tls-verify-peer",
            type=click.Choice(["on", "off"]),
            help="Whether the other end must show a certificate of the CA; on if not given.",
        ),
        click.option(f"--{prefix}tls-handshake-timeout", type=Seconds(), metavar="S", help="20 s if not given."),
    ]
    if listens:
        made.append(
            click.option(
                f"--{prefix}tls-authz",
                multiple=True,
                metavar="CERTIFICATE",
                help="The only certificate that may connect, by its whole subject (CN=client,O=Example) or an "
                "alternative name (DNS:client.example); may be repeated.",
            )
        )
    else:
        made += [
            click.option(
                f"--{prefix}tls-hostname",
                metavar="NAME",
                help="Whom the certificate must name, if it is not the URI's host.",
            ),
            click.option(f"--{prefix}tls-username", metavar="NAME", help="Of keys.psk: which key; qemu if not given."),
        ]

    start = f"{prefix.replace('-', '_')}tls"

    def add(command: _Command) -> _Command:
        @wraps(command)
        def wrapper(**arguments: Any) -> None:
            tls = _settings(arguments, f"{start}_")
            command(**arguments, **{start: tls})

        wrapped: Any = wrapper
        for option in reversed(made):
            wrapped = option(wrapped)
        return cast(_Command, wrapped)

    return add


def _settings(arguments: dict[str, Any], start: str) -> Tls | None:
    """The settings that the options' values mean, which are taken out of `arguments`; None without a folder."""
    given = {name: arguments.pop(name) for name in list(arguments) if name.startswith(start)}
    given = {name.removeprefix(start): value for name, value in given.items() if value not in (None, ())}
    if not given:
        return None
    if "creds" not in given:
        name = start + next(iter(given))
        raise about(UsageError(f"{name} is of no use without {start}creds".replace("_", "-")), name)
    from multifd.transport.tls import Tls

    if "verify_peer" in given:
        given["verify_peer"] = given["verify_peer"] == "on"
    return Tls(**given)


def register(main: click.Group) -> None:
    """Add ``multifd tls``."""
    main.add_command(tls)


@click.group(short_help="Make certificates to try encrypted migrations with.")
def tls() -> None:
    """Certificates to try encrypted migrations with."""


@tls.command("new", short_help="Make a CA and certificates to try TLS with.")
@click.argument("folder", type=FolderPath())
@click.argument("hosts", metavar="HOST...", nargs=-1, required=True)
@click.option("--days", default=30, show_default=True, type=Whole(1, 3650), help="How long they are valid.")
@reporting
def new(folder: Path, hosts: tuple[str, ...], days: int, as_json: bool) -> None:
    """Make FOLDER with a CA and a server's and a client's certificate, for trying.

    HOST is every name and address under which the server is reached. Both ends, and a QEMU's tls-creds-x509, can use
    copies of the folder. For anything but a try, have the certificates of your own CA.
    """
    from multifd.cli.new_credentials import new_credentials as call

    with signals.polled():  # whole or not at all: it takes milliseconds
        paths = call(folder, hosts, days)

    def tell() -> None:
        for path in paths:
            say(path)
        remark(f"for trying: valid {days} days, the CA's key is not kept")

    show({"folder": os.fspath(folder), "files": paths}, as_json, tell)
