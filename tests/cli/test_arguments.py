"""Wrong arguments: exit status 2 (3 for a method that cannot be had), one line, one document, whatever the command."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from multifd.cli.main import main
from multifd.cli.values import (
    FilePath,
    FolderPath,
    Link,
    MethodSpec,
    Mode,
    Seconds,
    Size,
    SourcePlace,
    StoredPlace,
    Uid,
    Whole,
)

NEVER = {
    Size: ["", "-1", "1e400", "9" * 400, "1..5", "1.5.5M", "0x10", "nan", "inf", "1Q", "1 000", "٣", "9" * 30 + "T"],
    Seconds: ["", "-1", "0", "nan", "inf", "-inf", "1e400", "9" * 400, "x", "1s", "1000001"],
    Link: [
        "",
        "-1Gbit",
        "0Gbit",
        "1",
        "1G",
        "1GB",
        "1e3Gbit",
        "nan",
        "infGbit",
        "1bit",
        "7Kbit",
        "9" * 400 + "Gbit",
        "٣Gbit",
    ],
    Whole: ["", "-1", "0", "256", "9" * 5000, "1.5", "x", "1e2"],
    click.Choice: ["", "x", "y" * 10000, "\x1b[2J"],
    MethodSpec: [
        "",
        ":",
        "zlib:",
        "zlib:level",
        "zlib:level=99",
        "zlib:level=1,level=1",
        "x" * 5000,
        "\x1b[2J",
        "[/x]",
    ],
    Uid: ["", "-1", "x", "1.5", "0x10", "4294967295", "9" * 5000, "٣"],
    Mode: ["", "9", "66", "0o660", "00660", "1000", "rw-rw----", "٣٣٣"],
    FilePath: ["", "x" * 5000, "a\0b", "."],
    StoredPlace: ["", "x" * 5000, "a\0b", ".", "dir:", "dir:" + "x" * 5000, "dir:a\0b"],
    FolderPath: ["", "x" * 5000, "a\0b", __file__],
    SourcePlace: ["", "x" * 5000, "a\0b", ".", "s3://" + "x" * 5000],
}
"""By an argument's type: what no option or argument of it takes."""
NEVER_URI = [
    "",
    "fd:",
    "fd:3,3",
    "vsock:3",
    "tcp",
    "tcp:",
    "tcp:h",
    "tcp:h:99999",
    "tcp:h:1e3",
    "unix:",
    "unix:" + "x" * 200,
    "x:y",
    "tcp:\0:1",
]
NEVER_NETWORK = ["", "x", "10.0.0.1/8", "10.0.0.0/33", "1.2.3", "::/129", "\x1b[2J", "9" * 5000]
NEVER_GROUP = ["", "no such group", "\x1b[2J", "a\0b", "4294967295"]
NEVER_UUID = ["x", "1234", "\x1b[2J", "g" * 32, "f" * 31]
COMMANDS = sorted(main.commands)


def run(*words: str) -> Result:
    return CliRunner().invoke(main, words)


def is_one_refusal(words: tuple[str, ...], statuses: set[int]) -> None:
    done = run(words[0], "--json", *words[1:])
    assert done.exit_code in statuses, (words, done.output, done.exception)
    document = json.loads(done.stdout)
    assert document["status"] == "failed"
    assert document["error"].isprintable()
    for line in done.stderr.splitlines():
        assert line.startswith("multifd: "), line
        assert line.isprintable()
    assert done.stderr.count("multifd: error: ") == 1
    assert not run(*words).stdout


def good_words(command: click.Command, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A value for each argument with which the command does something that is over at once."""
    folder = tmp_path_factory.mktemp("arguments")
    (folder / "in").write_bytes(bytes(4096))
    paths = {"source": "in", "sources": "in", "capture": "in", "out": "out"}
    values = {name: str(folder / file) for name, file in paths.items()}
    uris = dict.fromkeys(("uri", "listen_uri", "to_uri"), f"unix:{folder}/nobody")
    return {p.name: {**values, **uris}.get(p.name, "x") for p in command.params if isinstance(p, click.Argument)}


def bad_cases() -> Iterator[tuple[str, str, str]]:
    for name in COMMANDS:
        for param in main.commands[name].params:
            wrong = next((values for kind, values in NEVER.items() if type(param.type) is kind), [])
            if param.name in ("uri", "listen_uri", "to_uri"):
                wrong = NEVER_URI
            elif param.name == "allow":
                wrong = NEVER_NETWORK
            elif param.name == "socket_group":
                wrong = NEVER_GROUP
            elif param.name == "uuid":
                wrong = NEVER_UUID
            for value in wrong:
                yield name, param.name or "", value


@pytest.mark.parametrize(("name", "param_name", "value"), list(bad_cases()), ids=lambda v: ascii(v)[:30])
def test_a_value_that_no_command_takes(name, param_name, value, tmp_path_factory):
    command = main.commands[name]
    given_words = good_words(command, tmp_path_factory)
    option = next(p for p in command.params if p.name == param_name)
    words: list[str] = [name]
    if isinstance(option, click.Option):
        words.append(f"{option.opts[0]}={value}")
    else:
        given_words[param_name] = value
    is_method = "method" in param_name
    is_one_refusal((*words, "--", *given_words.values()), {2, 3} if is_method else {2})


def test_no_option_has_a_type_that_is_not_tried():
    """An option of another type needs its row above."""
    tried = {*NEVER, click.types.StringParamType, click.types.BoolParamType, type(click.BOOL)}
    for name in COMMANDS:
        for param in main.commands[name].params:
            if param.name not in ("as_json", "verbose"):
                assert type(param.type) in tried, (name, param.name)


@pytest.mark.parametrize("name", COMMANDS)
def test_words_behind_two_hyphens_are_no_options(name):
    done = run(name, "--", *["--json"] * 9)
    assert done.exit_code in (2, 6)
    assert not done.stdout


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(COMMANDS), st.lists(st.text(max_size=20), min_size=7, max_size=9))
def test_any_words_at_all(name, words):
    """More words than any command has arguments, or files that are not there: no traceback, no bug, one document."""
    takes_any = any(param.nargs == -1 for param in main.commands[name].params)
    is_one_refusal((name, "--", *words), {2, 6} if takes_any else {2})


@given(st.integers(0, 1 << 50))
def test_sizes_are_exact(nbytes):
    assert Size().convert(str(nbytes), None, None) == nbytes


@pytest.mark.parametrize(
    ("text", "nbytes"), [("1K", 1024), ("1.5M", 3 << 19), ("2GiB", 2 << 30), ("100M/s", 100 << 20)]
)
def test_sizes_with_suffixes(text, nbytes):
    assert Size().convert(text, None, None) == nbytes


@pytest.mark.parametrize(
    ("text", "bits"),
    [
        ("1Gbit", 10**9),
        ("2.5Gbit/s", 2_500_000_000),
        ("400 mbit", 400_000_000),
        ("8Kbit", 8000),
        ("1.2Tbit", 12 * 10**11),
    ],
)
def test_links_are_decimal_bits(text, bits):
    assert Link().convert(text, None, None) == bits


@pytest.fixture(autouse=True)
def handlers():
    """Whatever a command did with signals, the process that ran it has its own handlers afterwards."""
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    yield
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
