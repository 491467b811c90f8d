"""What every command shares: JSON or text on stdout, errors as one line on stderr and an exit status.

Rules of this file: stdout gets exactly one JSON document with ``--json`` (a relay: one a line), however the command
ends. Every line for a person goes through `multifd.errors.printable`; JSON is exact, and escapes by itself.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn

import click

from multifd.cli import signals, streams
from multifd.cli.values import FilePath
from multifd.errors import MultifdError, OutcomeUnknown, UsageError, exit_statuses, printable
from multifd.interrupts import held
from multifd.ram.part import part_name

_Command = Callable[..., None]
STDOUT = Path("-")
"""What --json takes for it where it takes a file."""
_INTERRUPTED, _TERMINATED = 130, 143
_EXPECTED = (MultifdError, KeyboardInterrupt, signals.Terminated)
"""What may leave a command; anything else is a bug, wherever the memory is."""
EPILOG = "Exit status: " + "; ".join(f"{status} {meaning}" for status, meaning in exit_statuses().items()) + "."


class Group(click.Group):
    """A group whose usage errors are one line, and a JSON document too if --json is given."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:
        """Run a command; see `click.Command.main`."""
        if args is None:
            streams.open_missing()
            signals.install()
            try:
                return self._run(sys.argv[1:], *rest, **options)
            finally:
                streams.forget()
        with signals.raising():
            return self._run(list(args), *rest, **options)

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """Read the command line; see `click.Command.make_context`."""
        with _interrupts_as_aborts():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was named; see `click.Command.invoke`."""
        with _interrupts_as_aborts():
            return super().invoke(ctx)

    def _run(self, words: list[str], *rest: Any, **options: Any) -> Any:
        try:
            with streams.to_stdout():  # help and version
                return super().main(words, *rest, **{**options, "standalone_mode": False})
        except click.exceptions.Exit as e:
            sys.exit(e.exit_code)
        except click.exceptions.NoArgsIsHelpError as e:
            e.show()
            sys.exit(e.exit_code)
        except click.ClickException as e:
            signals.ignore()
            message = e.format_message()
            if isinstance(e, click.UsageError) and e.ctx is not None:
                message += f" ({e.ctx.command_path} --help)"
            _fail(message, e.exit_code, {"status": "failed"} if self._wants_document(words) else None)
        except BrokenPipeError:
            sys.exit(1)
        except UsageError as e:
            _fail(str(e), e.exit_code, None)
        except (click.Abort, KeyboardInterrupt, signals.Terminated) as e:
            # Before a command had begun; what comes later is its own to tell.
            is_terminated = isinstance(e, signals.Terminated)
            status, message = (_TERMINATED, "terminated") if is_terminated else (_INTERRUPTED, "interrupted")
            _fail(message, status, {"status": "cancelled"} if self._wants_document(words) else None)

    def _wants_document(self, words: list[str]) -> bool:
        """Whether --json asks for a document on stdout, as far as can be seen in words that were refused."""
        words = list(itertools.takewhile(lambda word: word != "--", words))  # what follows are no options
        command = self.commands.get(words[0]) if words else None
        takes_file = any(p.name == "json_to" for p in command.params) if command else False
        if not takes_file:
            return "--json" in words
        return "--json=-" in words or any(
            word == "--json" and (after is None or after.startswith("-"))
            for word, after in itertools.zip_longest(words, words[1:])
        )


@contextmanager
def _interrupts_as_aborts() -> Iterator[None]:
    """For KeyboardInterrupt click's `main` writes an empty line before anybody can tell what happened."""
    try:
        yield
    except KeyboardInterrupt as e:
        raise click.Abort from e


def reporting(command: _Command) -> _Command:
    """Add --json and -v, and turn what goes wrong into one line and an exit status."""
    add = click.option("--json", "as_json", is_flag=True, help="Print exactly one JSON document on stdout.")
    return add(_reported(command))


def reporting_to_file(command: _Command) -> _Command:
    """As `reporting`, for a document that is worth keeping: --json takes a file, and without one it is stdout."""
    add = click.option(
        "--json",
        "json_to",
        type=FilePath(),
        is_flag=False,
        flag_value=str(STDOUT),
        metavar="[FILE]",
        help="Write the JSON document to FILE; on stdout, and nothing else there, if FILE is - or not given.",
    )
    return add(_reported(command))


def _reported(command: _Command) -> _Command:
    @click.option("-v", "--verbose", count=True, help="Say more on stderr; -vv with tracebacks.")
    @wraps(command)
    def wrapper(verbose: int, **arguments: Any) -> None:
        _start_log(verbose)
        try:
            command(**arguments)
        except click.ClickException:
            raise  # a wrong combination of arguments: the group tells it
        except BrokenPipeError:
            sys.exit(1)
        except (Exception, KeyboardInterrupt, signals.Terminated) as e:
            signals.ignore()
            status = _status_of(e)
            if verbose > 1:
                import traceback

                traceback.print_exception(e)
            wants_document = arguments.get("as_json") or arguments.get("json_to") == STDOUT
            document = _document(e, status) if wants_document else None
            _fail(_words_of(e, status), status, document, getattr(e, "__notes__", ()))

    return wrapper


