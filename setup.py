"""What setup.cfg cannot say: the packet pump, which is optional (multifd/pump/_build.py), and that one wheel serves
every CPython from 3.11 on, as it keeps to the limited API."""

import os

from setuptools import setup

if os.environ.get("MULTIFD_BUILD") == "pure":
    setup()
else:
    setup(
        cffi_modules=["multifd/pump/_build.py:ffibuilder"],
        options={"bdist_wheel": {"py_limited_api": "cp311"}},
    )
