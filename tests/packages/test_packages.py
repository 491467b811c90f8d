"""What is published: what is in it, that it is the same whoever builds it, and that it works where nothing else is.

MULTIFD_DIST names the folder with what .ci/dist.py built.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from packages.environment import PLUGINS, ROOT, Environment

import multifd

pytestmark = [
    pytest.mark.skipif("MULTIFD_DIST" not in os.environ, reason="make check-dist builds what is looked at here"),
    pytest.mark.timeout(1800),
]
DIST = Path(os.environ.get("MULTIFD_DIST", "dist")).absolute()
NAMES = {path.name for path in DIST.iterdir()} if DIST.is_dir() else set()
COMPILED = {
    "multifd": "multifd/_pump.abi3.so",
    "multifd_qpl": "multifd_qpl/_batch.abi3.so",
    "multifd_lz4": "multifd_lz4/_native.abi3.so",
}
COMMANDS = {"multifd": "multifd", "multifd_qpl": "multifd-iaa"}


def contents(name: str) -> set[str]:
    path = DIST / name
    if path.suffix == ".whl":
        return set(zipfile.ZipFile(path).namelist())
    with tarfile.open(path) as archive:
        return {member.name for member in archive.getmembers()}


@pytest.mark.parametrize("project", ["multifd", "multifd_qpl", "multifd_lz4"])
def test_there_are_wheels_for_every_machine(project):
    kinds = {name.split("-", 2)[2] for name in NAMES if name.startswith(f"{project}-") and name.endswith(".whl")}
    assert "py3-none-any.whl" in kinds
    compiled = kinds - {"py3-none-any.whl"}
    assert bool(compiled) == (project in COMPILED)
    assert all(re.fullmatch(r"cp311-abi3-manylinux.*\.whl", kind) for kind in compiled)
    assert len([name for name in NAMES if re.fullmatch(rf"{project}-[\d.]+\.tar\.gz", name)]) == 1


@pytest.mark.parametrize("name", sorted(NAMES))
def test_each_has_the_licence_and_nothing_of_this_machine(name):
    found = contents(name)
    assert any(re.search(r"(^|/)LICENSE$", path) for path in found)
    assert not [path for path in found if "__pycache__" in path or "/tests/" in path]
    for project, compiled in COMPILED.items():
        if name.startswith(f"{project}-"):
            assert (compiled in found) == ("abi3" in name)
    for project, command in COMMANDS.items():
        if name.startswith(f"{project}-"):
            assert any(path.endswith(f"man1/{command}.1") for path in found) or name.endswith(".tar.gz")
    assert str(ROOT).encode() not in (DIST / name).read_bytes()


def test_another_place_builds_the_same_bytes(tmp_path):
    """From a copy of what git knows, at another time."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this is no git checkout, so what its sources are is not known")
    copy = tmp_path / "elsewhere"
    for name in filter(None, listed.stdout.splitlines()):
        if (ROOT / name).is_file():  # else it was removed, and that is not committed yet
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, copy / name)
    epoch = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=ROOT, capture_output=True, text=True)
    command = [sys.executable, ".ci/dist.py", str(tmp_path / "again")]
    env = {**os.environ, "SOURCE_DATE_EPOCH": os.environ.get("SOURCE_DATE_EPOCH", epoch.stdout.strip())}
    done = subprocess.run(command, cwd=copy, env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name for path in (tmp_path / "again").iterdir()} == NAMES
    assert [name for name in NAMES if (tmp_path / "again" / name).read_bytes() != (DIST / name).read_bytes()] == []


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """multifd alone, with the newest of everything it needs."""
    environment = Environment(tmp_path_factory.mktemp("alone") / "venv", DIST)
    environment.pip("install", environment.wheel("multifd"))
    return environment


ROUND_TRIP = """
head -c 3M /dev/urandom > guest.ram
"$0" receive unix:socket copy.ram --format raw &
"$0" send guest.ram unix:socket --method zstd --channels 2
wait $!
cmp guest.ram copy.ram
"""


