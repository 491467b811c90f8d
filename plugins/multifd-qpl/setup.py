"""The one thing that pyproject.toml cannot say: the cffi module, which is optional (see _build.py)."""

from setuptools import setup

setup(cffi_modules=["src/multifd_qpl/_build.py:ffibuilder"])
