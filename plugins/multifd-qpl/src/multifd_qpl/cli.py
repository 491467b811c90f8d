"""The command ``multifd-iaa``: arguments, one library call, printing."""

from __future__ import annotations

import json
import re
import sys
from typing import TYPE_CHECKING, Any

import click

from multifd.errors import MethodUnavailable, MultifdError

if TYPE_CHECKING:
    from multifd_qpl.devices import Status
    from multifd_qpl.experiment import Row


_INTERRUPTED = 130


class _Size(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """Bytes, with a binary suffix: 512M, 2G."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        text = str(value)
        match = re.fullmatch(r"(\d+)([KMGT]?)(?:i?B)?", text, re.IGNORECASE)
        if not match:
            self.fail(f"{value!r}: expected bytes such as 512M or 2G", param, ctx)
        return int(match[1]) << 10 * " KMGT".index(match[2].upper() or " ")


class _Group(click.Group):
    """A group that says in one line what is wrong with the arguments, as multifd's own does."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run a command; see `click.Command.main`."""
        try:
            return super().main(*args, **{**options, "standalone_mode": False})
        except click.exceptions.NoArgsIsHelpError as e:
            e.show()
            sys.exit(e.exit_code)
        except click.ClickException as e:
            hint = f" ({e.ctx.command_path} --help)" if isinstance(e, click.UsageError) and e.ctx else ""
            click.echo(f"multifd-iaa: error: {e.format_message()}{hint}", err=True)
            sys.exit(e.exit_code)
        except click.Abort:
            click.echo("multifd-iaa: error: interrupted", err=True)
            sys.exit(_INTERRUPTED)
        except OSError as e:
            click.echo(f"multifd-iaa: error: {e.filename or 'stdout cannot be written'}: {e.strerror}", err=True)
            sys.exit(1)


@click.group(
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"]},
    short_help="Look at IAA devices for multifd's method qpl.",
)
def main() -> None:
    """IAA devices for multifd's method qpl: what is there, and how many are needed."""


@main.command(short_help="Show libqpl, IAA devices, and what is missing to use them.")
@click.option("--json", "as_json", is_flag=True, help="Print exactly one JSON document.")
def status(as_json: bool) -> None:
    """Show libqpl, IAA devices and their work queues, and what is missing for the hardware path.

    If there is a device, a page goes through it both ways. Exit status: 0 if it came back with its CRC, so that a
    migration here uses IAA; 3 if not. So `multifd-iaa status --json` is a node check for a cluster.
    """
    from multifd_qpl.devices import read_status

    found = read_status()
    if as_json:
        click.echo(json.dumps(found.as_dict()))
    else:
        _print_status(found)
    sys.exit(0 if found.hardware_ready else MethodUnavailable.exit_code)


def _print_status(found: Status) -> None:
    from multifd_qpl.remedy import queue_problem

    if found.library:
        named = f" (by MULTIFD_QPL_LIBRARY={found.library_named})" if found.library_named else ""
        click.echo(f"libqpl           {found.library_version}, loaded from {found.library}{named}")
    else:
        click.echo(f"libqpl           none can be used: {found.library_problem}")
    click.echo(f"libaccel-config  {'found' if found.accel_config else 'not found'}")
    click.echo(f"kernel           {found.kernel}")
    click.echo(f"IAA devices      {found.pci_devices} on the PCI bus, {len(found.devices)} shown by the idxd driver")
    for device in found.devices:
        node = "unknown" if device.numa_node is None else device.numa_node
        click.echo(f"  {device.name}  {device.state}, NUMA node {node}, {device.engines} engines")
        for queue in device.queues:
            problem = queue_problem(queue)
            click.echo(
                f"    {queue.name}  {queue.type}, {queue.mode}, {queue.state}, {queue.entries} entries, threshold "
                f"{queue.threshold}, block_on_fault {int(queue.block_on_fault)}" + (f": {problem}" if problem else "")
            )
    test = found.hardware_test
    if found.hardware_ready:
        crc = "" if test["has_crc"] else ", without CRC: results of the device are not verified"
        times = f"{test['compress_us']:.0f} us to compress, {test['decompress_us']:.0f} us to decompress"
        click.echo(f"hardware path    ready: a page went through it, {times}{crc}")
    else:
        click.echo(f"hardware path    not usable: {test['reason']}")
    for note in found.notes:
        click.echo(f"  note: {note}")
    for reason in found.missing:
        click.echo(f"  missing: {reason}")
    if found.commands:
        click.echo("To mend it, as root, in this order:")
        for command in found.commands:
            click.echo(f"  {command}")


@main.command(short_help="Say how many IAA devices a migration needs.")
@click.option("--devices", default=1, show_default=True, type=click.IntRange(1, 64), help="IAA devices of the source.")
@click.option("--channels", default=4, show_default=True, type=click.IntRange(1, 255), help="Channel threads.")
@click.option(
    "--policy",
    "policies",
    multiple=True,
    type=click.Choice(["fallback", "wait"]),
    help="May be repeated; both if not given.",
)
@click.option("--retries", default=3, show_default=True, type=click.IntRange(0, 1000), help="Of the policy fallback.")
@click.option(
    "--verify",
    default="off",
    show_default=True,
    type=click.Choice(["on", "off"]),
    help="The method's option of this name; off is what was published.",
)
@click.option(
    "--ram",
    default=416 << 20,
    show_default="416M",
    type=_Size(),
    metavar="SIZE",
    help="RAM to move; times are proportional to it.",
)
@click.option("--json", "as_json", is_flag=True, help="Print exactly one JSON document.")
def simulate(
    devices: int, channels: int, policies: tuple[str, ...], retries: int, verify: str, ram: int, as_json: bool
) -> None:
    """Migrate on a simulated machine, in virtual time, with the real job management deciding.

    The same arguments give the same figures on every machine.
    """
    try:
        from multifd_qpl.experiment import simulate as call

        wanted = policies or ("wait", "fallback")
        rows = call(wanted, devices=devices, channels=channels, ram_bytes=ram, retries=retries, verify=verify)
    except MultifdError as e:
        click.echo(f"multifd-iaa: error: {e}", err=True)
        sys.exit(e.exit_code)
    except ImportError as e:
        click.echo(f"multifd-iaa: error: the simulation needs the extension multifd_qpl._batch: {e}", err=True)
        sys.exit(3)
    if as_json:
        click.echo(json.dumps([row.as_dict() for row in rows]))
    else:
        _print_rows(rows, ram)


def _print_rows(rows: list[Row], ram_bytes: int) -> None:
    from multifd_qpl.experiment import published_case
    from multifd_qpl.prediction import ERRORS

    machine = f"{rows[0].devices} devices, {rows[0].channels} channels"
    low, high = ERRORS
    click.echo(f"Simulated: {ram_bytes / 2**20:g} MiB, {machine}. Not a measurement: against published migrations the")
    click.echo(f"times of this simulation were {-low:.0%} too short to {high:.0%} too long (docs/iaa-evidence.md).")
    names = ("total ms", "down ms", "mbps", "pages/s", "pages/s mean", "hardware", "software", "raw", "busy", "retried")
    click.echo(f"{'':22}" + "".join(f"{name:>14}" for name in names))
    hidden = ("policy", "devices", "channels", "retries", "verify")
    for row in rows:
        values = [value for name, value in row.as_dict().items() if name not in hidden]
        click.echo(f"{row.policy:22}" + "".join(f"{value:>14}" for value in values))
        if published := published_case(row):
            error = row.guest_ms / published.total_time_ms - 1
            click.echo(f"{'  the published guest':22}{row.guest_ms:>14.0f}  ({error:+.1%} of what was published)")
            figures = (published.total_time_ms, published.downtime_ms, published.mbps, published.pages_per_second)
            click.echo(f"{'  published':22}" + "".join(f"{value:>14}" for value in figures))
