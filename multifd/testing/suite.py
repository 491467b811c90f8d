"""Every test of the kit, for a plugin's own test file::

from multifd.testing.suite import *

METHODS = ["NAME", "NAME:level=9"]
"""

from __future__ import annotations

from multifd.testing import (
    test_alone,
    test_channel,
    test_golden,
    test_interpreter,
    test_method,
    test_native,
    test_payload,
    test_together,
    test_trust,
)

_MODULES = (
    test_alone, test_channel, test_golden, test_interpreter, test_method, test_native, test_payload, test_together,
    test_trust,
)  # fmt: skip
_FOUND = [item for module in _MODULES for item in vars(module).items()]
_TESTS = {name: test for name, test in _FOUND if name.startswith("test_") and callable(test)}
globals().update(_TESTS)
__all__ = sorted(_TESTS)
