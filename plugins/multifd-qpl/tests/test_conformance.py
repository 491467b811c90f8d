"""qpl goes through the kit as anyone's method does, by ISA-L.

The engine is named, so that what is installed does not choose it.
"""

from multifd.testing.suite import *  # noqa: F403

METHODS = ["qpl:hardware=off,software=isal"]
