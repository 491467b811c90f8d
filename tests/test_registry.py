"""The registry against distributions that are really installed: folders on sys.path with a dist-info in them.

Each test is a process of its own, since both stevedore and importlib keep what they have seen.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from multifd.errors import UsageError
from multifd.registry import parse_spec

GOOD = """
from multifd.method import Capabilities, MultifdMethods
class Method(MultifdMethods):
    name = "{name}"
    api = 1
    wire_code = {code}
    def send_prepare(self, p): p.iov.extend(p.pages.runs())
    def recv(self, p): p.pages.scatter(p.payload)
"""


class Site:
    """A folder of throw-away distributions, and a cache of stevedore's that belongs to the test."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.cache = folder / "site", folder / "cache"
        self.folder.mkdir()
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(self.folder),
            "XDG_CACHE_HOME": str(self.cache),
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def install(self, distribution: str, source: str, *entries: str, version: str = "1.5") -> None:
        """A module of the distribution's name, and entry points ``NAME`` or ``NAME = TARGET``."""
        (self.folder / f"{distribution}.py").write_text(source)
        info = self.folder / f"{distribution}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        lines = [e if "=" in e else f"{e} = {distribution}:Method" for e in entries]
        (info / "entry_points.txt").write_text("[multifd.methods]\n" + "\n".join(lines) + "\n")

    def run(self, code: str) -> Any:
        """What the code prints, as JSON; warnings are errors."""
        command = [sys.executable, "-W", "error", "-c", f"import json\nfrom multifd import registry\n{code}"]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def error(self, name: str) -> tuple[str, str]:
        """Class and text of what `find` raises."""
        return tuple(self.run(
            f"try:\n    registry.load_method({name!r})\nexcept registry.MethodError as e:\n"
            "    print(json.dumps([type(e).__name__, str(e)]))"
        ))  # fmt: skip

    def describe(self) -> dict[str, dict[str, Any]]:
        """All methods, by name."""
        rows = self.run("import dataclasses\nprint(json.dumps([dataclasses.asdict(i) for i in registry.describe()]))")
        return {row["name"]: row for row in rows}


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_a_plugin(site: Site) -> None:
    site.install("plug", GOOD.format(name="swift", code="None"), "swift")
    row = site.describe()["swift"]
    assert (row["status"], row["distribution"], row["version"], row["wire_code"]) == ("ok", "plug", "1.5", None)
    names = site.run("print(json.dumps(registry.installed()))")
    assert names == sorted(names)
    assert {"none", "swift", "zlib", "zstd"} <= set(names)


PLAIN = GOOD.format(name="{name}", code=0)
AVAILABILITY = PLAIN + "    @classmethod\n    def availability(cls, options): "

