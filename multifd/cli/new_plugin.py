"""A new plugin: a distribution that is complete, installs, and passes the kit before its author begins."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from string import Template

from multifd.errors import UsageError

_PYPROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "multifd-$name"
version = "0.1.0"
description = "Method $name for multifd"
readme = "README.md"
license = "MIT"
license-files = ["LICENSE"]
requires-python = ">=3.11"
# The library of your codec goes here too.
dependencies = ["multifd>=0.1,<2"]

[project.optional-dependencies]
test = ["multifd[test]"]

# How multifd finds it: the name is what users type.
[project.entry-points."multifd.methods"]
$name = "$module:$class_name"

[tool.setuptools]
package-dir = { "" = "src" }
py-modules = ["$module"]

[tool.pytest.ini_options]
testpaths = ["tests"]
"""
_MODULE = '''\
"""Method $name for multifd: the pages of a packet as one block.

Put your codec into `encode` and `decode`; the rest is complete. It begins with Python's zlib.

Payload, wire version 1: one byte, 0 for pages as they are and 1 for a block, then that.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from multifd.method import (
    Availability,
    Capabilities,
    CodecError,
    Geometry,
    MethodOptions,
    MultifdMethods,
    RecvParams,
    SendParams,
    option,
)

_RAW, _BLOCK = b"\\0", b"\\1"


@dataclass(frozen=True)
class ${class_name}Options(MethodOptions):
    """What users may set: $name:level=9. The receiver does not know what the sender set."""

    level: int = option(1, "1 is fastest, 9 is smallest", low=1, high=9)


# ---- your codec: these two functions ------------------------------------------------------------


def encode(data: memoryview, options: ${class_name}Options) -> bytes:
    """The block of a packet's pages: up to 512 KiB, in one call that should release the GIL.

    `data` is a private copy, which no guest writes to; keep no view of it.
    """
    return zlib.compress(data, options.level)


def decode(block: memoryview, nbytes: int) -> bytes:
    """The pages in a block that nobody vouches for; never make more than their bytes while finding out.

    Raises:
        CodecError: it does not hold exactly `nbytes` bytes.
    """
    inflater = zlib.decompressobj()
    try:
        data = inflater.decompress(block, nbytes + 1)
    except zlib.error as e:
        raise CodecError(f"$name block of {len(block)} bytes: {e}") from e
    if len(data) != nbytes or not inflater.eof or inflater.unused_data:
        raise CodecError(f"$name block of {len(block)} bytes does not hold exactly its {nbytes}")
    return data


# -------------------------------------------------------------------------------------------------


class ${class_name}(MultifdMethods):
    """Packets as independent blocks; no state, so channels have nothing to share."""

    name = "$name"
    api = 1  # of multifd.method, for which this was written
    wire_version = 1  # count up when the payload's format changes
    capabilities = Capabilities(streaming=False, deterministic=True)
    Options = ${class_name}Options
    options: ${class_name}Options

    @classmethod
    def availability(cls, options: MethodOptions) -> Availability:
        """What it runs on here; say Availability(False, reason="...") if it cannot."""
        return Availability(True, "zlib")

    def max_payload(self, geometry: Geometry) -> int:
        """Pages as they are, and the byte before them."""
        return 1 + geometry.page_count * geometry.page_size

    def send_prepare(self, p: SendParams) -> None:
        """A block, or the pages as they are if that is not smaller."""
        data = p.pages.gather()
        block = encode(data, self.options)
        p.iov.extend((_BLOCK, block) if len(block) < len(data) else (_RAW, data))

    def recv(self, p: RecvParams) -> None:
        """Exactly the pages' bytes, or CodecError."""
        kind, body, nbytes = bytes(p.payload[:1]), p.payload[1:], p.pages.nbytes
        if kind == _BLOCK:
            p.pages.scatter(decode(body, nbytes))
        elif kind == _RAW and len(body) == nbytes:
            p.pages.scatter(body)
        else:
            raise CodecError(f"$name payload of {len(p.payload)} bytes begins with {kind!r}, its pages have {nbytes}")
'''
_TESTS = '''\
"""multifd's conformance kit for $name; add what is its own below."""

from multifd.testing.suite import *  # noqa: F403

METHODS = ["$name"]
'''
_README = """\
# multifd-$name

Method `$name` for multifd, which migrates guest memory between hosts.

    pip install multifd-$name
    multifd send ram.img tcp:host:4444 --method $name

Both ends need it, and `multifd receive` must name it: `--method $name`.

## Work on it

    python -m venv .venv && . .venv/bin/activate
    pip install -e '.[test]'
    pytest

The codec is `encode` and `decode` in `src/$module.py`. The tests are multifd's conformance kit: they prove
that the method keeps every promise of the contract, and say which it broke.
"""
_LICENSE = """\
MIT License

Copyright (c) the authors of multifd-$name

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


def new_plugin(name: str, parent: Path) -> Path:
    """Write distribution ``multifd-NAME`` into `parent` and return its folder.

    Args:
        name: of the method; lower-case letters, digits and hyphens, at most 31, a letter first.
        parent: an existing folder.

    Raises:
        UsageError: another form of name, one that is installed already, or a folder that cannot be made.
    """
    from multifd.registry import installed

    if not re.fullmatch(r"[a-z](-?[a-z0-9])*", name) or len(name) > 31:
        raise UsageError(
            f"name {name!r}: expected 1 to 31 lower-case letters, digits and single hyphens, beginning with a letter"
        )
    if name in installed():
        raise UsageError(f"name {name!r}: a method of this name is installed already, choose another")
    module = "multifd_" + name.replace("-", "_")
    class_name = "".join(part.capitalize() for part in name.split("-")) + "Method"
    folder = parent / f"multifd-{name}"
    files = {
        "pyproject.toml": _PYPROJECT,
        "README.md": _README,
        "LICENSE": _LICENSE,
        f"src/{module}.py": _MODULE,
        f"tests/test_{module}.py": _TESTS,
    }
    try:
        folder.mkdir()
    except OSError as e:
        raise UsageError(f"cannot make {folder}: {e.strerror}") from e
    try:
        for path, text in files.items():
            target = folder / path
            target.parent.mkdir(exist_ok=True)
            target.write_text(Template(text).substitute(name=name, module=module, class_name=class_name))
    except OSError as e:
        shutil.rmtree(folder, ignore_errors=True)
        raise UsageError(f"{folder}: cannot be written: {e.strerror}") from e
    return folder
