"""The kit must be able to fail: each deliberately wrong method is caught, by the right test, in the right words."""

from __future__ import annotations

import errno
import inspect
import itertools
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import native_methods
import pytest
import wrong_methods

from multifd.cli.new_plugin import new_plugin
from multifd.errors import UsageError
from multifd.testing import suite
from multifd.testing.harness import Section

REPOSITORY = Path(__file__).parents[2]


def install(folder: Path, distribution: str, entry_points: dict[str, str]) -> None:
    """What pip would leave of a distribution that provides methods."""
    info = folder / f"{distribution}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    lines = [f"{name} = {value}\n" for name, value in entry_points.items()]
    (info / "entry_points.txt").write_text("[multifd.methods]\n" + "".join(lines))


@pytest.fixture
def wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Install one method of wrong_methods, and nothing else."""

    def install_one(name: str) -> None:
        cls = wrong_methods.CAUGHT_BY[name][0] if name in wrong_methods.CAUGHT_BY else GOOD[name]
        install(tmp_path / "site", "wrong", {name: f"{cls.__module__}:{cls.__name__}"})
        monkeypatch.syspath_prepend(tmp_path / "site")

    return install_one


GOOD = {
    "good": wrong_methods.Good,
    "goodstream": wrong_methods.GoodStream,
    "goodnative": native_methods.GoodNative,
    "goodnativestream": native_methods.GoodNativeStream,
}


def calls(test: Callable[..., None], tmp_path: Path) -> Iterator[dict[str, Any]]:
    """The arguments of every run of a test of the suite, but for the method."""
    axes: list[list[dict[str, Any]]] = []
    for mark in getattr(test, "pytestmark", ()):
        names = [mark.args[0]] if isinstance(mark.args[0], str) else list(mark.args[0])
        rows = [value if len(names) > 1 else [value] for value in mark.args[1]]
        axes.append([dict(zip(names, row, strict=True)) for row in rows])
    for number, chosen in enumerate(itertools.product(*axes)):
        arguments = {k: v for one in chosen for k, v in one.items()}
        if "tmp_path" in inspect.signature(test).parameters:
            arguments["tmp_path"] = tmp_path / str(number)
            arguments["tmp_path"].mkdir()
        if "record_property" in inspect.signature(test).parameters:
            arguments["record_property"] = lambda name, value: None
        yield arguments


def verdicts(test_name: str, spec: str, tmp_path: Path, *, at_most: int = 10) -> list[str]:
    """Run a test of the suite for a method: what it says, empty if it passes."""
    test, found = getattr(suite, test_name), []
    for arguments in calls(test, tmp_path):
        try:
            test(spec, **arguments)
        except pytest.skip.Exception:
            continue
        except (AssertionError, pytest.fail.Exception) as e:
            found.append(str(e))
            if len(found) == at_most:
                break
    return found


@pytest.mark.parametrize(
    ("name", "test_name", "words"),
    [(name, *caught) for name, (_, tests) in sorted(wrong_methods.CAUGHT_BY.items()) for caught in tests],
)
def test_wrong_method_is_caught(
    name: str, test_name: str, words: str, wrong: Callable[[str], None], tmp_path: Path
) -> None:
    wrong(name)
    found = verdicts(test_name, name, tmp_path, at_most=1)
    assert found, f"{test_name} passes {name}"
    assert any(words in text for text in found), found
    for text in found:
        assert text.startswith("broken promise: "), text
        section = re.search(r"section '(.+)'", text)
        assert section
        assert section[1] in list(Section)


@pytest.mark.parametrize(
    ("name", "test_name"),
    [
        (name, test_name)
        for name, cls in sorted(GOOD.items())
        for test_name in suite.__all__
        # the hooks in Python of one with native ones are those of the others
        if test_name.startswith("test_native_") or not issubclass(cls, native_methods.NativeHooks)
    ],
)
def test_right_method_passes(name: str, test_name: str, wrong: Callable[[str], None], tmp_path: Path) -> None:
    wrong(name)
    assert not verdicts(test_name, name, tmp_path)


def test_each_test_can_fail() -> None:
    """Every test of the suite has a wrong method that it catches; test_gil reports and judges nothing."""
    judged = {test for _, tests in wrong_methods.CAUGHT_BY.values() for test, _ in tests}
    assert judged == set(suite.__all__) - {"test_gil"}


def test_suite_is_complete() -> None:
    """What ``--pyargs multifd.testing`` collects is what the suite exports."""
    folder = REPOSITORY / "multifd" / "testing"
    defined = {n for f in folder.glob("test_*.py") for n in re.findall(r"^def (test_\w+)", f.read_text(), re.MULTILINE)}
    assert defined == set(suite.__all__)


def test_each_rule_is_proved() -> None:
    """The rules in method.py name the tests that prove them: all of them, and no other."""
    import multifd.method

    text = multifd.method.__doc__ or ""
    rules = re.split(r"\n\* ", text)[1:]
    assert [rule for rule in rules if "(test_" not in rule] == []
    assert set(re.findall(r"test_\w+", text)) == set(suite.__all__) - {"test_gil", "test_sequence"}


def test_guide_has_the_sections() -> None:
    guide = (REPOSITORY / "docs" / "write-a-method.md").read_text()
    assert [s.value for s in Section if f"\n## {s.value}\n" not in guide] == []


def run_kit(*arguments: str, cwd: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """pytest as a plugin author runs it, far from this project's configuration."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, filter(None, (path, Path(__file__).parents[1]))))}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=100)


