"""Shells complete the command line by the one line that docs/install.md has for each."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from multifd.cli.main import main
from multifd.cli.values import FilePath, FolderPath, SourcePlace, StoredPlace

PAGE = Path(__file__).parents[2] / "docs/install.md"
BASH = """
{line}
COMP_WORDS=({words}) COMP_CWORD={last}
_multifd_completion multifd
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
FISH = """
{line}
complete --do-complete '{words}'
"""


def line_of(shell: str) -> str:
    row = next(row for row in PAGE.read_text().splitlines() if row.startswith(f"| {shell}"))
    return re.findall(r"`(.+?)`", row)[1].replace("\\|", "|")


def complete(shell: str, words: str, home: Path) -> list[str]:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} on this machine")
    split = words.split(" ")
    script = {"bash": BASH, "fish": FISH}[shell].format(line=line_of(shell), words=words, last=len(split) - 1)
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    env = {"PATH": path, "HOME": str(home)}
    done = subprocess.run([shell, "-c", script], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [offered.split("\t")[0] for offered in done.stdout.split("\n") if offered]


@pytest.mark.parametrize("shell", ["bash", "fish"])
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("multifd rec", ["receive"]),
        ("multifd send --max-b", ["--max-bandwidth"]),
        ("multifd send --dialect 9", ["9.0"]),
        ("multifd send --method zs", ["zstd"]),
        ("multifd relay --out zs", ["zstd"]),
        ("multifd tls n", ["new"]),
    ],
)
def test_what_is_offered(shell, words, offered, tmp_path):
    assert complete(shell, words, tmp_path) == offered


def every_parameter() -> Iterator[tuple[str, click.Parameter]]:
    for name, command in main.commands.items():
        for param in command.params:
            yield f"{name} {param.human_readable_name}", param


def test_files_are_offered_where_files_are_meant():
    with click.Context(main) as context:
        offered = {
            name: {item.type for item in param.shell_complete(context, "x")} for name, param in every_parameter()
        }
    meant = {
        name
        for name, param in every_parameter()
        if isinstance(param.type, FilePath | FolderPath | SourcePlace | StoredPlace)
    }
    assert {name for name, types in offered.items() if types & {"file", "dir"}} == meant
    assert "send SOURCE" in meant


def test_zsh_reads_the_script_and_has_the_command_s_completion(tmp_path):
    if shutil.which("zsh") is None:
        pytest.skip("no zsh on this machine")
    script = f"autoload -U compinit; compinit -u -D; {line_of('zsh')}; print $_comps[multifd]"
    env = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(["zsh", "-fc", script], env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "_multifd_completion\n"), done.stderr
