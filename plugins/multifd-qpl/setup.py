"""What pyproject.toml cannot say: the cffi module, which is optional (see _build.py), that one wheel serves
every CPython from 3.11 on, as the module keeps to the limited API, and the man pages, where they were made."""

import os
from glob import glob

from setuptools import setup

MAN_PAGES = [("share/man/man1", sorted(glob("man/*.1")))]

if os.environ.get("MULTIFD_QPL_BUILD") == "pure":
    setup(data_files=MAN_PAGES)
else:
    setup(
        data_files=MAN_PAGES,
        cffi_modules=["src/multifd_qpl/_build.py:ffibuilder"],
        options={"bdist_wheel": {"py_limited_api": "cp311"}},
    )
