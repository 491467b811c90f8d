"""The built-in methods, with every engine, go through the kit like anyone's."""

from multifd.testing.suite import *  # noqa: F403

METHODS = [
    "none", "zlib", "zlib:engine=zlib", "zlib:level=auto", "zstd", "zstd:engine=zstandard", "zstd:level=auto",
]  # fmt: skip