BROKEN = {
    # does not load
    "lacks_import": ("import does_not_exist", "MethodUnavailable", "ModuleNotFoundError"),
    "asserts": ("assert False, 'no accelerator'", "MethodUnavailable", "AssertionError: no accelerator"),
    "exits": ("raise SystemExit(3)", "MethodUnavailable", "SystemExit: 3"),
    "raises": ("raise RuntimeError('driver too old')", "MethodUnavailable", "RuntimeError: driver too old"),
    "odd_base": ("raise GeneratorExit('odd')", "MethodUnavailable", "GeneratorExit: odd"),
    "syntax": ("def broken(:", "MethodUnavailable", "SyntaxError"),
    "attribute": ("", "MethodUnavailable", "AttributeError"),
    # is no method
    "is_none": ("Method = None", "MethodIncompatible", "is None"),
    "is_zero": ("Method = 0", "MethodIncompatible", "is 0"),
    "is_empty": ("Method = []", "MethodIncompatible", "is []"),
    "stranger": ("class Method: pass", "MethodIncompatible", "expected a subclass"),
    "function": ("def Method(options): pass", "MethodIncompatible", "expected a subclass"),
    "instance": (PLAIN + "Method = Method()", "MethodIncompatible", "expected a subclass"),
    "falsy": (
        "class Sly(type):\n    __bool__ = lambda cls: False\nclass Method(metaclass=Sly): pass",
        "MethodIncompatible",
        "expected a subclass",
    ),
    "other_api": (
        PLAIN.replace("api = 1", "api = 7"), "MethodIncompatible", "for plugin API 7, this multifd has API 1",
    ),
    "no_api": (PLAIN.replace("    api = 1\n", ""), "MethodIncompatible", "does not say which plugin API"),
    "api_flag": (PLAIN.replace("api = 1", "api = True"), "MethodIncompatible", "api is True, write api = 1"),
    "api_zero": (PLAIN.replace("api = 1", "api = 0"), "MethodIncompatible", "for plugin API 0, this multifd has API 1"),
    "no_capabilities": (PLAIN + "    capabilities = None", "MethodIncompatible", "its capabilities are None"),
    "other_name": (PLAIN.replace("{name}", "zzz"), "MethodIncompatible", "calls itself 'zzz'"),
    "abstract": (PLAIN.replace("def recv", "def receive"), "MethodIncompatible", "lacks recv"),
    "no_options": (PLAIN + "    Options = dict", "MethodIncompatible", "Options is"),
    "n" * 32: (PLAIN, "MethodIncompatible", "1 to 31"),
    # cannot run
    "no_device": (AVAILABILITY + "raise OSError('no device')", "MethodUnavailable", "no device"),
    "unsure": (AVAILABILITY + "return True", "MethodIncompatible", "returned True"),
    "asleep": (
        "from multifd.method import Availability\n" + AVAILABILITY + "return Availability(False, '', 'asleep')",
        "MethodUnavailable",
        "asleep",
    ),
    "bad_hint": (
        "import dataclasses\nfrom multifd.method import MethodOptions\n@dataclasses.dataclass(frozen=True)\n"
        "class O(MethodOptions):\n    level: 'Missing' = 1\n" + PLAIN + "    Options = O",
        "MethodUnavailable",
        "Missing",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, list[str]], dict[str, dict[str, Any]]]:
    """All broken plugins installed at once: what `load_method` raises for each, and `describe`."""
    site = Site(tmp_path_factory.mktemp("broken"))
    for name, (source, _, _) in BROKEN.items():
        site.install(f"plug_{name}", source.replace("{name}", name), name)
    errors = site.run(
        f"errors = {{}}\nfor name in {list(BROKEN)!r}:\n    try:\n        registry.load_method(name)\n"
        "    except registry.MethodError as e:\n        errors[name] = [type(e).__name__, str(e)]\n"
        "print(json.dumps(errors))"
    )
    return errors, site.describe()


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_plugin(broken: Any, name: str) -> None:
    errors, rows = broken
    _, kind, says = BROKEN[name]
    assert errors[name][0] == kind
    assert says in errors[name][1]
    assert rows[name]["status"] == "unavailable"
    assert says in rows[name]["reason"]
    assert (rows[name]["distribution"], rows[name]["version"]) == (f"plug_{name}", "1.5")


def test_broken_plugins_hide_nobody(broken: Any) -> None:
    _, rows = broken
    good = {name for name, row in rows.items() if row["status"] == "ok"}
    assert {"none", "zlib", "zstd"} <= good
    assert good.isdisjoint(BROKEN)
    assert rows.keys() >= {"none", "zlib", "zstd", *BROKEN}


