"""qpl's recv: the C code by ISA-L, from Python and from the pump, and ISA-L without it: all by one rule.

The rule is `multifd_qpl.inflate`'s: raw deflate that zlib decodes to exactly a page is one.
"""

from __future__ import annotations

from collections.abc import Iterator

import multifd_qpl.method
from multifd_qpl.inflate import inflate_page
from multifd_qpl.method import QplMethod, read_lengths
from multifd_qpl.software import IsalEngine

from multifd.method import RecvParams, SendParams
from multifd.registry import load_method
from multifd.testing.harness import RecvEnd
from tests.fuzz import channel
from tests.fuzz.channel import PAGE
from tests.fuzz.channel import fields as fields

COVERS = ("multifd_qpl.jobs", "multifd_qpl.software", "multifd_qpl.inflate")
LONGEST = 5500


class _WithoutC(QplMethod):
    """As where the extension was not built."""

    def _open(self, p: SendParams | RecvParams) -> multifd_qpl.method.Engine:
        return IsalEngine(p.geometry)


class _ByTheRule(QplMethod):
    """The rule itself."""

    def recv_setup(self, p: RecvParams) -> None:
        """Nothing is held."""

    def recv(self, p: RecvParams) -> None:
        """Each page by zlib."""
        start = 4 * len(p.pages)
        for i, (length, page) in enumerate(zip(read_lengths(p.payload, len(p.pages), PAGE), p.pages, strict=True)):
            stream = p.payload[start : start + length]
            page[:] = stream if length == PAGE else inflate_page(i, stream, PAGE)
            start += length


_METHOD, _PYTHON, _RULE = load_method("qpl:hardware=off"), _WithoutC(), _ByTheRule()
_ENDS = [*channel.by_both_hooks(_METHOD), RecvEnd(_PYTHON, PAGE), RecvEnd(_RULE, PAGE)]


def seeds() -> Iterator[bytes]:
    """Compressed pages, and one as it is."""
    yield from channel.seeds(_METHOD, _PYTHON, kinds=("text", "almost-zero", "constant"))


def run(data: bytes) -> str:
    """Receive it."""
    accepted, words = channel.run(data, _ENDS)
    assert words[:1] == words[1:2]
    return channel.outcome((accepted, words))
