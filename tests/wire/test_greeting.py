"""Who connects: main, a channel, or a stranger who is named, however its bytes arrive."""

from __future__ import annotations

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peer import init

from multifd.wire.greeting import Kind, classify, closed


def client_hello() -> bytes:
    """What a TLS client of Python's own ssl starts with."""
    outgoing = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


KINDS = [
    (b"QEVM\0\0\0\3", Kind.MAIN, ""),
    (init(3), Kind.CHANNEL, ""),
    (client_hello(), Kind.STRANGER, "TLS"),
    (b"GET / HTTP/1.1\r\n", Kind.STRANGER, "HTTP"),
    (b"POST /x HTTP/1.1\r\n", Kind.STRANGER, "HTTP"),
    (b"CONNECT h:1 HTTP/1.1\r\n", Kind.STRANGER, "proxy"),
    (b"PRI * HTTP/2.0\r\n", Kind.STRANGER, "HTTP/2"),
    (b"SSH-2.0-OpenSSH_9.2\r\n", Kind.STRANGER, "SSH"),
    (b"PROXY TCP4 10.0.0.1\r\n", Kind.STRANGER, "PROXY"),
    (b"\r\n\r\n\0\r\nQUIT\n", Kind.STRANGER, "PROXY"),
    (b"hello", Kind.STRANGER, "'hell'"),
    (b"\x1b[2J", Kind.STRANGER, "0x1b5b324a"),
    (b"QEVN", Kind.STRANGER, "QEVN"),
]


@pytest.mark.parametrize(
    ("first", "kind", "words"), KINDS, ids=[f"{kind.name}-{i}" for i, (_, kind, _) in enumerate(KINDS)]
)
def test_who_it_is(first, kind, words):
    greeting = classify(first)
    assert greeting.kind is kind
    assert words in greeting.words
    assert bool(greeting.words) == (kind is Kind.STRANGER)


@pytest.mark.parametrize(
    ("first", "kind", "words"), KINDS, ids=[f"{kind.name}-{i}" for i, (_, kind, _) in enumerate(KINDS)]
)
def test_byte_by_byte_it_is_the_same(first, kind, words):
    seen = [classify(first[:n]) for n in range(1, 5)]
    decided = next(greeting for greeting in seen if greeting.kind is not Kind.UNDECIDED)
    assert decided.kind is kind
    assert words in decided.words or kind is Kind.STRANGER


@given(st.binary(min_size=4, max_size=9))
def test_four_bytes_decide_and_the_words_are_printable(first):
    greeting = classify(first)
    assert greeting.kind is not Kind.UNDECIDED
    assert greeting.words.isprintable()


@pytest.mark.parametrize(("first", "words"), [(b"", "without a word"), (b"QE", "after 2 bytes")])
def test_one_that_closes(first, words):
    assert words in closed(first).words
