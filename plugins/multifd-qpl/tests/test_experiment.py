"""The simulated migration: repeatable, linear, and where it must agree with what was published."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from multifd_qpl.cli import main
from multifd_qpl.devices import read_status
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
    published = run("simulate", "--devices", "1", "--channels", "4", "--policy", "wait", "--ram", "2M")
    assert "859607" in published


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def test_status_of_a_machine_without_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MULTIFD_QPL_LIBRARY", "/nowhere/libqpl.so.1")
    status = read_status(tmp_path)
    assert not status.hardware_ready
    assert status.library is None
    assert any("/nowhere" in reason for reason in status.missing)
    assert any("no IAA device" in reason for reason in status.missing)
    document = json.loads(run("status", "--json"))
    assert document["library"] is None
    assert "not found" in run("status")


def test_status_of_devices(tmp_path: Path) -> None:
    """Trees as the idxd driver shows them: one device without queues, one with a queue of each sort."""
    for i in range(2):
        write(tmp_path / f"sys/bus/pci/devices/0000:6a:0{i}.0/vendor", "0x8086")
        write(tmp_path / f"sys/bus/pci/devices/0000:6a:0{i}.0/device", "0x0cfe")
    status = read_status(tmp_path)
    assert status.pci_devices == 2
    assert any("idxd" in reason for reason in status.missing)

    base = tmp_path / "sys/bus/dsa/devices"
    for name, state in (("iax1", "disabled"), ("iax3", "enabled")):
        write(base / name / "state", state)
        write(base / name / "numa_node", "0")
        write(base / name / "max_engines", "8")
    status = read_status(tmp_path)
    assert "accel-config enable-wq iax1/wq1.0" in status.commands
    assert not any("iax3" in command for command in status.commands)

    attributes = {"size": "128", "threshold": "128", "block_on_fault": "1", "max_transfer_size": "2147483648"}
    for queue, mode, state in (
        ("wq3.0", "dedicated", "enabled"),
        ("wq3.1", "shared", "enabled"),
        ("wq3.2", "shared", "disabled"),
    ):
        for key, value in {**attributes, "mode": mode, "state": state}.items():
            write(base / "iax3" / queue / key, value)
    write(tmp_path / "dev/iax/wq3.0", "")
    status = read_status(tmp_path)
    problems = {q.name: q.problem for d in status.devices for q in d.queues}
    assert "dedicated" in problems["wq3.0"]
    assert "permission" in problems["wq3.1"]
    assert "disabled" in problems["wq3.2"]
    write(tmp_path / "dev/iax/wq3.1", "")
    status = read_status(tmp_path)
    assert [q.name for d in status.devices for q in d.queues if not q.problem] == ["wq3.1"]
    assert status.commands == []
    shown = status.as_dict()["devices"][1]["queues"][1]
    assert (shown["entries"], shown["block_on_fault"], shown["problem"]) == (128, True, "")
