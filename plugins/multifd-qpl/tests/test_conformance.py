"""qpl goes through the kit as anyone's method does, by each engine that can run here.

Without a libqpl in MULTIFD_QPL_LIBRARY, ISA-L is the engine of each; test_simulator.py has the simulated device.
"""

from multifd.testing.suite import *  # noqa: F403

METHODS = ["qpl:hardware=off,software=isal"]