def test_no_method_is_a_failure(tmp_path: Path) -> None:
    """An empty corpus fails, from the command line and from a file."""
    run = run_kit("--pyargs", "multifd.testing", cwd=tmp_path)
    assert run.returncode != 0
    assert "has no method to test" in run.stdout
    (tmp_path / "test_mine.py").write_text("from multifd.testing.suite import *\nMETHODS = []\n")
    run = run_kit("test_mine.py", cwd=tmp_path)
    assert run.returncode != 0
    assert "has no method to test" in run.stdout


def test_command_line(tmp_path: Path) -> None:
    """No file to write: a right method passes, a wrong one fails and says why."""
    install(tmp_path / "site", "two", {"good": "wrong_methods:Good", "swallowserrors": "wrong_methods:SwallowsErrors"})
    arguments = ("--pyargs", "multifd.testing", "-k", "damage or stateless or gil")
    run = run_kit(
        *arguments, "--multifd-method", "good", "--multifd-method", "none", cwd=tmp_path, path=tmp_path / "site"
    )
    assert run.returncode == 0, run.stdout
    assert "6 passed" in run.stdout
    assert "good: time in which another Python thread could run" in run.stdout
    run = run_kit(*arguments, "--multifd-method", "swallowserrors", cwd=tmp_path, path=tmp_path / "site")
    assert run.returncode == 1
    assert "broken promise: recv raises CodecError or fills every byte of its pages" in run.stdout


@pytest.mark.parametrize(
    ("entry_points", "name", "words"),
    [
        ({}, "absent", "no method 'absent' is installed"),
        ({"gone": "no_such_module:Method"}, "gone", "does not load"),
        ({"lost": "wrong_methods:NoSuchClass"}, "lost", "does not load"),
        ({"raises": "broken_plugin:Method"}, "raises", "no vendor library"),
        ({"old": "broken_api:Old"}, "old", "is for plugin API 99"),
        ({"none": "wrong_methods:Good"}, "none", "is provided 2 times"),
        ({"other": "wrong_methods:Good"}, "other", "calls itself 'good'"),
    ],
)
def test_broken_distribution(entry_points: dict[str, str], name: str, words: str, tmp_path: Path) -> None:
    site = tmp_path / "site"
    install(site, "broken", entry_points)
    (site / "broken_plugin.py").write_text("raise OSError('no vendor library')\n")
    (site / "broken_api.py").write_text(
        "from wrong_methods import Good\nclass Old(Good):\n    name = 'old'\n    api = 99\n"
    )
    run = run_kit("--pyargs", "multifd.testing", "-k", "identity", "--multifd-method", name, cwd=tmp_path, path=site)
    assert run.returncode == 1
    assert words in run.stdout, run.stdout
    assert "Traceback" not in run.stdout
    assert "multifd/testing/" not in run.stdout, "the reason alone, not the kit's source"


def test_a_dead_plugin_hides_no_other(tmp_path: Path) -> None:
    site = tmp_path / "site"
    install(site, "broken", {"gone": "no_such_module:Method"})
    arguments = ("--pyargs", "multifd.testing", "-k", "stateless_claim or identity", "--multifd-method", "all")
    run = run_kit(*arguments, cwd=tmp_path, path=site)
    assert run.returncode == 1
    assert re.search(r"2 failed, \d+ passed", run.stdout), run.stdout
    assert "gone" in run.stdout
    assert "does not load" in run.stdout


def test_plugin_is_light() -> None:
    """The pytest plugin is loaded in every run of pytest: it imports neither numpy nor the kit."""
    code = """
import sys, multifd.testing.plugin
heavy = "numpy", "multifd", "hypothesis", "stevedore"
print(sorted(m for m in sys.modules if m.startswith(heavy)))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout.strip() == "['multifd', 'multifd._version', 'multifd.testing', 'multifd.testing.plugin']"


def test_new_plugin(tmp_path: Path) -> None:
    """What new-plugin writes installs, without a network, and passes the kit as it stands."""
    new = [sys.executable, "-m", "multifd", "new-plugin"]
    folder, site = tmp_path / "multifd-my-codec2", tmp_path / "site"
    said = subprocess.run([*new, "my-codec2"], cwd=tmp_path, check=True, capture_output=True, text=True, timeout=60)
    assert said.stdout == f"{folder}\n"
    assert said.stderr == "next: cd multifd-my-codec2 && pip install -e '.[test]' && pytest\n"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-build-isolation", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", site, folder], check=True, timeout=100)
    run = run_kit(cwd=folder, path=site)
    assert run.returncode == 0, run.stdout
    assert "failed" not in run.stdout


@pytest.mark.parametrize("name", ["Zlib", "9p", "a--b", "a_b", "../x", "x" * 32, "", "zlib"])
def test_new_plugin_refuses(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"name '{re.escape(name)}'"):
        new_plugin(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_new_plugin_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        if list(tmp_path.rglob("LICENSE")):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_text(*_)

    write_text = Path.write_text
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UsageError, match=r"multifd-mine: cannot be written: No space left"):
        new_plugin("mine", tmp_path)
    assert not list(tmp_path.iterdir())


def test_new_plugin_overwrites_nothing(tmp_path: Path) -> None:
    folder = new_plugin("mine", tmp_path)
    before = {f: f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    with pytest.raises(UsageError, match="File exists"):
        new_plugin("mine", tmp_path)
    assert {f: f.read_bytes() for f in folder.rglob("*") if f.is_file()} == before
