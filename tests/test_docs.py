"""What the documentation says is tried."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from multifd import cli

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def test_the_readmes_library_example_runs(tmp_path):
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    code = code.replace("/tmp/multifd.sock", str(tmp_path / "sock"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "status='completed'" in done.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_and_options_exist(page):
    commands = cli.main.commands
    for line in re.findall(r"(?:^|`)(multifd [a-z].*?)(?:$|`)", page.read_text(), re.MULTILINE):
        words = line.split()
        assert words[1] in commands, line
        known = {o for p in commands[words[1]].params if isinstance(p, click.Option) for o in p.opts}
        for word in words:
            if word.startswith("--"):
                assert word.split("=")[0] in known | {"--help"}, line


def test_every_exit_status_is_in_readme_and_help():
    from multifd import errors

    statuses = {c.exit_code for c in vars(errors).values() if isinstance(c, type) and hasattr(c, "exit_code")}
    readme = (ROOT / "README.md").read_text().split("## Exit statuses")[1]
    for status in statuses | {0, 130}:
        assert re.search(rf"(^|· ?){status} ", readme, re.MULTILINE), status
        assert re.search(rf"(: |; |\n){status} ", cli.main.epilog), status
