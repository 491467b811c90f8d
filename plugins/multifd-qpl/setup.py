"""What pyproject.toml cannot say: the cffi module, which is optional (see _build.py), and that one wheel serves
every CPython from 3.11 on, as the module keeps to the limited API."""

from setuptools import setup

setup(
    cffi_modules=["src/multifd_qpl/_build.py:ffibuilder"],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
