"""What is said to be needed: plugins take a range of multifd that keeps their API, all else has a lower bound."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import tomllib

import pytest
from packages.environment import PLUGINS, ROOT
from packaging.requirements import Requirement
from packaging.version import Version

import multifd
from multifd.cli.new_plugin import new_plugin
from multifd.method import API, OLDEST_API
from multifd.registry import find


def range_of_multifd(project: dict[str, object]) -> Requirement:
    (found,) = [one for one in map(Requirement, project["project"]["dependencies"]) if one.name == "multifd"]
    return found


@pytest.fixture(params=[*PLUGINS, "new"])
def plugin(request, tmp_path):
    folder = new_plugin("mine", tmp_path) if request.param == "new" else ROOT / "plugins" / request.param
    return tomllib.loads((folder / "pyproject.toml").read_text())


def test_a_plugin_takes_this_multifd_and_none_that_may_drop_its_api(plugin):
    found = range_of_multifd(plugin).specifier
    assert found.contains(multifd.__version__)
    assert not found.contains("2.0")
    assert found.contains("1.99")
    assert (OLDEST_API, Version(multifd.__version__).major < 2) == (1, True), (
        "a multifd 2 may be the first without API 1"
    )


@pytest.mark.parametrize("name", ["qpl", "lz4"])
def test_a_plugin_is_of_an_api_that_this_multifd_takes(name):
    pytest.importorskip(f"multifd_{name}", reason=f"multifd-{name} is not installed")
    assert OLDEST_API <= find(name).api <= API


def test_every_requirement_has_a_lower_bound_that_the_installed_one_keeps():
    told = subprocess.run([sys.executable, ".ci/oldest.py"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert told.returncode == 0, told.stderr
    bounds = dict(line.split("==") for line in told.stdout.split())
    assert {"click", "numpy", "zstandard", "isal", "cffi", "xxhash"} <= set(bounds)
    for name, bound in bounds.items():
        assert Version(bound) <= Version(importlib.metadata.version(name)), name