def show(document: Any, as_json: bool, render: Callable[[], None]) -> None:
    """Print a command's result. A signal changes nothing from here on: what happened has happened."""
    signals.ignore()
    _print(document, as_json, render)


def keep(document: Any, json_to: Path | None, render: Callable[[], None]) -> None:
    """Print a command's result, or the document where `json_to` says; a signal waits until it is out.

    Raises:
        UsageError: the file, or stdout, cannot be written; the other one was all the same.
    """
    with held():
        try:
            _print(document, json_to == STDOUT, render)
        finally:
            if json_to is not None and json_to != STDOUT:
                write_whole(json_to, json.dumps(document, indent=1) + "\n")


def check_place(path: Path | None) -> None:
    """Look whether a file can be made, before what is to stand in it takes its time.

    Args:
        path: None, or stdout's: nothing to look at.

    Raises:
        UsageError: there is no such folder, or it cannot be written to.
    """
    if path is None or path == STDOUT:
        return
    if not path.parent.is_dir():
        raise UsageError(f"{path}: no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"{path}: folder {path.parent} cannot be written to")


def write_whole(path: Path, text: str) -> None:
    """Write a file that appears when it is complete; a signal waits until it is. A device or a pipe is written to.

    Raises:
        UsageError: it cannot be written.
    """
    part = path.with_name(part_name(path.name))
    with held():
        try:
            if path.exists() and not path.is_file():
                path.write_text(text, "utf-8")
                return
            part.write_text(text, "utf-8")
            part.replace(path)
        except OSError as e:
            with contextlib.suppress(OSError):
                part.unlink()
            raise UsageError(f"{path}: {e.strerror}") from e


def show_one(document: Any, as_json: bool, render: Callable[[], None]) -> None:
    """Print one result of several; a signal waits until it is out."""
    with held():
        _print(document, as_json, render)


def say(text: str) -> None:
    """A line on stdout.

    Raises:
        UsageError: it cannot be written.
    """
    with streams.to_stdout():
        print(printable(text), flush=True)


def remark(text: str) -> None:
    """A line on stderr; none where that cannot be written."""
    with contextlib.suppress(OSError):
        print(printable(text), file=sys.stderr, flush=True)


def _print(document: Any, as_json: bool, render: Callable[[], None]) -> None:
    try:
        with streams.to_stdout():
            if as_json:
                print(json.dumps(document), flush=True)
            else:
                render()
    except (UsageError, BrokenPipeError) as e:
        if not (isinstance(document, dict) and "status" in document):
            raise
        # Of a migration: where the memory is counts more than that nobody sees its figures.
        remark(f"multifd: the figures are lost: {e}")


def _status_of(error: BaseException) -> int:
    """The exit status. Where the memory is counts more than what went wrong on the way."""
    match getattr(getattr(error, "result", None), "status", ""):
        case "unknown":
            return OutcomeUnknown.exit_code
        case "completed":
            return 0
    match error:
        case MultifdError():
            return error.exit_code
        case KeyboardInterrupt():
            return _INTERRUPTED
        case signals.Terminated():
            return _TERMINATED
    return 1


def _words_of(error: BaseException, status: int) -> str:
    if status == 1 or not isinstance(error, _EXPECTED):
        return f"a bug in multifd, please report it with -vv: {type(error).__name__}: {error}"
    return (str(error) or "interrupted") + _option_of(getattr(error, "setting", None))


def _option_of(setting: str | None) -> str:
    """The command's option for an argument of the library, in brackets; empty if it has none."""
    context = click.get_current_context(silent=True)
    for param in context.command.params if context and setting else ():
        if isinstance(param, click.Option) and (param.name or "").rstrip("_") == setting:
            return f" ({param.opts[0]})"
    return ""


def _document(error: BaseException, status: int) -> dict[str, Any]:
    from multifd.stats import Result

    result = getattr(error, "result", None)
    if result is None:
        result = Result(status="cancelled" if status in (_INTERRUPTED, _TERMINATED) else "failed")
    document: dict[str, Any] = result.as_dict()
    return {**document, "notes": list(getattr(error, "__notes__", ()))}


def _fail(message: str, status: int, document: dict[str, Any] | None, notes: Sequence[str] = ()) -> NoReturn:
    """One document if one is wanted, one line and the notes, and the end."""
    if document is not None:
        with contextlib.suppress(OSError):  # the status says it, too
            print(json.dumps({**document, "error": printable(message)}), flush=True)
    remark(f"multifd: error: {message}")
    for note in notes:
        remark(f"multifd: {note}")
    sys.exit(status)


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(printable, super().format(record).split("\n")))


def _start_log(verbose: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal need not be able to show every name
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("multifd: %(message)s"))
    logging.basicConfig(level=[logging.WARNING, logging.INFO, logging.DEBUG][min(verbose, 2)], handlers=[handler])
