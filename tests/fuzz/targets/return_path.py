"""What a destination answers: the same messages in whatever pieces they come, and the same bytes once more."""

from __future__ import annotations

from collections.abc import Iterator

from multifd.errors import StreamError
from multifd.wire.return_path import PONG, SHUT, ReturnPathReader, ReturnPathWatcher, encode_answer
from tests.fuzz.pieces import pieces

COVERS = ("multifd.wire.return_path",)
LONGEST = 64


def seeds() -> Iterator[bytes]:
    """Answers of a destination that succeeds, that fails, and a message that none sends."""
    yield encode_answer(PONG, 1) + encode_answer(PONG, 2) + encode_answer(SHUT, 0)
    yield encode_answer(SHUT, 1)
    yield bytes.fromhex("0003 0008 0000000000000000")
    yield bytes.fromhex("0007 0000") + encode_answer(SHUT, 0)


def _read(parts: list[bytes], kind: type[ReturnPathReader] = ReturnPathReader) -> tuple[list[tuple[int, int]], str]:
    reader, messages = kind(), list[tuple[int, int]]()
    try:
        for part in parts:
            messages.extend(reader.feed(part))
    except StreamError as e:
        return messages, str(e)
    return messages, ""


def run(data: bytes) -> str:
    """Read it at once, in pieces and byte by byte."""
    messages, error = _read([data])
    for parts in (pieces(data), [data[i : i + 1] for i in range(len(data))]):
        assert _read(parts) == (messages, error)
    watched = _read([data], ReturnPathWatcher)
    assert _read(pieces(data), ReturnPathWatcher) == watched
    assert watched[0][: len(messages)] == messages
    again = b"".join(encode_answer(*message) for message in messages)
    assert data.startswith(again)
    assert error or len(data) - len(again) < 8
    return "refused" if error else "answers"
