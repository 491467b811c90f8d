"""qpl goes through the kit as anyone's method does: by ISA-L, by libqpl, and by a simulated IAA device.

The engine is named, so that what is installed does not choose it. libqpl is the one that MULTIFD_QPL_LIBRARY names,
else the stand-in. No spec names the simulated device: it has a test file of its own, `test_conformance_simulated`.
"""

import pytest

from multifd.testing.suite import *  # noqa: F403

ISAL, LIBQPL = "qpl:hardware=off,software=isal", "qpl:hardware=off,software=libqpl"
METHODS = [ISAL, LIBQPL]


@pytest.fixture(autouse=True)
def _library(multifd_method: str, request: pytest.FixtureRequest) -> None:
    """libqpl for the specs that want it, in the environment, which the kit's own processes inherit."""
    if multifd_method == LIBQPL:
        request.getfixturevalue("libqpl")
