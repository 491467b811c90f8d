"""What every command shares: JSON or text, errors as one line and an exit status, sizes."""

from __future__ import annotations

import json
import logging
import re
import signal
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, NoReturn

import click

from multifd.errors import MultifdError


class Size(click.ParamType[int]):
    """Bytes, with a binary suffix: 512K, 100M, 2G, and ``/s`` if it is a rate."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?(?:/s)?", value, re.IGNORECASE)
        if not match:
            self.fail(f"{value!r}: expected bytes such as 1048576, 512K, 100M or 2G", param, ctx)
        return int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))


class _Terminated(BaseException):
    """SIGTERM, turned into an exception so that everything is cleaned up as after Ctrl-C."""


def _terminate(*_: object) -> NoReturn:
    raise _Terminated("terminated")


class Group(click.Group):
    """A group whose usage errors are a JSON document too, if --json is given."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:
        """Run a command; see `click.Command.main`."""
        words = sys.argv[1:] if args is None else list(args)
        try:
            return super().main(words, *rest, **{**options, "standalone_mode": False})
        except click.exceptions.Exit as e:
            sys.exit(e.exit_code)
        except click.ClickException as e:
            if "--json" in words:
                print(json.dumps({"status": "failed", "error": e.format_message()}))
            e.show()
            sys.exit(e.exit_code)


SECONDS = click.FloatRange(min=0, min_open=True)
_Command = Callable[..., None]


def reporting(command: _Command) -> _Command:
    """Add --json and -v, and turn what goes wrong into one line and an exit status."""

    @click.option("--json", "as_json", is_flag=True, help="Print exactly one JSON document on stdout.")
    @click.option("-v", "--verbose", count=True, help="Say more on stderr; -vv with tracebacks.")
    @wraps(command)
    def wrapper(as_json: bool, verbose: int, **arguments: Any) -> None:
        logging.basicConfig(
            stream=sys.stderr,
            level=[logging.WARNING, logging.INFO, logging.DEBUG][min(verbose, 2)],
            format="multifd: %(message)s",
        )
        signal.signal(signal.SIGTERM, _terminate)
        try:
            command(as_json=as_json, **arguments)
        except MultifdError as e:
            _fail(e, e.exit_code, as_json=as_json, verbose=verbose)
        except KeyboardInterrupt as e:
            _fail(e, 130, as_json=as_json, verbose=verbose)
        except _Terminated as e:
            _fail(e, 143, as_json=as_json, verbose=verbose)
        except BrokenPipeError:
            sys.stderr.close()
            sys.exit(1)
        except (Exception, MemoryError) as e:
            _fail(e, 1, as_json=as_json, verbose=verbose)

    return wrapper


def _fail(error: BaseException, status: int, *, as_json: bool, verbose: int) -> NoReturn:
    text = str(error) or "interrupted"
    if status == 1:
        text = f"a bug in multifd, please report it with -vv: {type(error).__name__}: {error}"
    if as_json:
        from multifd.stats import Result

        result = getattr(error, "result", None) or Result(status="failed")
        document = result.as_dict()
        if status in (130, 143):
            document["status"] = "cancelled"
        print(json.dumps({**document, "error": text}))
    if verbose > 1:
        import traceback

        traceback.print_exception(error)
    click.echo(f"multifd: error: {text}", err=True)
    for note in getattr(error, "__notes__", ()):
        click.echo(f"multifd: {note}", err=True)
    sys.exit(status)


def show(document: Any, as_json: bool, render: Callable[[], None]) -> None:
    if as_json:
        print(json.dumps(document), flush=True)
    else:
        render()
