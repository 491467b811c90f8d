"""Errors: the tree, the exit statuses, and what they say."""

from __future__ import annotations

import pickle

import pytest

from multifd import errors
from multifd.errors import CodecError, MethodNotFound, MultifdError, OptionError, RemoteWireError

STATUS = {
    "MultifdError": 1, "UsageError": 2, "MethodError": 3, "MethodNotFound": 3, "MethodUnavailable": 3,
    "MethodIncompatible": 3, "HookError": 3, "OptionError": 2, "CodecError": 4, "WireError": 4, "LocalWireError": 1,
    "RemoteWireError": 4, "StreamError": 4, "PeerMismatch": 4, "PeerFailed": 4, "ChannelError": 5, "RamError": 6,
    "Aborted": 5, "TlsError": 5, "OutcomeUnknown": 7, "NotConverged": 8, "ControlError": 9, "Cancelled": 130,
}  # fmt: skip


def test_every_error_has_its_status() -> None:
    public = {
        name: cls.exit_code
        for name, cls in vars(errors).items()
        if isinstance(cls, type) and issubclass(cls, MultifdError) and not name.startswith("_")
    }
    assert public == STATUS


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("UsageError", ValueError),
        ("OptionError", ValueError),
        ("MethodNotFound", LookupError),
        ("ChannelError", OSError),
    ],
)
def test_errors_that_python_knows_too(name: str, base: type[Exception]) -> None:
    assert issubclass(getattr(errors, name), base)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "size 3"),
        ({"offset": 0}, "byte 0: size 3"),
        ({"channel": 2, "packet": 0}, "channel 2, packet 0: size 3"),
        ({"channel": 0, "packet": 7, "offset": 20}, "channel 0, packet 7, byte 20: size 3"),
    ],
)
@pytest.mark.parametrize("cls", [RemoteWireError, CodecError])
def test_place(cls: type[RemoteWireError | CodecError], fields: dict[str, int], text: str) -> None:
    error = cls("size 3")
    for name, value in fields.items():
        setattr(error, name, value)
    assert str(error) == text


def test_not_found_says_what_there_is() -> None:
    assert str(MethodNotFound("zst", ["none", "zstd"], ["zstd"])) == (
        "no method 'zst' is installed (installed: none, zstd); did you mean 'zstd'?"
    )
    assert "none at all" in str(MethodNotFound("x", []))


def test_option_error() -> None:
    error = OptionError("level", "99", "expected a whole number from 0 to 9")
    assert str(error) == "option 'level': got '99', expected a whole number from 0 to 9"
    error.method = "zlib"
    assert str(error).startswith("method 'zlib': option 'level'")
    assert str(pickle.loads(pickle.dumps(OptionError("a", 1, "b", "c")))) == "method 'c': option 'a': got 1, b"
