"""The options and arguments that several commands take."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import click

from multifd.cli.values import FilePath, Mode, Seconds, StoredPlace, Uid, Whole

_Command = TypeVar("_Command", bound=Callable[..., None])

METHOD = "NAME[:KEY=VALUE,...]"
"""How help names a method with options."""
CHANNELS = Whole(1, 255)
"""multifd-channels, qapi/migration.json of QEMU 10.0."""

capture = click.argument("capture", type=StoredPlace())
channels = click.option("--channels", default=2, show_default=True, type=CHANNELS, help="Connections besides main.")
digest = click.option(
    "--digest",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "require", "ignore"]),
    help="auto: compare the file with its digests, FILE.sha256, first, if that is there; require: it must be there; "
    "ignore: do not compare.",
)
no_digest = click.option("--no-digest", is_flag=True, help="Do not write OUT.sha256 when OUT is complete.")
connect_timeout = click.option(
    "--connect-timeout",
    default=10.0,
    show_default=True,
    type=Seconds(),
    metavar="S",
    help="How long to wait for the destination to listen.",
)


def access(command: _Command) -> _Command:
    """Who may connect: the fields of `multifd.transport.access.Access`, by their names."""
    for option in (
        click.option(
            "--socket-group",
            metavar="GROUP",
            help="The group of that socket, for a QEMU of another user; goes with --allow-uid.",
        ),
        click.option(
            "--socket-mode",
            type=Mode(),
            metavar="MODE",
            help="The mode of the unix socket that is made; 0600 if not given, 0660 with --socket-group.",
        ),
        click.option(
            "--allow-uid",
            "uids",
            multiple=True,
            type=Uid(),
            metavar="UID",
            help="A user, by number, who may connect to the unix socket besides yourself and root; may be repeated.",
        ),
        click.option(
            "--allow",
            multiple=True,
            metavar="CIDR",
            help="A network that may connect over tcp, such as 10.0.0.0/8; all may if not given; may be repeated.",
        ),
    ):
        command = option(command)
    return command


def timeout(help: str) -> Callable[[_Command], _Command]:
    """Option --timeout, 60 s by default.

    Args:
        help: what may be silent for so long.
    """
    return click.option("--timeout", default=60.0, show_default=True, type=Seconds(), metavar="S", help=help)


metrics = click.option(
    "--metrics",
    metavar="URI",
    help="Answer Prometheus there, such as tcp:127.0.0.1:9464: /metrics, and /health. Needs multifd[metrics].",
)


def service(command: _Command) -> _Command:
    """What a relay that is a service takes: --config and what goes with it."""
    for option in (
        click.option(
            "--drain-timeout",
            default=300.0,
            show_default=True,
            type=Seconds(),
            metavar="S",
            help="With --config: how long after SIGTERM migrations may still go on.",
        ),
        click.option(
            "--log-format",
            default="text",
            show_default=True,
            type=click.Choice(["text", "json"]),
            help="With --config: the form of the log on stderr, which has a line for each event.",
        ),
        click.option("--config", type=FilePath(), metavar="FILE", help="Run the routes of a relay.toml as a service."),
    ):
        command = option(command)
    return command


def refuse_beside(option: str, *allowed: str) -> None:
    """Refuse what was given on the command line and says nothing beside an option.

    Args:
        option: as it is written.
        allowed: parameters of the command that go with it.

    Raises:
        click.UsageError: something else was given.
    """
    for name in _given():
        if name not in allowed:
            raise click.UsageError(f"{_written(name)} does not go with {option}: say it in the file")


def need(option: str, *names: str) -> None:
    """Refuse parameters that were given without the option that they belong to.

    Raises:
        click.UsageError: one was.
    """
    for name in _given():
        if name in names:
            raise click.UsageError(f"{_written(name)} needs {option}")


def _given() -> list[str]:
    context = click.get_current_context()
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return [name for name, source in sources.items() if source is click.core.ParameterSource.COMMANDLINE]


def _written(name: str) -> str:
    """How a parameter is written on the command line."""
    for param in click.get_current_context().command.params:
        if param.name == name:
            return param.opts[0] if isinstance(param, click.Option) else param.human_readable_name
    return name
