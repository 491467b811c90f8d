"""What the operator's page says is what the program does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from multifd_qpl import jobs, remedy, watch
from multifd_qpl._batch import lib
from multifd_qpl.cli import main
from multifd_qpl.method import QplOptions
from multifd_qpl.sysfs import Device

from multifd.errors import OptionError

DOCS = Path(__file__).parents[3] / "docs"
PAGE = (DOCS / "iaa.md").read_text()


def test_commands_that_set_a_device_up_are_those_of_status() -> None:
    fresh = Device("iax1", "disabled", 0, 8, True, [])
    cause = remedy.device_cause(fresh)
    assert cause is not None
    shown = " ".join(PAGE.replace("\\\n", " ").replace("engine1.$i", "engine1.0").split())
    for command in cause.commands:
        if "config-engine" not in command or "engine1.0" in command:
            assert command in shown


def test_the_udev_rule_is_that_of_status() -> None:
    assert f"echo '{remedy.UDEV_RULE}' > {remedy.UDEV_FILE}" in PAGE
    assert f"groupadd --system --force {remedy.GROUP}" in PAGE


def test_every_counter_is_described() -> None:
    table = PAGE.split("## Counters")[1].split("## ")[0]
    assert set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == {*jobs.COUNTERS, *watch.COUNTERS}


def test_the_numbers_of_the_watch() -> None:
    text = " ".join(PAGE.split())
    assert f"no page of {watch._REFUSING_PACKETS} packets in a row" in text
    assert f"for {jobs.SILENCE_S:g} s, or for half of the migration's `--timeout`" in text


def test_the_memory_of_a_channel_is_one_number_everywhere() -> None:
    """libqpl 1.6.0's job sizes, as the stand-in's, and `BatchEngine`'s slots; test_jobs.py holds the code to it."""
    nbytes = 128 * 188736 + 740864 + 3 * 128 * lib.mq_slot_bytes(4096)
    said = f"{nbytes / 1e6:.0f} MB"
    for text in (PAGE, (DOCS / "faults.md").read_text(), jobs.BatchEngine.__doc__ or ""):
        assert said in text


def test_the_bound_of_retries() -> None:
    (option,) = (option for option in QplOptions.describe() if option["name"] == "retries")
    assert option["default"] == 3
    assert "3 as in QEMU, at most 1000" in PAGE
    QplOptions(retries=1000)
    with pytest.raises(OptionError):
        QplOptions(retries=1001)


def test_every_option_is_in_the_readme() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    for option in QplOptions.describe():
        assert re.search(rf"^\| `{option['name']}` \|.*\| `?{option['default']}`? \|$", readme, re.MULTILINE)


def test_the_command_reference_has_every_command_and_option(tmp_path: Path) -> None:
    pytest.importorskip("sphinx_click", reason="the docs extra is not installed")
    source = tmp_path / "source"
    source.mkdir()
    (source / "conf.py").write_text('extensions = ["myst_parser", "sphinx_click"]\nroot_doc = "iaa"\n')
    (source / "iaa.md").write_text("# IAA\n\n" + PAGE.split("## Command reference")[1])
    build = [sys.executable, "-m", "sphinx", "-q", "-W", "-b", "text", str(source), str(tmp_path / "out")]
    done = subprocess.run(build, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "out/iaa.txt").read_text()
    for name, command in main.commands.items():
        section = text.split(f"\n{name}\n", 1)[1]
        for param in command.params:
            assert param.opts[0] in section