def test_broken_plugins_do_not_break_the_command(site: Site) -> None:
    for name in ("asserts", "exits", "odd_base", "is_none"):
        site.install(f"plug_{name}", BROKEN[name][0], name)
    command = [sys.executable, "-m", "multifd", "methods", "--json"]
    done = subprocess.run(command, env=site.environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert rows["none"]["status"] == "ok"
    for name in ("asserts", "exits", "odd_base", "is_none"):
        assert rows[name]["status"] == "unavailable"
        assert BROKEN[name][2] in rows[name]["reason"]


def test_a_constructor_that_raises(site: Site) -> None:
    site.install("plug", GOOD.format(name="swift", code=0) + "    def __init__(self, o): 1 / 0\n", "swift")
    assert site.error("swift")[0] == "HookError"


def test_every_duplicate_is_reported(site: Site) -> None:
    """Also one that is not next to the other in the list."""
    site.install("one", GOOD.format(name="swift", code=0), "swift")
    site.install("two", GOOD.format(name="other", code=0), "other")
    site.install("three", GOOD.format(name="swift", code=0), "swift", version="2.0")
    kind, text = site.error("swift")
    assert kind == "MethodIncompatible"
    assert "one 1.5" in text
    assert "three 2.0" in text
    assert site.describe()["other"]["status"] == "ok"
    assert site.describe()["swift"]["status"] == "unavailable"


def test_a_duplicate_of_our_own(site: Site) -> None:
    site.install("thief", GOOD.format(name="zstd", code=4), "zstd")
    kind, text = site.error("zstd")
    assert kind == "MethodIncompatible"
    assert "thief 1.5" in text
    assert site.describe()["zlib"]["status"] == "ok"


def test_the_same_target_twice(site: Site) -> None:
    """Two distributions whose entry points read the same are still two."""
    site.install("one", GOOD.format(name="swift", code=0), "swift")
    site.install("two", "", "swift = one:Method")
    kind, text = site.error("swift")
    assert kind == "MethodIncompatible"
    assert "two 1.5" in text


@pytest.mark.parametrize("others", [(), ("other",)])
def test_an_installation_under_way(site: Site, others: tuple[str, ...]) -> None:
    """pip writes and removes files one after the other: what has entry points may not have its name yet."""
    for name in ("plug", *others):
        site.install(name, GOOD.format(name="swift", code="None"), "swift")
    (site.folder / "plug-1.5.dist-info" / "METADATA").unlink()
    row = site.describe()["swift"]
    if others:
        assert (row["status"], "is provided 2 times" in row["reason"]) == ("unavailable", True)
        assert "plug:Method of an unknown distribution" in row["reason"]
    else:
        assert (row["status"], row["distribution"], row["version"]) == ("ok", "", "")


@pytest.mark.parametrize("table", [b"[multifd.methods]\nlost\n", b"[multifd.methods]\nlost = \xff:Method\n"])
def test_a_distribution_whose_entry_points_cannot_be_read(site: Site, table: bytes) -> None:
    """It is named, and hides no other: importlib gives up at the first."""
    site.install("aaa", "", "lost")
    site.install("plug", GOOD.format(name="swift", code="None"), "swift")
    (site.folder / "aaa-1.5.dist-info" / "entry_points.txt").write_bytes(table)
    command = [sys.executable, "-m", "multifd", "methods", "--json"]
    done = subprocess.run(command, env=site.environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert {rows[name]["distribution"] for name in ("none", "zlib", "zstd")} == {"multifd"}
    assert (rows["swift"]["status"], rows["swift"]["distribution"]) == ("ok", "plug")
    assert done.stderr.startswith("multifd: aaa: its entry points cannot be read")


def test_stevedores_stale_cache(site: Site) -> None:
    """stevedore keeps the list on disk, by times rounded to two minutes: what an upgrade changes is missed."""
    site.install("plug", GOOD.format(name="before", code=0), "before", "moved", "dropped")
    (site.folder / "plug2.py").write_text(GOOD.format(name="fresh", code=0))
    (site.folder / "plug3.py").write_text(GOOD.format(name="moved", code=0))
    table = site.folder / "plug-1.5.dist-info" / "entry_points.txt"
    times = table.stat().st_atime, table.stat().st_mtime
    # stevedore switches its cache off for a Python under /tmp, where a test may well run
    prefix = "import sys\nsys.executable = '/usr/bin/python3'\n"
    plain = (
        prefix + "for name in [n for n in sys.modules if n.startswith('stevedore')]: del sys.modules[name]\n"
        "from stevedore import ExtensionManager\n"  # anew: it decides on its cache when it is imported
        "names = ExtensionManager.make_test_instance([], namespace=registry.GROUP).list_entry_points()\n"
        "print(json.dumps([ep.name for ep in names]))"
    )
    assert "before" in site.run(plain)
    table.write_text("[multifd.methods]\nbefore = plug:Method\nfresh = plug2:Method\nmoved = plug3:Method\n")
    os.utime(table, times)
    assert "fresh" not in site.run(plain)  # else this test shows nothing
    found = site.run(
        prefix + "print(json.dumps([[i.name, i.status, i.distribution] for i in registry.describe()"
        " if i.distribution == 'plug' and i.status == 'ok']))"
    )
    assert found == [[name, "ok", "plug"] for name in ("before", "fresh", "moved")]


def test_unknown_name(site: Site) -> None:
    kind, text = site.error("zst")
    assert kind == "MethodNotFound"
    assert "zlib, zstd)" in text
    assert "did you mean 'zstd'" in text


def test_listing_imports_no_plugin(site: Site) -> None:
    site.install("plug", "raise SystemExit('imported')", "swift")
    modules = site.run(
        "import sys\nregistry.installed(); registry.find('none')\n"
        "print(json.dumps([m for m in ('zstandard', 'isal', 'plug', 'multifd.methods.zstd') if m in sys.modules]))"
    )
    assert modules == []


def test_methods_that_share_a_code(site: Site) -> None:
    site.install("aaa", GOOD.format(name="aaa", code=2), "aaa")
    site.install("bbb", "raise SystemExit", "bbb")
    assert site.run("print(json.dumps(list(registry.methods_of_code(2))))") == ["zlib", "aaa"]
    assert site.run("print(json.dumps(list(registry.methods_of_code(32))))") == []


@pytest.mark.parametrize(
    ("spec", "parsed"),
    [
        ("zstd", ("zstd", {})),
        ("zstd:level=3", ("zstd", {"level": "3"})),
        ("a:b=c=d,e=", ("a", {"b": "c=d", "e": ""})),
    ],
)
def test_spec(spec: str, parsed: tuple[str, dict[str, str]]) -> None:
    assert parse_spec(spec) == parsed


@pytest.mark.parametrize(
    "spec", ["zstd:", "zstd:level", "zstd:=3", "zstd:level=1,level=2", "zstd:level=1,", ":level=1"]
)
def test_spec_damaged(spec: str) -> None:
    with pytest.raises(UsageError):
        parse_spec(spec)
