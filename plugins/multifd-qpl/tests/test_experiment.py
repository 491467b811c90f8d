"""The simulated migration: repeatable, linear, and where it must agree with what was published."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from multifd_qpl.cli import main
from multifd_qpl.experiment import simulate

from multifd.errors import UsageError

KEYS = [
    "policy",
    "devices",
    "channels",
    "total_time_ms",
    "downtime_ms",
    "mbps",
    "pages_per_second",
    "pages_per_second_mean",
    "hardware_pages",
    "software_pages",
    "raw_pages",
    "busy",
    "retried",
    "retries",
    "verify",
]


def run(*arguments: str) -> str:
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_repeats_exactly_and_is_linear() -> None:
    arguments = {"devices": 1, "channels": 3}
    first = simulate(["fallback"], ram_bytes=8 << 20, **arguments)
    assert simulate(["fallback"], ram_bytes=8 << 20, **arguments) == first
    times = [simulate(["fallback"], ram_bytes=n << 20, **arguments)[0].total_time_ms for n in (8, 16, 32)]
    assert (times[2] - times[1]) / (times[1] - times[0]) == pytest.approx(2, rel=0.05)


def test_more_devices_help_until_the_channels_are_the_limit() -> None:
    times = [simulate(["wait"], devices=d, channels=2, ram_bytes=8 << 20)[0].total_time_ms for d in (1, 2, 8)]
    assert times[0] > times[1] >= times[2]


def test_refuses_what_cannot_be_meant() -> None:
    with pytest.raises(UsageError):
        simulate(["wait"], devices=0, channels=4, ram_bytes=1 << 20)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["stats"], "Did you mean 'status'?"),
        (["simulate", "--devices", "0"], "'--devices'"),
        (["simulate", "--ram", "much"], "expected bytes such as 512M"),
        (["simulate", "--policy", "wai"], "'wai' is not one of"),
    ],
)
def test_wrong_arguments_are_one_line(words: list[str], said: str) -> None:
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("multifd-iaa: error: ")
    assert said in line


def test_command_simulate() -> None:
    arguments = (
        "simulate",
        "--devices",
        "1",
        "--channels",
        "2",
        "--policy",
        "fallback",
        "--policy",
        "wait",
        "--ram",
        "4M",
    )
    text = run(*arguments, "--json")
    rows = json.loads(text)
    assert [list(row) for row in rows] == [KEYS, KEYS]
    assert [row["policy"] for row in rows] == ["fallback", "wait"]
    assert run(*arguments, "--json") == text
    assert "Not a measurement" in run(*arguments)
    one_device = ("simulate", "--devices", "1", "--channels", "4", "--ram", "2M", "--policy")
    assert "859607" in run(*one_device, "wait")
    assert "1509647" in run(*one_device, "fallback")
    assert "too short" in run(*one_device, "fallback")  # the error of the prediction
    for other in (("--retries", "7"), ("--verify", "on")):
        assert "1509647" not in run(*one_device, "fallback", *other)
