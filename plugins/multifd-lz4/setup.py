"""What pyproject.toml cannot say: the hooks in C, which are optional, since those in Python do the same; and that one
wheel serves every CPython from 3.11 on, as the module keeps to the limited API.

MULTIFD_LZ4_BUILD=strict makes them necessary and warnings errors; MULTIFD_LZ4_BUILD=pure leaves them out.
"""

import os

from setuptools import Extension, setup

MODE = os.environ.get("MULTIFD_LZ4_BUILD", "")
if MODE not in ("", "strict", "pure"):
    raise SystemExit(f"MULTIFD_LZ4_BUILD={MODE}: expected strict or pure")

if MODE == "pure":
    setup()
else:
    setup(
        ext_modules=[
            Extension(
                "multifd_lz4._native",
                ["src/multifd_lz4/_native.c"],
                py_limited_api=True,
                extra_compile_args=["-O2", "-Wall", "-Wextra", *(["-Werror"] if MODE else [])],
                optional=not MODE,
            )
        ],
        options={"bdist_wheel": {"py_limited_api": "cp311"}},
    )
