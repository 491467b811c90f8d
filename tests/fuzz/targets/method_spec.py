"""A method as a user names it: refused with a word, or the same again from its name and options."""

from __future__ import annotations

from collections.abc import Iterator

from multifd.errors import MethodError, UsageError
from multifd.registry import entry_points, load_method, parse_spec

COVERS = ("multifd.registry",)
LONGEST = 80
_AMONG = entry_points()


def seeds() -> Iterator[bytes]:
    """Names, options, and what is neither."""
    yield from (
        b"none",
        b"zstd:level=1",
        b"zlib:level=3,engine=zlib",
        b"qpl:hardware=off,retries=2",
        b"lz4:acceleration=7",
    )
    yield from (
        b"zstd:level=-7,engine=zstandard",
        b"zsdt",
        b":",
        b"zstd:level",
        b"zstd:level=1,level=2",
        b"none:x=\xc3\xa9",
    )


def run(data: bytes) -> str:
    """Load it."""
    spec = data.decode("utf-8", "surrogateescape")
    try:
        name, texts = parse_spec(spec)
        assert parse_spec(_spec(name, texts)) == (name, texts)
        method = load_method(spec, _AMONG)
    except (UsageError, MethodError) as e:
        return type(e).__name__
    options = {key: str(value) for key, value in vars(method.options).items()}
    again = load_method(_spec(name, options), _AMONG)
    assert (type(again), again.options) == (type(method), method.options)
    return name


def _spec(name: str, texts: dict[str, str]) -> str:
    return name + ":" * bool(texts) + ",".join(f"{key}={value}" for key, value in texts.items())
