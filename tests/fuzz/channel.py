"""What a method's `recv` makes of payloads that no sender made, by every engine there is; for each method's target.

An input is a packet after the other: a count of pages, two bytes of length, and so much of payload. The channel ends
with the first one that is refused, as a migration's does. All ends must accept or refuse the same packets, fill every
byte of the same pages alike, whatever was there before, and write nothing elsewhere.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from multifd.errors import CodecError
from multifd.method import MultifdMethods, RecvParams
from multifd.testing.fence import Fence
from multifd.testing.harness import RecvEnd, SendEnd
from multifd.testing.native_ends import NativeRecvEnd
from multifd.testing.strategies import packet

PAGE, MOST_PAGES, MOST_PACKETS = 4096, 6, 4


def _pack(count: int, payload: bytes) -> bytes:
    return struct.pack(">BH", count - 1, len(payload)) + payload


def seeds(*methods: MultifdMethods, kinds: Sequence[str] = ("text", "mixed", "almost-zero")) -> Iterator[bytes]:
    """Channels of a few good packets, by each method's own sender."""
    for method in methods:
        for kind in kinds:
            with SendEnd(method, PAGE) as send:
                yield b"".join(_pack(n, send.pack(packet(kind, n, PAGE, n))) for n in (1, 2, 1))


def packets(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Of an input: where a packet's payload is, its pages and its payload."""
    at = 0
    for _ in range(MOST_PACKETS):
        if at + 3 > len(data):
            return
        count, length = struct.unpack_from(">BH", data, at)
        yield at + 3, count % MOST_PAGES + 1, data[at + 3 : at + 3 + length]
        at += 3 + length


def fields(data: bytes) -> Iterator[tuple[int, int]]:
    """Counts and lengths, and the payloads' first words, which most methods begin with something special."""
    for at, _, payload in packets(data):
        yield from ((at - 3, 1), (at - 2, 2))
        yield from ((at + i, 4) for i in range(0, min(len(payload) - 4, 24), 4))


def run(data: bytes, ends: Sequence[RecvEnd]) -> tuple[list[bytes], list[str]]:
    """The pages of the packets that were accepted, and what each end said of the one that was not.

    Args:
        data: an input.
        ends: of one channel; a target makes them once, since their memory costs more than most inputs.
    """
    accepted: list[bytes] = []
    for end in ends:
        end.packet = 0
        end.setup()
        _fence_in(end)
    try:
        for _, count, payload in packets(data):
            if len(payload) > ends[0].bound:
                return accepted, []
            pages, words = set(), []
            for number, end in enumerate(ends):
                try:
                    pages.add(end.receive(payload, count, "scattered", 0xE7 ^ 0xFF * (number % 2)))
                except CodecError as e:
                    words.append(str(e))
            if len(words) == len(ends):
                return accepted, words
            if words or len(pages) != 1:
                raise AssertionError(
                    f"{len(ends) - len(words)} of {len(ends)} took it, as {len(pages)} contents: {words}"
                )
            accepted.append(pages.pop())
        return accepted, []
    finally:
        for end in ends:
            end.cleanup()
            del end._recv


_FENCE = Fence(1 << 16)
"""As much as two bytes of length can say."""


def _fence_in(end: RecvEnd) -> None:
    """Let payloads end where memory ends: whoever reads on is killed by a signal."""
    recv = end._recv

    def fenced(p: RecvParams) -> None:
        given = p.payload
        view = _FENCE.view[len(_FENCE.view) - len(given) :]
        view[:] = given
        p.payload = view.toreadonly()
        recv(p)

    end._recv = fenced  # type: ignore[method-assign]


def by_both_hooks(method: MultifdMethods) -> list[RecvEnd]:
    """An end in Python and one in native code, or two in Python; the second finds other bytes in its pages."""
    return [RecvEnd(method, PAGE), NativeRecvEnd(method, PAGE)]


def outcome(seen: tuple[list[bytes], list[str]]) -> str:
    """In a word."""
    accepted, words = seen
    return f"{len(accepted)} packets" + ", refused" * bool(words)
