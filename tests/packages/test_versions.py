"""What is published, on other interpreters and with other releases of what it needs: a useful part of all tests there.

MULTIFD_DIST names the folder with what .ci/dist.py built.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from packages.environment import PLUGINS, ROOT, Environment, interpreter

pytestmark = [
    pytest.mark.skipif("MULTIFD_DIST" not in os.environ, reason="make check-dist builds what is tried here"),
    pytest.mark.timeout(1800),
]
DIST = Path(os.environ.get("MULTIFD_DIST", "dist")).absolute()

# Where interpreters and libraries differ: codecs and whole migrations, entry points, the command line's words, C code.
SOME_TESTS = [
    "tests/test_methods.py",
    "tests/test_registry.py",
    "tests/cli/test_words.py",
    "tests/engine/test_splice.py",
]
# What an older Python cannot do, so nobody else tries it.
NEWER_TESTS = {"3.13": ["tests/transport/test_tls.py", "tests/interop/test_qemu_tls.py::test_pre_shared_keys"]}
TEST_TOOLS = ["cryptography", "hypothesis", "pytest", "pytest-timeout"]


def test_the_oldest_of_everything(tmp_path):
    """On the oldest Python; the bounds that are promised, all of them at once."""
    environment = Environment(tmp_path / "venv", DIST, interpreter("3.11"))
    constraints = tmp_path / "oldest.txt"
    constraints.write_text(environment.run_command(sys.executable, ROOT / ".ci/oldest.py"))
    wheels = [f"{environment.wheel('multifd')}[tls,metrics,report,dask]", *map(environment.wheel, PLUGINS)]
    environment.pip("install", "--only-binary", ":all:", "--constraint", constraints, *wheels, *TEST_TOOLS)
    # What the libraries among themselves find outdated is theirs.
    known = ("-o", "filterwarnings=default")
    of_extras = ["tests/service/test_metrics.py", "tests/bench/test_report.py", "tests/bench/test_fleet.py"]
    environment.pytest(*known, *SOME_TESTS, *of_extras)


@pytest.mark.parametrize("version", ["3.12", "3.13", "3.14", "3.14t"])
def test_another_python(tmp_path, version):
    environment = Environment(tmp_path / "venv", DIST, interpreter(version))
    wheels = [environment.wheel(name) for name in ("multifd", *PLUGINS)]
    environment.pip("install", *wheels, *TEST_TOOLS)
    environment.pytest(*SOME_TESTS, *NEWER_TESTS.get(version, ()))
