"""A new plugin: a distribution that is complete, installs, and passes the kit before its author begins."""

from __future__ import annotations

import re
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
dependencies = ["multifd"]

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
"""Method $name for multifd: each page is a block of its own.

Put your codec into `encode_page` and `decode_page`; the rest is complete. It begins with Python's zlib.

Payload, wire version 1: a big-endian u32 length for each page, then the blocks in the same order. A
length equal to the page size is the page as it is.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from multifd.method import (
    PACKET_BYTES,
    Availability,
    Capabilities,
    CodecError,
    MethodOptions,
    MultifdMethods,
    RecvParams,
    SendParams,
    option,
)


@dataclass(frozen=True)
class ${class_name}Options(MethodOptions):
    """What users may set: $name:level=9."""

    level: int = option(1, "1 is fastest, 9 is smallest", low=1, high=9)


# ---- your codec: these two functions ------------------------------------------------------------


def encode_page(page: memoryview, options: ${class_name}Options) -> bytes:
    """The block of one page. The page may be written meanwhile: read it once, keep nothing of it."""
    return zlib.compress(page, options.level)


def decode_page(block: memoryview, page_size: int) -> bytes:
    """The page in a block that nobody vouches for; never make more than a page while finding out.

    Raises:
        CodecError: it does not hold exactly `page_size` bytes.
    """
    inflater = zlib.decompressobj()
    try:
        page = inflater.decompress(block, page_size + 1)
    except zlib.error as e:
        raise CodecError(f"$name block of {len(block)} bytes: {e}") from e
    if len(page) != page_size or not inflater.eof or inflater.unused_data:
        raise CodecError(f"$name block of {len(block)} bytes is not one page of {page_size}")
    return page


# -------------------------------------------------------------------------------------------------


class ${class_name}(MultifdMethods):
    """Pages as independent blocks; no state, so channels have nothing to share."""

    name = "$name"
    api = 1
    wire_version = 1  # count up when the payload's format changes
    capabilities = Capabilities(
        streaming=False,
        page_independent=True,
        deterministic=True,
        # every page raw, and a length for each of the most pages a packet can have
        max_payload=PACKET_BYTES + 4 * (PACKET_BYTES // 4096),
    )
    Options = ${class_name}Options
    options: ${class_name}Options

    @classmethod
    def availability(cls, options: MethodOptions) -> Availability:
        """What it runs on here; say Availability(False, reason="...") if it cannot."""
        return Availability(True, "zlib")

    def send_prepare(self, p: SendParams) -> None:
        """A table of lengths, then a block for each page."""
        blocks = []
        for page in p.pages:
            block = encode_page(page, self.options)
            blocks.append(block if len(block) < len(page) else bytes(page))
        p.iov.append(struct.pack(f">{len(blocks)}I", *map(len, blocks)))
        p.iov.extend(blocks)

    def recv(self, p: RecvParams) -> None:
        """Check the table against the payload before any of it is used, then every block."""
        page_size, payload = p.pages.page_size, p.payload
        at = 4 * len(p.pages)
        if len(payload) < at:
            raise CodecError(f"$name payload of {len(payload)} bytes, its table alone has {at}")
        lengths = struct.unpack_from(f">{len(p.pages)}I", payload)
        if at + sum(lengths) != len(payload):
            raise CodecError(f"$name payload of {len(payload)} bytes, its table says {at + sum(lengths)}")
        for page, length in zip(p.pages, lengths, strict=True):
            block = payload[at : at + length]
            at += length
            page[:] = block if length == page_size else decode_page(block, page_size)
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

The codec is `encode_page` and `decode_page` in `src/$module.py`. The tests are multifd's conformance kit: they prove
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
        for path, text in files.items():
            target = folder / path
            target.parent.mkdir(exist_ok=True)
            target.write_text(Template(text).substitute(name=name, module=module, class_name=class_name))
    except OSError as e:
        raise UsageError(f"cannot write {e.filename}: {e.strerror}") from e
    return folder