class TestAlone:
    def test_it_migrates_by_the_packet_pump(self, alone, tmp_path):
        assert "packets travel by the packet pump" in alone.run("multifd", "--version")
        alone.run_command("bash", "-ec", ROUND_TRIP, alone.path("bin/multifd"), cwd=tmp_path)

    def test_it_lists_its_methods(self, alone):
        methods = {one["name"]: one["status"] for one in json.loads(alone.run("multifd", "methods", "--json"))}
        assert methods == {"none": "ok", "zlib": "ok", "zstd": "ok"}

    def test_it_shows_what_it_can(self, alone):
        shown = json.loads(alone.run("multifd", "demo", "--size", "16M", "--json"))
        assert {one["method"] for one in shown} == {"none", "zlib", "zstd"}

    def test_it_begins_a_plugin_that_works(self, alone, tmp_path):
        alone.run("multifd", "new-plugin", "mine", cwd=tmp_path)
        # As `pip install` would: the entry point is all that it takes.
        source = tmp_path / "multifd-mine/src"
        (metadata := source / "multifd_mine-0.1.0.dist-info").mkdir()
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: multifd-mine\nVersion: 0.1.0\n")
        (metadata / "entry_points.txt").write_text("[multifd.methods]\nmine = multifd_mine:MineMethod\n")
        listed = alone.run_command("env", f"PYTHONPATH={source}", alone.path("bin/multifd"), "methods", "--json")
        assert {"name": "mine", "status": "ok"}.items() <= next(
            m for m in json.loads(listed) if m["name"] == "mine"
        ).items()

    @pytest.mark.parametrize(
        ("command", "package"),
        [
            (["report", "result.json"], "'multifd[report]'"),
            (["tls", "new", "credentials", "localhost"], "'multifd[tls]'"),
            (["receive", "unix:socket", "x.ram", "--metrics", "tcp:127.0.0.1:0"], "'multifd[metrics]'"),
            (["bench", "--synthetic", "mix:1M", "--executor", "dask:tcp://127.0.0.1:1"], "'multifd[dask]'"),
            (["send", "guest.ram", "unix:socket", "--method", "qpl"], "multifd-qpl"),
            (["send", "guest.ram", "unix:socket", "--method", "lz4"], "multifd-lz4"),
        ],
    )
    def test_what_is_missing_says_which_package_has_it(self, alone, tmp_path, command, package):
        shutil.copy(ROOT / "tests/bench/sample.json", tmp_path / "result.json")
        (tmp_path / "guest.ram").write_bytes(bytes(1 << 20))
        assert f"pip install {package}" in alone.run("multifd", *command, cwd=tmp_path, fails=True)

    def test_its_man_pages_are_where_man_looks(self, alone):
        page = alone.path("share/man/man1/multifd-send.1").read_text()
        assert ".TH" in page
        assert multifd.__version__ in page
        assert "max\\-bandwidth" in page

    def test_the_pure_wheel_says_that_it_is_one(self, alone, tmp_path):
        (pure,) = DIST.glob("multifd-*-py3-none-any.whl")
        alone.pip("install", "--force-reinstall", "--no-deps", pure)
        try:
            told = alone.run("multifd", "--version")
            alone.run_command("bash", "-ec", ROUND_TRIP, alone.path("bin/multifd"), cwd=tmp_path)
        finally:
            alone.pip("install", "--force-reinstall", "--no-deps", alone.wheel("multifd"))
        assert "packets travel in Python: no packet pump in this installation: a pure wheel" in told


@pytest.fixture(scope="module")
def together(alone):
    """With its plugins; comes last."""
    alone.pip("install", *map(alone.wheel, PLUGINS))
    return alone


class TestPlugins:
    def test_their_methods_are_there(self, together):
        methods = {one["name"]: one["status"] for one in json.loads(together.run("multifd", "methods", "--json"))}
        assert methods == dict.fromkeys(["none", "zlib", "zstd", "qpl", "lz4"], "ok")

    def test_the_pure_wheel_of_qpl_says_what_it_lacks(self, together):
        (pure,) = DIST.glob("multifd_qpl-*-py3-none-any.whl")
        together.pip("install", "--force-reinstall", "--no-deps", pure)
        (qpl,) = [m for m in json.loads(together.run("multifd", "methods", "--json")) if m["name"] == "qpl"]
        assert (qpl["status"], qpl["engine"]) == ("ok", "isal")
        assert "pure wheel" in qpl["reason"]
