"""What the documentation says is tried."""

from __future__ import annotations

import ast
import contextlib
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import commands_of_docs
import pytest
from mapped_files import build

from multifd.cli.main import main
from multifd.errors import exit_statuses

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("plugins/*/README.md")])


def page_name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def test_the_readmes_library_example_runs(tmp_path):
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    code = code.replace("/tmp/multifd.sock", str(tmp_path / "sock"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "status='completed'" in done.stdout


def test_the_quickstarts_shell_example_runs(tmp_path):
    section = (ROOT / "docs/quickstart.md").read_text().split("## On one machine")[1]
    script = re.search(r"```sh\n(.*?)```", section, re.DOTALL)[1]
    done = subprocess.run(
        ["bash", "-ec", script], cwd=tmp_path, env=with_multifd(),
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "copy.ram").read_bytes() == (tmp_path / "guest.ram").read_bytes()


@pytest.mark.parametrize(("heading", "language"), [("Try it", "sh"), ("Other commands", "python")])
def test_the_examples_of_stored_streams_run(tmp_path, heading, language):
    section = (ROOT / "docs/stored.md").read_text().split(f"## {heading}")[1]
    script = re.search(rf"```{language}\n(.*?)```", section, re.DOTALL)[1].replace("64M", "4M")
    (tmp_path / "guest.ram").write_bytes(os.urandom(1 << 20))
    command = ["bash", "-ec"] if language == "sh" else [sys.executable, "-c"]
    done = subprocess.run(
        [*command, script], cwd=tmp_path, env=with_multifd(), capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "copy.ram").read_bytes() == (tmp_path / "guest.ram").read_bytes()


def test_the_relay_pair_of_one_machine_runs(tmp_path):
    """As it stands, but for the port, which another may have."""
    section = (ROOT / "docs/between-hosts.md").read_text().split("All of it on one machine")[1]
    script = re.search(r"```sh\n(.*?)```", section, re.DOTALL)[1]
    assert script.count("tcp:127.0.0.1:49152") == 2
    done = subprocess.run(
        ["bash", "-ec", script.replace("tcp:127.0.0.1:49152", "unix:between.sock")], cwd=tmp_path, env=with_multifd(),
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "copy.ram").read_bytes() == (tmp_path / "guest.ram").read_bytes()


def test_the_descriptors_example_runs(tmp_path):
    section = (ROOT / "docs/between-hosts.md").read_text().split("## Descriptors")[1]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
    (tmp_path / "guest.ram").write_bytes(os.urandom(1 << 20))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=with_multifd(), capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "copy.ram").read_bytes() == (tmp_path / "guest.ram").read_bytes()


def test_the_digests_example_runs(tmp_path):
    section = (ROOT / "docs/capture.md").read_text().split("## Digests")[1]
    script = re.search(r"```sh\n(.*?)```", section, re.DOTALL)[1]
    (tmp_path / "vm.ram").write_bytes(build([(b"pc.ram", os.urandom(1 << 16))]))
    done = subprocess.run(
        ["bash", "-ec", script], cwd=tmp_path, env=with_multifd(), capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "vm.ram.sha256\nvm.ram: sound, and matches vm.ram.sha256\nvm.ram: OK\n"


def with_multifd() -> dict[str, str]:
    """An environment whose PATH has the command that is tested."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def test_the_command_reference_has_every_command_and_option(tmp_path):
    pytest.importorskip("sphinx_click", reason="the docs extra is not installed")
    source = tmp_path / "source"
    source.mkdir()
    (source / "conf.py").write_text('extensions = ["myst_parser", "sphinx_click"]\nroot_doc = "cli"\n')
    (source / "cli.md").write_text((ROOT / "docs/cli.md").read_text())
    build = [sys.executable, "-m", "sphinx", "-q", "-W", "-b", "text", str(source), str(tmp_path / "out")]
    done = subprocess.run(build, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    _, *sections = re.split(
        r"^([\w-]+)\n=+$|^([\w-]+)\n-+$", (tmp_path / "out/cli.txt").read_text(), flags=re.MULTILINE
    )
    found = {a or b: text for a, b, text in zip(*[iter(sections)] * 3, strict=True)}
    for name, command in main.commands.items():
        for param in command.params:
            assert (param.opts[0] if isinstance(param, click.Option) else param.human_readable_name) in found[name]


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


def groups() -> dict[str, click.Group]:
    """The commands that pages may use, by their name."""
    found = {"multifd": main}
    with contextlib.suppress(ImportError):
        from multifd_qpl.cli import main as iaa

        found["multifd-iaa"] = iaa
    return found


def test_lists_of_commands_break_no_sentence():
    for group in groups().values():
        with click.Context(group, terminal_width=80) as context:
            assert "..." not in group.get_help(context).partition("Commands:")[2]
        assert all(one.short_help for one in (group, *group.commands.values()))


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_commands_and_options_exist(page):
    for tool, group in groups().items():
        for line in re.findall(rf"(?:^|`)({tool} [a-z].*?)(?:$|`)", page.read_text(), re.MULTILINE):
            words = line.split()
            assert words[1] in group.commands, line
            known = {o for p in group.commands[words[1]].params if isinstance(p, click.Option) for o in p.opts}
            for word in words:
                if word.startswith("--"):
                    assert word.split("=")[0] in known | {"--help"}, line


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_command_is_run_or_it_is_known_why_not(page):
    """tests/commands_of_docs.py says so of each."""
    untold = [one for one in commands_of_docs.commands(page) if not commands_of_docs.told_of(page_name(page), one)]
    assert untold == []


def test_what_is_said_to_run_commands_exists_and_nothing_is_said_of_none():
    shown = [(page_name(page), command) for page in PAGES for command in commands_of_docs.commands(page)]
    assert len(shown) > 80
    for pattern in (*commands_of_docs.ALIKE, *commands_of_docs.NOT_RUN):
        assert any(re.fullmatch(pattern, command) for _, command in shown), pattern
    for page, pattern in commands_of_docs.RUN.items():
        assert any(re.fullmatch(pattern, command) for place, command in shown if place == page), page
    for place in commands_of_docs.ALIKE.values():
        assert (ROOT / place).exists(), place


ANCHORED = re.compile(r"\]\(([\w./-]*\.md)?#([\w-]+)\)")


def anchors_of(page: Path) -> set[str]:
    """As myst_heading_anchors makes them."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#{1,3} (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_into_pages_lead_to_headings(page):
    for target, anchor in ANCHORED.findall(page.read_text()):
        assert anchor in anchors_of(page.parent / target if target else page), f"{target}#{anchor}"


def test_every_status_in_the_table_of_failures_exists():
    table = (ROOT / "docs/faults.md").read_text().split("## What a failure looks like")[1].split("\n## ")[0]
    rows = [line.split("|")[2:-1] for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 5
    for cells in rows:
        statuses = [int(number) for cell in cells for number in re.findall(r"\b\d+\b", cell)]
        assert statuses, cells
        assert set(statuses) <= set(exit_statuses()), cells


NAMED_TEST = re.compile(r"`((?:tests|plugins)/[\w/-]+\.py)(?:::(?:\w+::)*(\w+))?`")


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_tests_that_are_named_exist(page):
    for path, name in NAMED_TEST.findall(page.read_text()):
        source = ROOT / path
        assert source.exists(), path
        nodes = ast.walk(ast.parse(source.read_text()))
        assert not name or name in {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}, (
            name
        )


def test_every_promise_names_a_test():
    table = (ROOT / "docs/promises.md").read_text().split("## Promises")[1].split("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][2:]
    assert len(rows) > 15
    for row in rows:
        assert any(name for _, name in NAMED_TEST.findall(row)), row


def test_every_page_is_in_one_table_of_contents_the_index_under_headings():
    index = (ROOT / "docs/index.md").read_text()
    tables = [
        table
        for page in ROOT.glob("docs/*.md")
        for table in re.findall(r"```{toctree}(.*?)```", page.read_text(), re.DOTALL)
    ]
    listed = re.findall(r"^([\w-]+)$", "\n".join(tables), re.MULTILINE)
    assert sorted(listed) == sorted(p.stem for p in (ROOT / "docs").glob("*.md") if p.stem != "index")
    assert index.count("{toctree}") == index.count(":caption:")


def test_the_readme_says_what_every_exit_status_means():
    readme = " ".join((ROOT / "README.md").read_text().split("## Exit statuses")[1].split())
    for status, meaning in exit_statuses().items():
        assert f"{status} {meaning}" in readme


DOTTED = re.compile(r"(?<![\w./-])multifd(?:_\w+)?(?:\.[A-Za-z_]\w*)+(?![\w/-])")
NO_PYTHON = re.compile(r"multifd\.(h|c|sock|log)|.*\.(py|md)")


def texts_about_code() -> dict[str, str]:
    """Pages, without the changelog, which speaks of what was; and all docstrings, by file."""
    found = {page_name(page): page.read_text() for page in PAGES if page.name != "CHANGELOG.md"}
    for source in sorted([*ROOT.glob("multifd/**/*.py"), *ROOT.glob("plugins/*/src/**/*.py")]):
        nodes = ast.walk(ast.parse(source.read_text()))
        strings = [node.value.value for node in nodes if isinstance(node, ast.Expr) and is_text(node.value)]
        found[page_name(source)] = "\n".join(strings)
    return found


def is_text(node):
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def leads_somewhere(name: str) -> bool:
    """Whether a dotted name is a module, or something in one; a plugin that is not installed is not looked at."""
    parts = name.split(".")
    try:
        found = importlib.import_module(parts[0])
    except ImportError:
        return parts[0] != "multifd"
    for i, part in enumerate(parts[1:], 2):
        if hasattr(found, part):
            found = getattr(found, part)
            continue
        if part in getattr(found, "__annotations__", {}):
            return i == len(parts)  # a field without a default
        try:
            found = importlib.import_module(".".join(parts[:i]))
        except ImportError:
            return False
    return True


def test_every_dotted_name_exists():
    texts = texts_about_code()
    names = {(place, name) for place, text in texts.items() for name in DOTTED.findall(text)}
    looked_at = {(place, name) for place, name in names if not NO_PYTHON.fullmatch(name)}
    assert len(looked_at) > 50
    assert sorted((place, name) for place, name in looked_at if not leads_somewhere(name)) == []
    assert not leads_somewhere("multifd.no_such_module.Thing")
