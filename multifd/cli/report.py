"""The command that shows stored results."""

from __future__ import annotations

from pathlib import Path

import click

from multifd.cli import signals
from multifd.cli.console import reporting, say, show, write_whole
from multifd.cli.values import FilePath


def register(group: click.Group) -> None:
    """Add the command to the command line."""
    group.add_command(report)


@click.command(short_help="Show results of bench as one HTML file.")
@click.argument("results", nargs=-1, required=True, type=FilePath(), metavar="RESULT...")
@click.option(
    "-o",
    "--output",
    type=FilePath(),
    metavar="FILE",
    help="The HTML file; beside the first RESULT, with its name and .html, if not given.",
)
@reporting
def report(results: tuple[Path, ...], output: Path | None, as_json: bool) -> None:
    """Show what `multifd bench` stored in each RESULT, of one machine or many, as one HTML file.

    It needs no other file and no network, runs nothing, and prints.
    """
    from multifd.bench import schema
    from multifd.bench.report.page import html

    documents = [schema.read(path) for path in results]
    path = output or results[0].with_name(f"{results[0].name.removesuffix('.json')}.html")
    text = html(documents)
    with signals.polled():  # whole or not at all: it takes milliseconds
        write_whole(path, text)
    runs = sum(len(document["runs"]) for document in documents)
    show({"report": str(path), "runs": runs}, as_json, lambda: say(f"{path}: {runs} migrations"))
